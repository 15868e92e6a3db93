"""DICOM as hospitals keep it: find the images in a folder, say why the others were left out, read pixels.

    from silos.dicom.decode import read_image
    from silos.dicom.scan import scan

    found = scan(root, index, modality=["MR"], attributes=["AccessionNumber"])
    found.instances, found.left_out
    image = read_image(root / found.instances.path[0])      # (H, W) float32 in modality units

Only what is named is ever read: `scan` takes an allow-list of attributes from the headers, `read_image`
takes what pixels need. Names, birth dates and the rest of a patient's record are skipped over on disk.
"""

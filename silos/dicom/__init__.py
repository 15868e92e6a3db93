"""DICOM as hospitals keep it: find the images in a folder, say why the others were left out, read pixels.

    from silos.dicom.decode import read_image
    from silos.dicom.scan import scan

    found = scan(root, index, modality=["MR"], attributes=["AccessionNumber"])
    found.instances, found.left_out
    image = read_image(root / found.instances.path[0])      # (H, W) float32 in modality units

Of whole volumes and of what was drawn on them:

    found = scan(root, index, modality=["CT"], several_frames=True)
    stacks = find_stacks(found.instances, root).stacks                      # silos.dicom.series
    matches = match(found.annotations, stacks, root)                        # silos.dicom.annotation
    volume = read_volume(stacks[0], root)
    mask = read_mask(matches.by_stack[stacks[0]], stacks[0], root, words, classes)
    pixels, affine = to_grid(volume.pixels, volume.affine, spacing)         # silos.dicom.grid

Only what is named is ever read: `scan` takes an allow-list of attributes from the headers, `read_image`
takes what pixels need. Names, birth dates and the rest of a patient's record are skipped over on disk. An
annotation alone is read whole, once it was found to belong to images that are used.
"""

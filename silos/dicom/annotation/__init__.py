"""What was drawn on images: DICOM SEG and RTSTRUCT, found by what they refer to, painted on the stack's own grid.

    matches = match(scan.annotations, stacks, root)             # headers only
    mask = read_mask(matches.by_stack[stack], stack, root, {"GTV": "tumour", "*": ""}, ["none", "tumour"])
    mask                                                        # (columns, rows, slices) uint8, index of the class

An annotation belongs to the images that it names, wherever its file lies. Whatever does not fit (another grid,
positions that contradict the images, contours that enclose nothing, two drawings of one class) is left out with
a reason. A segment that the hospital's words do not know is an error that says which word to add.
"""

from silos.dicom.annotation.mask import read_mask
from silos.dicom.annotation.reference import Annotation, Matches, Segment, match, read_annotation
from silos.dicom.annotation.unfit import Unfit, UnfitAnnotation

__all__ = ["Annotation", "Matches", "Segment", "Unfit", "UnfitAnnotation", "match", "read_annotation", "read_mask"]

"""Which cases can be trained on: scanned images with the hospital's own labels or annotations, by patient.

A case is what the study's task says: an image, or a volume; with a label, or with a mask that somebody drew. The
hospital's table is joined by any DICOM attributes the site names, annotations belong to the images that they
refer to; its words become the study's classes; patients are split so that one patient is always on one side, today
and after any new arrival. Patients are told apart by a keyed hash that exists in memory only. Whatever is left out
is counted with a reason. Headers only: no pixel is read.
"""

from silos.cohort.arrays import Arrays, match_arrays, read_arrays, write_arrays
from silos.cohort.cases import NO_PATIENT, Cohort, is_held_out, patient_hash
from silos.cohort.images import match
from silos.cohort.labels import CONFLICT, NO_CLASS, NO_IMAGE, NO_LABEL, read_labels
from silos.cohort.patients import OTHER_SITE, of_site
from silos.cohort.volumes import NO_ANNOTATION, NOT_OF_STUDY, OTHER_KIND, match_volumes

__all__ = [
    "CONFLICT",
    "NOT_OF_STUDY",
    "NO_ANNOTATION",
    "NO_CLASS",
    "NO_IMAGE",
    "NO_LABEL",
    "NO_PATIENT",
    "OTHER_KIND",
    "OTHER_SITE",
    "Arrays",
    "Cohort",
    "is_held_out",
    "match",
    "match_arrays",
    "match_volumes",
    "of_site",
    "patient_hash",
    "read_arrays",
    "read_labels",
    "write_arrays",
]

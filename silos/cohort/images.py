"""Images with one label each."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from silos.cohort.cases import NO_PATIENT, Cohort, split
from silos.cohort.labels import NO_IMAGE, label
from silos.config import Data
from silos.dicom.geometry import Misfit
from silos.dicom.series import of_several_patients


def match(instances: pd.DataFrame, data: Data, classes: Sequence[str], left_out: Mapping[str, int]) -> Cohort:
    """Join images and labels.

    Args:
        instances: The scan's usable images, attributes as text.
        data: The site's data settings.
        classes: The study's classes, in order.
        left_out: What the scan left out; what is left out here is added.

    Raises:
        ConfigError: The site has no label table, or it cannot be read, lacks a column, or uses an unknown word.
        DataError: No label fits any image.
    """
    labelled = label(instances, data, classes)
    reasons = labelled.reasons.mask(of_several_patients(instances), Misfit.SEVERAL_PATIENTS.value)
    reasons = reasons.mask(instances["PatientID"].str.strip() == "", NO_PATIENT)
    used = reasons == ""
    counts = Counter(left_out) + Counter(reasons[~used]) + Counter({NO_IMAGE: labelled.unused})
    cases = instances.loc[used, ["path"]].copy()
    cases["name"] = cases["path"]
    cases["stamp"] = [f"{size} {age}" for size, age in instances.loc[used, ["size", "mtime_ns"]].to_numpy()]
    cases["target"] = labelled.targets[used].to_numpy().astype(np.int64)
    cases["classes"] = cases["target"].map(lambda target: frozenset({target}))
    return split(cases, instances.loc[used, "PatientID"], counts, data, classes)

"""Which of the images below a folder belong to this hospital, where several sites share the folder."""

from collections import Counter
from dataclasses import replace

from models.errors import ConfigError, DataError
from silos.config import Data
from silos.dicom.scan import Scan

OTHER_SITE = "patient of another site"


def of_site(found: Scan, data: Data) -> Scan:
    """The scan less the files of patients who are not in the site's list; they are counted.

    An annotation belongs to the images that it names, whatever PatientID it carries: only those of another site's
    patients are left out here.

    Args:
        found: A scan of the whole folder.
        data: The site's data settings; without `patients`, every patient belongs to it.

    Raises:
        ConfigError: The list cannot be read, or is empty.
        DataError: No image is of any patient in it.
    """
    if data.patients is None:
        return found
    try:
        lines = data.patients.read_text(encoding="utf-8-sig").splitlines()  # Windows begins such a file with a mark
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "is not UTF-8 text"
        raise ConfigError(
            f"data.patients: {data.patients}: {reason}", "give a text file of a PatientID a line"
        ) from error
    known = {line.strip() for line in lines} - {""}
    if not known:
        raise ConfigError(
            f"data.patients: {data.patients}: names nobody", "write a PatientID a line, or remove the key"
        )
    patients = found.instances["PatientID"].str.strip()
    ours = patients.isin(known)
    drawn = ~found.annotations["PatientID"].str.strip().isin(set(patients[~ours]) - {""})
    if len(ours) and not ours.any():
        raise DataError(
            f"data.patients: none of the {len(known)} patients of {data.patients} has an image below {data.root}",
            "name the file that was made for this folder",
        )
    left_out = Counter(found.left_out) + Counter({OTHER_SITE: int((~ours).sum() + (~drawn).sum())})
    return replace(
        found,
        instances=found.instances[ours].reset_index(drop=True),
        annotations=found.annotations[drawn].reset_index(drop=True),
        left_out=dict(left_out),
    )

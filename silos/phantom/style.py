"""How hospitals differ in everything but their patients: scanner, files, compression, table of labels."""

from dataclasses import dataclass

from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)


@dataclass(frozen=True)
class Style:
    """One hospital's habits.

    Attributes:
        manufacturer: Who built the scanner.
        model: Its name.
        tesla: Its field strength.
        syntax: Transfer syntax of the files (DICOM PS3.5); all of these keep every bit.
        encoder: pydicom's encoding plugin for it, named so that it never depends on what is installed.
        path: Where an image lies; may use mrn, accession, family, given, study, series, uid, number and
            serial.
        join: DICOM keyword to column of the table of labels.
        delimiter: Between the columns of the table.
        value: Column of the label.
        words: The hospital's words for (lesion, none).
        segment: What it calls a lesion where it draws one.
        draws: In what: SEG or RTSTRUCT.
        enhanced: Whether a volume is one file of many frames (Enhanced MR).
    """

    manufacturer: str
    model: str
    tesla: float
    syntax: UID
    encoder: str
    path: str
    join: dict[str, str]
    delimiter: str
    value: str
    words: tuple[str, str]
    segment: str
    draws: str = "SEG"
    enhanced: bool = False

    @property
    def join_volumes(self) -> dict[str, str]:
        """How the table of labels is joined where a volume has one label."""
        found = {keyword: column for keyword, column in self.join.items() if keyword != "InstanceNumber"}
        return {"SeriesInstanceUID": "series"} if "SOPInstanceUID" in found else found


STYLES = (
    Style(
        manufacturer="Aurelia Imaging",
        model="Meridian 15",
        tesla=1.5,
        syntax=ExplicitVRLittleEndian,
        encoder="",
        path="{mrn}/{study}/{series}/{number:04d}.dcm",
        join={"SOPInstanceUID": "sop_instance_uid"},
        delimiter=",",
        value="finding",
        words=("lesion", "none"),
        segment="Lesion",
    ),
    Style(
        manufacturer="Nordlys Medical",
        model="Polaris",
        tesla=3.0,
        syntax=RLELossless,
        encoder="pydicom",
        path="IM{serial:05d}",
        join={"AccessionNumber": "Accession", "InstanceNumber": "Slice"},
        delimiter=";",
        value="LesionPresent",
        words=("yes", "no"),
        segment="Läsion",
        draws="RTSTRUCT",
    ),
    Style(
        manufacturer="Tidewater Magnetics",
        model="Ebb 3T",
        tesla=3.0,
        syntax=JPEG2000Lossless,
        encoder="pylibjpeg",
        path="{family}_{given}/FLAIR_{number:03d}.dcm",
        join={"PatientID": "MRN", "InstanceNumber": "Image"},
        delimiter=",",
        value="Label",
        words=("1", "0"),
        segment="GTV 1",
    ),
    Style(
        manufacturer="Corvid Systems",
        model="Rook-S",
        tesla=1.5,
        syntax=JPEGLSLossless,
        encoder="pyjpegls",
        path="{accession}/{uid}",
        join={"AccessionNumber": "accession_no", "InstanceNumber": "instance_no"},
        delimiter=",",
        value="read",
        words=("positive", "negative"),
        segment="lesion",
        enhanced=True,
    ),
    Style(
        manufacturer="Aurelia Imaging",
        model="Meridian 30",
        tesla=3.0,
        syntax=DeflatedExplicitVRLittleEndian,
        encoder="",
        path="{uid}.dcm",
        join={"SOPInstanceUID": "SOP Instance UID"},
        delimiter=";",
        value="Lesion",
        words=("1", "0"),
        segment="FLAIR hyperintensity",
    ),
)
"""Every style; they use five transfer syntaxes, three ways to join labels and four ways to name files."""

"""Why an annotation cannot be used, as one exception with a reason that can be counted."""

from enum import StrEnum

from models.errors import DataError


class Unfit(StrEnum):
    """Why an annotation is left out, in the words of the report."""

    AUTOMATIC = "annotation made by a program"
    NO_IMAGES = "annotation of no images here"
    SEVERAL_SERIES = "annotation that could be of several series"
    CONTRADICTION = "annotation that contradicts its images"
    OTHER_GRID = "annotation on another grid than its images"
    OPEN = "contours that enclose nothing"
    TWICE = "several annotations of one class"


class UnfitAnnotation(DataError):  # noqa: N818 - named as the errors of models/errors.py are
    """An annotation that cannot be painted on its images.

    Args:
        reason: The words by which it is counted.
    """

    def __init__(self, reason: Unfit) -> None:
        super().__init__(reason.value, "leave it out, or draw it again on these images")
        self.reason = reason

"""A make-believe hospital, to try everything without a patient.

    site = write_hospital(Path("north"), name="north", seed=1)     # the path of north/site.toml

It writes what a real hospital has: DICOM images in a scanner's own folders and compression, a table of
labels in the hospital's own words, a key, and a commented `site.toml`. The people in it are made of
syllables, the brains of ellipses. Every identifier is also listed in `canaries.txt`, so that whoever
wants to know whether something leaked can search for each line in whatever left.

The same name and seed give the same bytes on one machine. That goes for the key too: anybody can repeat
it, so a phantom's key is worthless as a secret and must never stand for a real hospital.
"""

from silos.phantom.hospital import write_hospital
from silos.phantom.style import STYLES

__all__ = ["STYLES", "write_hospital"]

"""The way to a stored calibration that costs a plain answer nothing: most homes hold none."""

from typing import TYPE_CHECKING, Optional

from profiles.gpu import Hardware
from profiles.home import data_home

if TYPE_CHECKING:
    from profiles.calibration import Calibration


def stored_calibration(hardware: Hardware) -> tuple[Optional["Calibration"], tuple[str, ...]]:
    """The calibration of this hardware, and what has to be said about the search (see advisor/calibrations.py)."""
    if hardware.candidates or not (data_home() / "calibrations").is_dir():
        return None, ()
    from advisor.calibrations import find_calibration

    return find_calibration(hardware)

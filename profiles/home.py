"""Where this user's measurements and calibrations live."""

import os
from pathlib import Path


def data_home() -> Path:
    """FTADVISE_HOME, else ftadvise in XDG_DATA_HOME, else in ~/.local/share. Relative XDG paths count as unset."""
    if home := os.environ.get("FTADVISE_HOME"):
        return Path(os.path.expanduser(home)).absolute()
    xdg = os.environ.get("XDG_DATA_HOME", "")
    base = Path(xdg) if os.path.isabs(xdg) else Path(os.path.expanduser("~/.local/share"))
    return base / "ftadvise"

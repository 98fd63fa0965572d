"""Room for weights, checkpoints and environments."""

import shutil
from collections.abc import Iterator
from pathlib import Path

from advisor.doctor.finding import Finding
from advisor.environments.environment import environments_home
from advisor.hub_cache import hub_cache
from profiles.units import bytes_from_gib, format_bytes

LOW_DISK = bytes_from_gib(20)  # an 8B model in bf16 is 15 GiB on disk, before any checkpoint


def examine_disk() -> Iterator[Finding]:
    """Free bytes here, where the hub's cache is and where environments go; each disk once."""
    seen = set()
    for place, path in (("here", Path.cwd()), ("hub cache", hub_cache()), ("environments", environments_home())):
        there = nearest(path)
        if (disk := there.stat().st_dev) in seen:
            continue
        seen.add(disk)
        free = shutil.disk_usage(there).free
        low = free < LOW_DISK
        yield Finding(
            topic="disk",
            level="note" if low else "ok",
            found=f"{format_bytes(free)} free at {there} ({place})",
            meaning="an 8B model and its checkpoints may not fit" if low else "room for weights and checkpoints",
            mend="free some space, or set HF_HOME and FTADVISE_HOME to a larger disk" if low else "",
        )


def nearest(path: Path) -> Path:
    """The path, or the first folder above it that exists."""
    return next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())

"""Whether a run is alive: its trainer holds a lock on the folder's .lock for as long as it lives, however it ends.

flock(2): a child inherits the lock of a descriptor, and the kernel frees it with the last process that has it. A
process number tells less: it can be another process's by now. The file holds the number of the trainer, once known.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from profiles.errors import InvalidInputError

LOCK = ".lock"
ATTEMPTS, PAUSE_SECONDS = 10, 0.02  # whoever looks holds a shared lock for an instant


@contextmanager
def hold_lock(folder: Path) -> Iterator[int]:
    """Lock the folder; the descriptor is for a child to inherit. Afterwards it is locked while such a child lives.

    Raises:
        InvalidInputError: somebody else holds it.
    """
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if not _locked(descriptor):
            raise InvalidInputError(
                str(folder), "is running already", "`ftadvise runs attach` watches it, `ftadvise runs stop` stops it."
            )
        os.ftruncate(descriptor, 0)  # the number of the trainer before
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    for _ in range(ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(PAUSE_SECONDS)
        else:
            return True
    return False


def name_holder(descriptor: int, pid: int) -> None:
    """Write down whose the lock is."""
    os.pwrite(descriptor, str(pid).encode(), 0)


def holder(folder: Path) -> int | None:
    """The trainer's process while the folder is locked; None where nobody has written it down."""
    text = (folder / LOCK).read_bytes()
    return int(text) if text.isdigit() else None


def is_held(folder: Path) -> bool:
    """Whether a trainer (or a launcher that is about to start one) lives."""
    try:
        descriptor = os.open(folder / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

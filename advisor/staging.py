"""A folder that is written as a whole: nothing stands in it until all of it is there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from profiles.errors import InvalidInputError


@contextmanager
def staged_folder(out: Path, *, force: bool = False) -> Iterator[Path]:
    """An empty folder beside `out`, whose files move to `out` when the block ends well.

    Without `force` the folder must be new or empty; with it, files of the same name are replaced and all others stay.

    Raises:
        InvalidInputError: `out` is not empty, is a file, or cannot be written.
    """
    if out.exists() and not out.is_dir():
        raise InvalidInputError(str(out), "is a file, not a folder", "Choose another folder.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InvalidInputError(str(out), "is not empty", "Choose another folder, or add --force to replace its files.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(dir=out.parent, prefix=".ftadvise-"))
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror}") from None
    try:
        new = staging / "new"
        new.mkdir()
        yield new
        _move_in(new, out, staging / "old")
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_in(new: Path, out: Path, old: Path) -> None:
    """Move every file of `new` to `out`; what stood there goes to `old`, and comes back if a later move fails."""
    if not out.exists():
        os.replace(new, out)
        return
    moved: list[Path] = []
    try:
        for path in sorted(p for p in new.rglob("*") if p.is_file()):
            name = path.relative_to(new)
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                (old / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, old / name)
            moved.append(name)
            os.replace(path, target)
    except BaseException:
        for name in moved:
            (out / name).unlink(missing_ok=True)
            if (old / name).exists():
                os.replace(old / name, out / name)
        raise

"""The user's own measurements, calibrations and runs on disk: one JSON file a record, written whole or not at all.

They live under the XDG data home (`~/.local/share/ftadvise`), or where FTADVISE_HOME says. Files that cannot be read
are never changed: they are refused, with their path.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Generic, TypeVar

from profiles.calibration import Calibration
from profiles.errors import AdviseError, InvalidInputError
from profiles.home import data_home
from profiles.known_run import KnownRun
from profiles.measurement import Measurement
from profiles.record import parse_record
from profiles.units import KIB

SCHEMA_VERSION = 1
LOCK_SECONDS = 30.0
ROOM_FOR_A_RECORD = 512 * KIB

StoredT = TypeVar("StoredT", bound=Measurement | Calibration | KnownRun)

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")


class Shelf(Generic[StoredT]):
    """Records of one kind in one folder, by id."""

    def __init__(self, kind: type[StoredT], folder: Path) -> None:
        self.kind = kind
        self.folder = folder

    def add(self, record: StoredT) -> Path:
        """Write `record` to disk and return its file.

        Raises:
            InvalidInputError: its id is no file name, or is taken by another record.
            AdviseError: the folder cannot be written (code 'store-unwritable') or stays locked ('store-locked').
        """
        path = self._path(record.id)
        with self._locked():
            if path.exists():
                if self._read(path) == record:
                    return path
                raise InvalidInputError(str(path), f"{record.id!r} is taken by another record", "Choose another id.")
            self._write(path, record.model_dump_json(indent=2) + "\n")
        return path

    def get(self, record_id: str) -> StoredT | None:
        """The record of that id, or None. Raises InvalidInputError if its file is none."""
        path = self._path(record_id)
        return self._read(path) if path.is_file() else None

    def update(self, record_id: str, change: Callable[[StoredT | None], StoredT]) -> StoredT:
        """Put `change(record)` in the place of the record (None: there is none yet), with nobody else in between.

        Raises as `add` does, and InvalidInputError where the old file cannot be read: it is left as it is.
        """
        path = self._path(record_id)
        with self._locked():
            record = change(self._read(path) if path.exists() else None)
            if record.id != record_id:
                raise InvalidInputError("id", f"{record.id!r} is not {record_id!r}")
            self._write(path, record.model_dump_json(indent=2) + "\n")
        return record

    def check_writable(self) -> None:
        """Write and remove a file of a large record's size. Raises AdviseError ('store-unwritable') as `add` would."""
        with self._locked():
            try:
                with NamedTemporaryFile(dir=self.folder, prefix=".", suffix=".tmp") as file:
                    file.write(bytes(ROOM_FOR_A_RECORD))
                    file.flush()
            except OSError as error:
                raise _unwritable(self.folder, error, "written") from None

    def remove(self, record_id: str) -> bool:
        """Delete the record of that id; False if there is none."""
        path = self._path(record_id)
        if not path.exists():
            return False
        with self._locked():
            path.unlink(missing_ok=True)
        return True

    def load(self) -> tuple[StoredT, ...]:
        """All records, oldest first. Raises InvalidInputError naming the first file that is none."""
        try:
            paths = sorted(p for p in self.folder.iterdir() if p.suffix == ".json" and not p.name.startswith("."))
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise _unwritable(self.folder, error, "read") from None
        return tuple(sorted((self._read(path) for path in paths), key=lambda record: (record.date, record.id)))

    def _path(self, record_id: str) -> Path:
        if not _ID.fullmatch(record_id):
            raise InvalidInputError("id", f"{record_id!r} cannot be a file name", "Use letters, digits, '.', '_', '-'.")
        return self.folder / f"{record_id}.json"

    def _read(self, path: Path) -> StoredT:
        aside = f"It was left as it is. Move it out of {self.folder} to go on without it."
        try:
            data = json.loads(path.read_bytes())
        except OSError as error:
            raise InvalidInputError(str(path), f"cannot be read: {error.strerror}", aside) from None
        except (ValueError, RecursionError):
            raise InvalidInputError(str(path), "is damaged, or no JSON", aside) from None
        version = data.get("schema_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise InvalidInputError(
                str(path), f"was written by a newer ftadvise (schema {version}, known is {SCHEMA_VERSION})",
                f"Update ftadvise. {aside}",
            )  # fmt: skip
        record = parse_record(self.kind, data, str(path), aside)
        if f"{record.id}.json" != path.name:
            raise InvalidInputError(str(path), f"holds the record {record.id!r}", aside)
        return record

    def _write(self, path: Path, text: str) -> None:
        """To a temporary file beside it, to the disk, then into place: a crash leaves the old state or the new."""
        temporary = ""
        for left in self.folder.glob(".*.tmp"):  # of a writer that was killed: only the lock's holder writes
            left.unlink(missing_ok=True)
        try:
            with NamedTemporaryFile(
                "w", encoding="utf-8", dir=self.folder, prefix=".", suffix=".tmp", delete=False
            ) as file:
                temporary = file.name
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            directory = os.open(self.folder, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except BaseException as error:
            if temporary:
                Path(temporary).unlink(missing_ok=True)
            if isinstance(error, OSError):
                raise _unwritable(self.folder, error, "written") from None
            raise

    @contextmanager
    def _locked(self) -> Iterator[None]:
        from filelock import FileLock, Timeout

        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.folder / ".lock", timeout=LOCK_SECONDS)
            lock.acquire()
        except Timeout:
            raise AdviseError(
                "store-locked",
                f"{self.folder} is in use by another process for more than {LOCK_SECONDS:.0f} s",
                "Wait for it to end.",
            ) from None
        except OSError as error:
            raise _unwritable(self.folder, error, "written") from None
        try:
            yield
        finally:
            lock.release()


def _unwritable(folder: Path, error: OSError, done: str) -> AdviseError:
    return AdviseError(
        "store-unwritable",
        f"{folder} cannot be {done}: {error.strerror or error}",
        "Free some space, or set FTADVISE_HOME to a folder that can be written.",
    )


class Store:
    """Everything that this user has launched, measured and fitted."""

    def __init__(self, home: Path | None = None) -> None:
        self.home = home or data_home()
        self.measurements = Shelf(Measurement, self.home / "measurements")
        self.calibrations = Shelf(Calibration, self.home / "calibrations")
        self.runs = Shelf(KnownRun, self.home / "runs")

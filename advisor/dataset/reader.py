"""Read and validate a dataset: every row is checked, none is kept in memory."""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import monotonic
from typing import Any

from advisor.dataset.formats import FORMATS, Format, detect, normalise, texts
from advisor.dataset.rows import READERS, RowError, kind_of, read_rows
from advisor.dataset.turns import Example
from profiles.dataset import DatasetFacts, LengthDistribution
from profiles.errors import InvalidInputError

Progress = Callable[[int, float], None]  # examples so far, share of the bytes read (0 to 1)

PROGRESS_AFTER = 1.0  # seconds: shorter reads need no bar
PROGRESS_EVERY = 0.2
NAMED_ERRORS = 5
_HELD_OUT = re.compile(r"(?<![a-z])(test|valid|validation|dev|eval|evaluation)(?![a-z])")
_NOT_DATA = ("dataset_info.json", "dataset_infos.json", "package.json", "config.json")


@dataclass(frozen=True)
class Dataset:
    """A validated dataset. Iterating reads the files again and yields normalised examples, in order.

    `characters[i]` is the length of example i, `first[i]` the index of the first example equal to it. A view (see
    `split`) has a `kept` mask over them, one byte an example.
    """

    path: Path
    files: tuple[Path, ...]
    format: Format
    characters: "array[int]" = field(repr=False)
    first: "array[int]" = field(repr=False)
    fingerprint: str
    stamps: tuple[tuple[int, int], ...] = field(repr=False)  # size and mtime of each file while it was read
    empty: int = 0
    skipped: int = 0
    skip_invalid: bool = False
    labels: int | None = None
    ignored_columns: tuple[str, ...] = ()
    complete: bool = True
    kept: bytes | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.first) if self.kept is None else self.kept.count(1)

    @property
    def indices(self) -> Iterator[int]:
        """Positions of this view's examples among all that were read."""
        return (i for i in range(len(self.first)) if self.kept is None or self.kept[i])

    @property
    def duplicates(self) -> int:
        """Examples equal to an earlier one."""
        seen = {self.first[i] for i in self.indices}
        return len(self) - len(seen)

    def __iter__(self) -> Iterator[Example]:
        for i, (_, example) in enumerate(self._all()):
            if self.kept is None or self.kept[i]:
                yield example

    def located(self) -> Iterator[tuple[int, str, Example]]:
        """Like iterating, with each example's position and its place for messages (file:line)."""
        for i, (where, example) in enumerate(self._all()):
            if self.kept is None or self.kept[i]:
                yield i, where, example

    def _all(self) -> Iterator[tuple[str, Example]]:
        if _stamps(self.files) != self.stamps:
            raise InvalidInputError(str(self.path), "changed on disk since it was read", "Start again.")
        count = 0
        for where, row in _located_rows(self.files, whole_text=self.path.is_dir()):
            if count == len(self.first):
                return
            if isinstance(row, RowError) or _is_blank(self.format, row):
                continue
            try:
                example = normalise(self.format, row)
            except RowError:  # reported when the dataset was read
                continue
            count += 1
            yield where, example

    def view(self, kept: bytes) -> "Dataset":
        """The examples where `kept` is 1, a mask over all that were read."""
        fingerprint = hashlib.sha256(self.fingerprint.encode() + kept).hexdigest()
        return replace(self, kept=kept, fingerprint=fingerprint)

    def facts(self, lengths: LengthDistribution) -> DatasetFacts:
        """The record that plans are made from."""
        return DatasetFacts(
            path=str(self.path),
            format=self.format.name,
            form=self.format.form,
            examples=len(self),
            characters=sum(self.characters[i] for i in self.indices),
            lengths=lengths,
            duplicates=self.duplicates,
            empty=self.empty,
            skipped=self.skipped,
            labels=self.labels,
            ignored_columns=self.ignored_columns,
            fingerprint=self.fingerprint,
            complete=self.complete,
        )


def read_dataset(
    path: Path | str, *, limit: int | None = None, progress: Progress | None = None, skip_invalid: bool = False
) -> Dataset:
    """Read `path`, a file or a folder of files of one format, and check every row.

    The format is that of the first good row; all others must follow it. `limit` stops after so many examples.
    `skip_invalid` leaves broken rows out and counts them, instead of refusing the dataset. Blank documents of plain
    text are left out and counted as `empty`.

    Raises InvalidInputError naming file:line (CSV, parquet: row) of the first broken rows and how many there are.
    """
    path = Path(path)
    if limit is not None and limit < 1:
        raise InvalidInputError("limit", f"must be at least 1, got {limit}")
    files = _find_files(path)
    stamps = _stamps(files)
    reading = _Reading(path, skip_invalid)
    complete = True
    report = _throttled(progress, sum(size for size, _ in stamps), reading.characters)
    for where, row in _located_rows(files, whole_text=path.is_dir(), report=report):
        if limit is not None and len(reading.characters) >= limit:
            complete = False
            break
        reading.add(where, row)
    format = reading.finish()
    return Dataset(
        path=path,
        files=files,
        format=format,
        characters=reading.characters,
        first=reading.first,
        fingerprint=reading.hash.hexdigest(),
        stamps=stamps,
        empty=reading.empty,
        skipped=reading.broken,
        skip_invalid=skip_invalid,
        labels=len(reading.labels) if format.form == "classification" else None,
        ignored_columns=tuple(sorted(reading.columns - {*format.columns, *format.optional})),
        complete=complete,
    )


def encode(example: Example) -> bytes:
    """The JSON line (without its end) of a normalised example: what is written, hashed and compared."""
    return json.dumps(example, ensure_ascii=False, separators=(",", ":")).encode()


def _encode_row(example: Example) -> bytes:
    try:
        return encode(example)
    except UnicodeEncodeError:
        raise RowError("holds half of a surrogate pair, which utf-8 cannot express") from None
    except (TypeError, RecursionError):
        raise RowError("holds a value that JSON cannot express") from None


class _Reading:
    """What is gathered while the rows pass by."""

    def __init__(self, path: Path, skip_invalid: bool) -> None:
        self.path = path
        self.skip_invalid = skip_invalid
        self.format: Format | None = None
        self.characters = array("L")
        self.first = array("L")
        self.hash = hashlib.sha256()
        self.empty = 0
        self.broken = 0
        self.errors: list[tuple[str, str]] = []
        self.labels: set[Any] = set()
        self.columns: set[str] = set()
        self._seen: dict[bytes, int] = {}

    def add(self, where: str, row: Any) -> None:
        try:
            if isinstance(row, RowError):
                raise row
            if self.format is None:
                self.format = detect(row)
            if _is_blank(self.format, row):
                self.empty += 1
                return
            example = normalise(self.format, row)
            line = _encode_row(example)
        except RowError as error:
            self._refuse(where, str(error))
            return
        digest = hashlib.blake2b(line, digest_size=16).digest()
        self.hash.update(line + b"\n")
        self.first.append(self._seen.setdefault(digest, len(self.first)))
        self.characters.append(sum(map(len, texts(example))))
        self.columns.update(row)
        if self.format.form == "classification":
            self.labels.add(example["label"])

    def _refuse(self, where: str, message: str) -> None:
        self.broken += 1
        if len(self.errors) < NAMED_ERRORS:
            self.errors.append((where, message))

    def finish(self) -> Format:
        """The format. Raises InvalidInputError if there is nothing to train on or rows are broken."""
        count = len(self.characters)
        if self.broken and (not self.skip_invalid or not count):
            raise self._error(count + self.empty + self.broken)
        if self.format is None or not count:
            blank = f" ({self.empty} blank ones)" if self.empty else ""
            raise InvalidInputError(str(self.path), f"holds no examples{blank}", _expected(None))
        return self.format

    def _error(self, rows: int) -> InvalidInputError:
        (where, message), *others = self.errors
        if self.broken > 1:
            lines = [f"\n  {place}: {text}" for place, text in others]
            more = self.broken - len(self.errors)
            tail = f"\n  and {more} more" if more else ""
            message = f"{message}{''.join(lines)}{tail}\n{self.broken} of {rows} rows are broken"
        return InvalidInputError(where, message, _expected(self.format))


def _expected(format: Format | None) -> str:
    if format is not None:
        return f"The data looks like {format.name}, whose rows have {format.expected}."
    formats = "; ".join(dict.fromkeys(f.expected for f in FORMATS))
    return f"Rows may have: {formats}. Rename the columns (as question to prompt, answer to completion)."


def _is_blank(format: Format, row: Any) -> bool:
    if format.name != "text" or not isinstance(row, dict):
        return False
    text = row.get("text")
    return isinstance(text, str) and not text.strip()


def _find_files(path: Path) -> tuple[Path, ...]:
    kinds = ", ".join(READERS)
    if path.is_file():
        if kind_of(path) is None:
            raise InvalidInputError(str(path), f"is of no known kind {path.suffix!r}", f"Expected one of {kinds}.")
        return (path,)
    if not path.is_dir():
        raise InvalidInputError(str(path), "does not exist")
    files = tuple(
        sorted(
            file
            for file in path.rglob("*")
            if file.is_file()
            and kind_of(file)
            and file.name not in _NOT_DATA
            and not any(part.startswith(".") for part in file.relative_to(path).parts)
        )
    )
    if not files:
        raise InvalidInputError(str(path), "the folder holds no data files", f"Expected one of {kinds}.")
    held_out = [file for file in files if _HELD_OUT.search(str(file.relative_to(path)).lower())]
    if held_out and len(held_out) < len(files):
        raise InvalidInputError(
            str(path),
            f"the folder holds test data ({held_out[0].relative_to(path)}) beside training data",
            "Name the training file, or move the test data elsewhere: training on it would spoil any evaluation.",
        )
    return files


def _stamps(files: tuple[Path, ...]) -> tuple[tuple[int, int], ...]:
    try:
        return tuple((s.st_size, s.st_mtime_ns) for s in (file.stat() for file in files))
    except OSError as error:
        raise InvalidInputError(str(error.filename), f"cannot be read: {error.strerror}") from None


def _located_rows(
    files: tuple[Path, ...], *, whole_text: bool, report: Callable[[int], None] | None = None
) -> Iterator[tuple[str, Any]]:
    """(file:place, row) of all files, in order."""
    before = 0
    for file in files:
        base = before
        watch = None if report is None else (lambda position, base=base: report(base + position))
        for where, row in read_rows(file, whole_text=whole_text, watch=watch):
            yield f"{file}:{where}", row
        before += file.stat().st_size


def _throttled(progress: Progress | None, total: int, examples: "array[int]") -> Callable[[int], None] | None:
    """Turn byte positions into `progress` calls: none in the first second, then five a second."""
    if progress is None:
        return None
    due = monotonic() + PROGRESS_AFTER

    def report(position: int) -> None:
        nonlocal due
        if monotonic() >= due:
            due = monotonic() + PROGRESS_EVERY
            progress(len(examples), min(position / total, 1.0))

    return report

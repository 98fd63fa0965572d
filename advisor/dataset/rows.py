"""One data file -> its rows, whatever the file kind. A row that cannot be parsed comes out as a RowError.

| suffix | rows | place in messages |
|---|---|---|
| .jsonl .ndjson | one JSON object a line; blank lines are passed over | file:line |
| .json | an array of objects, or {"data": [...]} | file:line (item N) |
| .csv .tsv | a header line, then one row each | file:row N (from 1, without the header) |
| .parquet | needs pyarrow | file:row N |
| .txt | documents: blank-line separated; without any blank line, one a line; in a folder, one a file | file:line |
All but .parquet may be compressed (.gz).
"""

import csv
import json
import re
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

from advisor.dataset.lines import MAX_ROW_BYTES, Watch, read_lines, read_text
from profiles.errors import AdviseError, InvalidInputError

Rows = Iterator[tuple[str, Any]]  # the place in the file, the row or a RowError

_SPACE = re.compile(r"[ \t\r\n]*")
_PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n\s*")
_NESTED = ("messages", "conversations", "history", "chosen", "rejected", "prompt", "completion")


class RowError(ValueError):
    """What is wrong with one row; the reader adds the place."""


def kind_of(path: Path) -> str | None:
    """The suffix that decides how a file is read ('.jsonl'), or None if it is not data."""
    name = path.name.lower().removesuffix(".gz")
    suffix = Path(name).suffix
    if suffix == ".parquet" and path.suffix.lower() == ".gz":
        return None
    return suffix if suffix in READERS else None


def read_rows(path: Path, *, whole_text: bool = False, watch: Watch | None = None) -> Rows:
    """Yield (place, row or RowError). `whole_text`: a .txt file is one document.

    Raises InvalidInputError where the file as a whole cannot be read.
    """
    kind = kind_of(path)
    assert kind is not None
    if kind == ".txt" and whole_text:
        yield "1", {"text": read_text(path, watch)}
        return
    yield from READERS[kind](path, watch)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, refusing a key that stands twice (json.loads would keep the last in silence)."""
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RowError(f"the key {twice!r} stands twice in one object")
    return row


def _refuse_constant(name: str) -> None:
    raise RowError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse_constant)


def _parse(text: str, start: int = 0) -> tuple[Any, int]:
    """One JSON value and where it ends. Raises RowError."""
    try:
        return _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
            raise RowError(r"the JSON is cut off (inside a text, a line break is written \n)") from None
        at = f"column {error.colno}" if error.lineno == 1 else f"line {error.lineno}, column {error.colno}"
        raise RowError(f"not valid JSON: {error.msg} at {at}") from None
    except RecursionError:
        raise RowError("the JSON is nested too deeply") from None
    except ValueError as error:
        raise error if isinstance(error, RowError) else RowError(f"not valid JSON: {error}") from None


def _read_jsonl(path: Path, watch: Watch | None) -> Rows:
    for number, line in read_lines(path, watch):
        text = line.strip()
        if not text:
            continue
        if number == 1 and text == "[":
            raise InvalidInputError(str(path), "holds a JSON array, not one object a line", "Rename it to end in .json")
        try:
            row, end = _parse(text)
            if end != len(text):
                raise RowError(f"more text after the JSON value (column {end + 1}); one object a line is expected")
        except RowError as error:
            yield str(number), error
        else:
            yield str(number), row


def _read_json(path: Path, watch: Watch | None) -> Rows:
    text = read_text(path)
    start = _skip_space(text, 0)
    if text[start : start + 1] == "{":
        yield from _read_json_object(path, text, start)
    elif text[start : start + 1] == "[":
        yield from _read_json_array(path, text, start, watch)
    elif text.strip():
        raise InvalidInputError(str(path), 'is neither a JSON array nor {"data": [...]}')


def _read_json_object(path: Path, text: str, start: int) -> Rows:
    try:
        value, end = _parse(text, start)
    except RowError as error:
        raise InvalidInputError(str(path), str(error)) from None
    if text[_skip_space(text, end) :]:
        raise InvalidInputError(
            str(path), "holds several JSON values one after the other", "Rename it to end in .jsonl"
        )
    if not isinstance(value.get("data"), list):
        raise InvalidInputError(
            str(path),
            f"is one JSON object with the keys {', '.join(list(value)[:8]) or '(none)'}",
            'Expected an array of examples, or {"data": [...]}.',
        )
    yield from ((f"item {item}", row) for item, row in enumerate(value["data"], 1))


def _read_json_array(path: Path, text: str, start: int, watch: Watch | None) -> Rows:
    position, line, counted = start + 1, 1, 0
    after_comma = False
    for item in count(1):
        position = _skip_space(text, position)
        line += text.count("\n", counted, position)
        counted = position
        if text[position : position + 1] == "]" and not after_comma:
            break
        try:
            row, position = _parse(text, position)
            delimiter = _skip_space(text, position)
            if (mark := text[delimiter : delimiter + 1]) not in ("]", ","):
                raise RowError("the file is cut off inside the array" if not mark else "a comma is missing")
        except RowError as error:  # nothing after a syntax error can be trusted to be where it seems
            raise InvalidInputError(f"{path}:{line} (item {item})", str(error)) from None
        yield f"{line} (item {item})", row
        if watch is not None and not item % 256:
            watch(path.stat().st_size * position // len(text))
        position, after_comma = delimiter + (mark == ","), mark == ","
    if text[_skip_space(text, position + 1) :]:
        raise InvalidInputError(f"{path}:{line}", "more text after the end of the JSON array")


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _read_csv(path: Path, watch: Watch | None) -> Rows:
    csv.field_size_limit(MAX_ROW_BYTES)  # the module's own limit, 131072, is shorter than real documents
    delimiter = "\t" if kind_of(path) == ".tsv" else ","
    reader = csv.reader((line for _, line in read_lines(path, watch)), delimiter=delimiter, strict=True)
    number = 0
    try:
        header = next((row for row in reader if row), [])
        _check_header(path, header, delimiter)
        for number, cells in enumerate(filter(None, reader), 1):
            if len(cells) != len(header):
                yield f"row {number}", RowError(f"{len(cells)} cells, the header has {len(header)}")
            else:
                try:
                    yield f"row {number}", {key: _nested(key, cell) for key, cell in zip(header, cells, strict=True)}
                except RowError as error:
                    yield f"row {number}", error
    except csv.Error as error:
        raise InvalidInputError(
            f"{path}:row {number + 1}", f"broken quoting ({error})", "Quote cells that hold quotes or line breaks."
        ) from None


def _check_header(path: Path, header: list[str], delimiter: str) -> None:
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise InvalidInputError(str(path), f"the header names {', '.join(map(repr, twice))} twice")
    if len(header) == 1 and any(mark in header[0] for mark in ",;\t|"):
        raise InvalidInputError(
            str(path), f"the header is one cell: {header[0][:80]!r}; cells must be separated by {delimiter!r}"
        )


def _nested(key: str, cell: str) -> Any:
    """A cell that must hold a list (of messages) does so as JSON text."""
    if key in _NESTED and cell.startswith("[{"):
        value, _ = _parse(cell)
        return value
    return cell


def _read_parquet(path: Path, watch: Watch | None) -> Rows:
    try:
        import pyarrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise AdviseError(
            "missing-package", f"{path}: reading parquet needs pyarrow", "Install it: pip install 'ftadvise[data]'"
        ) from None
    try:
        with parquet.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if len(set(names)) != len(names):
                raise InvalidInputError(str(path), f"two columns have the same name: {', '.join(names)}")
            number = 0
            for batch in file.iter_batches(batch_size=1000):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", row
                if watch is not None:
                    watch(path.stat().st_size * number // file.metadata.num_rows)
    except pyarrow.ArrowException as error:
        raise InvalidInputError(str(path), f"is not readable parquet: {str(error).splitlines()[0]}") from None


def _read_txt(path: Path, watch: Watch | None) -> Rows:
    text = read_text(path, watch)
    separator = _PARAGRAPH_END if _PARAGRAPH_END.search(text.strip()) else re.compile(r"\n")
    start, line = 0, 1
    for match in separator.finditer(text):
        yield str(line), {"text": text[start : match.start()]}
        line += text.count("\n", start, match.end())
        start = match.end()
    if start < len(text):
        yield str(line), {"text": text[start:]}


READERS: dict[str, Callable[[Path, Watch | None], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_txt,
}

"""Options and files -> records, with errors that name the option (or the line) instead of pydantic's."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from profiles.errors import InvalidInputError
from profiles.record import Record
from profiles.units import MIB

RecordT = TypeVar("RecordT", bound=Record)
MAX_PLAN_BYTES = 4 * MIB


def build_record(kind: type[RecordT], fields: dict[str, Any], name: Callable[[str], str]) -> RecordT:
    """Validate `fields`; `name` turns a field into what the user typed.

    Raises:
        InvalidInputError: the first wrong field, its value, and what it should be.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "extra_forbidden":
            hint = f"Fields: {', '.join(kind.model_fields)}."
            raise InvalidInputError(name(field), "there is no such field", hint) from None
        problem = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
        value = f"{_shown(first['input'])} " if field and first["type"] != "missing" else ""
        raise InvalidInputError(name(field) if field else kind.__name__.lower(), f"{value}{problem}") from None


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        InvalidInputError: it is none; with the place of the mistake.
    """
    try:
        data = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        said = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise InvalidInputError(
            where, f"is not JSON: {said}", "`ftadvise schema plan` shows what is expected."
        ) from None
    if not isinstance(data, dict):
        raise InvalidInputError(where, f"holds {_shown(data)}, not a JSON object")
    return data


def read_text(path: str) -> str:
    """The text of a file, or of standard input for `-`.

    Raises:
        InvalidInputError: it cannot be read, is no text, or is far too large.
    """
    import sys

    try:
        raw = sys.stdin.buffer.read(MAX_PLAN_BYTES + 1) if path == "-" else _read_bytes(Path(path))
        if len(raw) > MAX_PLAN_BYTES:
            raise InvalidInputError(path, f"is larger than {MAX_PLAN_BYTES} bytes", "Many plans go through --jsonl.")
        return raw.decode("utf-8-sig")
    except OSError as error:
        raise InvalidInputError(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise InvalidInputError(path, "is not text in UTF-8") from None


def _read_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MAX_PLAN_BYTES + 1)


def _refuse(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."

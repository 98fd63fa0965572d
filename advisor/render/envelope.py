"""The envelope of every JSON answer: `{"schema": ..., "command": ..., "answer": ... | "error": ...}`."""

import json
from collections.abc import Sequence
from typing import Any

from profiles.errors import AdviseError
from profiles.record import Record

SCHEMA = "ftadvise/1"


def answer_envelope(command: str, answer: Record | Sequence[Record] | dict[str, Any], *, indent: int | None = 2) -> str:
    """JSON text of an answer."""
    return _dump({"schema": SCHEMA, "command": command, "answer": _plain(answer)}, indent)


def error_envelope(command: str, error: AdviseError, *, indent: int | None = 2) -> str:
    """JSON text of an error."""
    return _dump({"schema": SCHEMA, "command": command, "error": error.to_dict()}, indent)


def _plain(answer: Record | Sequence[Record] | dict[str, Any]) -> Any:
    if isinstance(answer, Record):
        return answer.model_dump(mode="json")
    return answer if isinstance(answer, dict) else [record.model_dump(mode="json") for record in answer]


def _dump(content: dict[str, Any], indent: int | None) -> str:
    return json.dumps(content, indent=indent, ensure_ascii=False)

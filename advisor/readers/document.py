"""Document: the keys of a file, taken one by one with their types; in the end it tells which were never asked for."""

import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from advisor.readers.base import Finding, KeyNote, Kind, shown
from profiles.config_keys import KeyTable
from profiles.errors import InvalidInputError

WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
NEAR = 0.8  # share of letters in common from which an unknown key is taken for a slip
STRATEGIES = ("no", "steps", "epoch", "best")


class Document:
    """`content` by key, against the release's `table`. `name`: stands before each key ("get_peft_model.").

    converts_text: the platform turns "2e-4" in quotes into a number. refuses_unknown: it stops at unknown keys.
    computed: keys whose values only running the script would tell, with the code.
    """

    def __init__(
        self,
        content: Mapping[str, Any],
        table: KeyTable,
        *,
        name: str = "",
        converts_text: bool = True,
        refuses_unknown: bool = True,
        computed: Mapping[str, str] | None = None,
    ) -> None:
        self.content, self.table, self.name = content, table, name
        self.converts_text, self.refuses_unknown = converts_text, refuses_unknown
        self.computed = computed or {}
        self.findings: list[Finding] = []
        self._read: set[str] = set()
        self._unjudged: dict[str, str] = {}

    def __contains__(self, key: str) -> bool:
        return self.content.get(key) is not None

    def get(self, key: str) -> Any:
        """The value as it is, None where the key is absent or empty."""
        self._read.add(key)
        return self.content.get(key)

    def text(self, key: str, default: str = "") -> str:
        """A word.

        Raises:
            InvalidInputError: it is none.
        """
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, str):
            raise self.refusal(key, "is no text")
        return value.strip()

    def number(self, key: str, default: float) -> float:
        """A finite number; text that is one counts.

        Raises:
            InvalidInputError: it is none.
        """
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            if not self.converts_text:
                text = f"{shown(value)} is text and stays text: {self.table.release} takes no number from it"
                self.error(key, text, f"{key}: {value.strip()} without quotes")
            try:
                value = float(value)
            except ValueError:
                raise self.refusal(key, "is no number") from None
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refusal(key, "is no number")
        try:
            number = float(value)
        except OverflowError:
            raise self.refusal(key, "is too large") from None
        if not math.isfinite(number):
            raise self.refusal(key, "is no finite number")
        return number

    def integer(self, key: str, default: int) -> int:
        """A whole number.

        Raises:
            InvalidInputError: it is none.
        """
        number = self.number(key, float(default))
        if not number.is_integer():
            raise self.refusal(key, "is no whole number")
        return int(number)

    def flag(self, key: str, default: bool = False) -> bool:
        """Yes or no, also in words.

        Raises:
            InvalidInputError: it is neither.
        """
        value = self.get(key)
        if value is None:
            return default
        if isinstance(value, str):
            value = WORDS.get(value.strip().lower())
        if value not in (True, False, 0, 1):
            raise self.refusal(key, "is neither true nor false")
        return bool(value)

    def names(self, key: str) -> tuple[str, ...]:
        """Names: a list, or text with commas.

        Raises:
            InvalidInputError: it is neither.
        """
        value = self.get(key)
        if value is None:
            return ()
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
            raise self.refusal(key, "is no list of names")
        return tuple(part.strip() for part in parts if part.strip())

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A mapping; empty where there is none.

        Raises:
            InvalidInputError: it is something else.
        """
        value = self.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.refusal(key, "is no mapping")
        return value

    def strategy(self, key: str) -> str:
        """When to evaluate or save. A bare `no` is False in YAML, which every platform refuses."""
        value = self.get(key)
        if value is False:
            self.error(key, "a bare no means false in YAML, which is no strategy", f'{key}: "no"')
            return "no"
        if value is not None and value not in STRATEGIES:
            self.error(key, f"{shown(value)} is no strategy", f"{key}: one of {', '.join(STRATEGIES)}")
        return str(value) if value is not None else ""

    def error(self, key: str, text: str, fix: str = "") -> None:
        """Record what the platform refuses."""
        self.findings.append(Finding(level="error", key=f"{self.name}{key}", text=text, fix=fix))

    def warn(self, key: str, text: str, fix: str = "") -> None:
        """Record what is worth a second look."""
        self.findings.append(Finding(level="warning", key=f"{self.name}{key}", text=text, fix=fix))

    def leave(self, key: str, reason: str) -> None:
        """Say that a key, though it was asked for, could not be judged."""
        self._unjudged[key] = reason

    def refusal(self, key: str, problem: str) -> InvalidInputError:
        """The error for a key's value."""
        return InvalidInputError(f"{self.name}{key}", f"{shown(self.content.get(key))} {problem}")

    def void(self) -> str:
        """Why no estimate would mean anything: the first key that says so, or nothing."""
        for key, reason in self.table.void.items():
            if key in self.content and not _is_off(key, self.content[key]):
                return f"{self.name}{key}: {reason}"
        return ""

    def notes(self) -> tuple[KeyNote, ...]:
        """What became of each key, in the file's order; unknown and removed ones are found here too."""
        return tuple(self._note(key) for key in dict.fromkeys((*self.content, *self.computed, *self._unjudged)))

    def close(self) -> tuple[Finding, ...]:
        """All findings, those about unknown and removed keys last."""
        for key in self.content:
            if key in self.table.removed:
                if not self.refuses_unknown and _is_off(key, self.content[key]):
                    continue
                self.error(key, f"{self.table.release} does not take this key", self.table.removed[key])
            elif self._note(key).kind == "unknown":
                said = f"{self.table.release} knows no such key"
                if self.refuses_unknown:
                    self.error(key, f"{said} and stops", self._near(key))
                else:
                    self.warn(key, f"{said}: without a plugin that does, it has no effect", self._near(key))
        return tuple(self.findings)

    def _near(self, key: str) -> str:
        """The key that was probably meant, or nothing."""
        known = (*self.table.read, *self.table.harmless, *self.table.unjudged)
        return next(iter(get_close_matches(key, known, n=1, cutoff=NEAR)), "")

    def _note(self, key: str) -> KeyNote:
        name, table = f"{self.name}{key}", self.table
        if key in self.computed:
            reason = f"{self.computed[key]} is computed by the script: the platform's default is taken"
            return KeyNote(key=name, kind="not judged", text=reason)
        if key in self._unjudged:
            return KeyNote(key=name, kind="not judged", text=self._unjudged[key])
        kinds: tuple[tuple[Kind, dict[str, str]], ...] = (("void", table.void), ("not judged", table.unjudged))
        for kind, reasons in kinds:
            if key in reasons:
                if _is_off(key, self.content[key]):
                    return KeyNote(key=name, kind="harmless")
                return KeyNote(key=name, kind=kind, text=reasons[key])
        if key in self._read and key not in table.removed:
            return KeyNote(key=name, kind="read")
        if key in table.harmless or key in table.read:  # read, but without a meaning beside the file's other keys
            return KeyNote(key=name, kind="harmless")
        return KeyNote(key=name, kind="unknown")


def _is_off(key: str, value: Any) -> bool:
    """A value that turns its key off: nothing, none, false, zero; of a degree of parallelism also one."""
    if key.endswith(("_size", "_degree")) and value == 1:
        return True
    return (
        value is None
        or value is False
        or (isinstance(value, int | float) and value == 0)
        or value in ("", "none", [], {})
    )

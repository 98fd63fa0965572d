"""Quality evidence: ordinal tiers with their sources, never a score (quality cannot be told from a configuration).

In the data the first row that names the method (or quantization), the model kind and the task counts; a row that
names no kinds or tasks holds for all.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from profiles.errors import UnknownNameError
from profiles.record import Record
from profiles.source import Source

DATA = Path(__file__).parent / "data" / "quality.json"


class Evidence(Record):
    """What was found for some methods or quantizations; `tier` 1 (as good as the best known) to 5 (loses much)."""

    id: str
    methods: tuple[str, ...] = ()
    quantizations: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    tier: int = Field(ge=1, le=5)
    finding: str
    sources: tuple[Source, ...] = Field(min_length=1)


class Quality(Record):
    """The evidence on a method and on the storage of its base; the tier is the worse of the two."""

    method: Evidence
    storage: Evidence

    @property
    def tier(self) -> int:
        """1 (as good as the best known for this task) to 5."""
        return max(self.method.tier, self.storage.tier)

    @property
    def deciding(self) -> Evidence:
        """The evidence that sets the tier."""
        return self.storage if self.storage.tier > self.method.tier else self.method


@cache
def _rows() -> dict[str, tuple[Evidence, ...]]:
    data: dict[str, list[dict[str, Any]]] = json.loads(DATA.read_text(encoding="utf-8"))
    return {section: tuple(Evidence.model_validate(row) for row in rows) for section, rows in data.items()}


@cache
def find_quality(method: str, quantization: str, *, kind: str, task: str) -> Quality:
    """Return the evidence for `method` over a base stored as `quantization`, for a model `kind` and a `task`.

    Raises:
        UnknownNameError: no row speaks of that method or quantization.
    """
    return Quality(
        method=_first("methods", method, kind=kind, task=task),
        storage=_first("quantizations", quantization, kind=kind, task=task),
    )


def _first(section: str, name: str, *, kind: str, task: str) -> Evidence:
    for row in _rows()[section]:
        named = name in row.methods or name in row.quantizations
        if named and (not row.kinds or kind in row.kinds) and (not row.tasks or task in row.tasks):
            return row
    raise UnknownNameError(section.removesuffix("s"), name, (), "It needs a row in profiles/data/quality.json.")

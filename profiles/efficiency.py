"""Efficiencies: how much of a published peak real training reaches. Rows of `data/efficiency.json`."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from profiles.record import Record, parse_record
from profiles.source import Source

PATH = Path(__file__).parent / "data" / "efficiency.json"


class Efficiency(Record):
    """One constant of the speed model. `gpus`: the cards that it holds for; empty for all.

    Fitted rows say to how many runs (`n`), on which hardware and versions, and the relative residual they left
    (median). Published rows carry their source.
    """

    id: str
    value: PositiveFloat
    unit: str
    meaning: str
    basis: Literal["fitted", "published"]
    gpus: tuple[str, ...] = ()
    n: int = Field(0, ge=0)
    residual: NonNegativeFloat | None = None
    hardware: str = ""
    versions: str = ""
    date: str
    source: Source | None = None


@cache
def load_efficiencies() -> Mapping[str, Efficiency]:
    """All rows by id. Raises InvalidInputError if the file is broken."""
    content = json.loads(PATH.read_text(encoding="utf-8"))
    return MappingProxyType(
        {row["id"]: parse_record(Efficiency, row, f"efficiency.json: {row['id']}") for row in content["rows"]}
    )

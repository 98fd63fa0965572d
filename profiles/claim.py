"""Claim: one statement of the published comparison, with what is found of it today.

A column's verdict is either read (`judged`, with sources) or reckoned: our figures against the range that was stated.
The rows on method support (M) stand in platforms.json; `advisor/claims.py` puts all together.
"""

import json
from functools import cache
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from profiles.record import Record
from profiles.source import Source

DATA = Path(__file__).parent / "data" / "claims.json"
Verdict = Literal["holds", "holds in part", "does not hold", "not checkable"]


class Claim(Record):
    """A row of the comparison. `stated`: its words by column (a platform, or a quantity).

    ranges: what the words say in numbers, (low, high), for columns that are reckoned. judged: the verdict on the
    others. An unstated cell ('-') has neither.
    """

    id: str
    title: str
    stated: dict[str, str] = Field(min_length=1)
    ranges: dict[str, tuple[float, float]] = Field(default_factory=dict)
    judged: dict[str, Verdict] = Field(default_factory=dict)
    finding: str
    sources: tuple[Source, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _one_verdict_a_column(self) -> Self:
        both, either = self.ranges.keys() & self.judged.keys(), self.ranges.keys() | self.judged.keys()
        if both or either != self.stated.keys():
            raise ValueError(f"{self.id}: each stated column needs a range or a verdict, and not both")
        return self


@cache
def load_claims() -> dict[str, Claim]:
    """The rows P, R and H by id, in the order of the comparison."""
    content = json.loads(DATA.read_text(encoding="utf-8"))
    sources = {name: Source.model_validate(source) for name, source in content["sources"].items()}
    read = [
        Claim.model_validate({**row, "sources": [sources[name] for name in row["sources"]]}) for row in content["rows"]
    ]
    return {claim.id: claim for claim in read}

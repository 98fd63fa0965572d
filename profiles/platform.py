"""PlatformSpec: what a fine-tuning platform supports, as it is said of it and as its sources and runs show.

Recommendations use the verified column only. The data were read on 2026-11-24 in the packages of the named releases.
What ran is of two kinds: a few steps on a CPU, and on 2026-11-29 on one H200 (rows in tests/measured/ours.jsonl: random
weights, 6 steps, torch 2.11.0, all else in the named releases).
"""

import json
from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from profiles.record import Record
from profiles.source import Source

DATA = Path(__file__).parent / "data" / "platforms.json"
Level = Literal["native", "script", "no"]
Place = Literal["gpu", "cpu"]


class Support(Record):
    """One cell of the support matrix.

    claim: the published comparison's word (None: it says nothing). verified: a key or flag of its own ("native"), a
    short script over its parts ("script"), or "no". ran: where a run of it ended well, the GPU before the CPU; None:
    nowhere.
    """

    claim: str | None = None
    verified: Level
    evidence: str
    ran: Place | None = None


class PlatformSpec(Record):
    """One platform release. `ease` and `maturity` are ranks for ordering (1 is easiest, most mature), with reasons.

    emitted_tasks: what `advisor/emit/` writes projects for. ran_together: where several processes trained one model.
    pace: what our own runs say of its speed.
    """

    id: str
    name: str
    version: str
    versions: dict[str, str]
    licence: str
    interface: Literal["low-code", "code"]
    ease: int = Field(ge=1, le=3)
    ease_reason: str
    maturity: int = Field(ge=1, le=3)
    maturity_reason: str
    needs_gpu: bool = False
    ran_together: Place | None = None
    pace: str | None = None
    vendors: tuple[str, ...]
    emitted_tasks: tuple[str, ...]
    methods: dict[str, Support]
    quantizations: dict[str, Support]
    tasks: dict[str, Support]
    source: Source


@cache
def load_platforms() -> dict[str, PlatformSpec]:
    """All platforms by id, in the order of the file."""
    rows = json.loads(DATA.read_text(encoding="utf-8"))
    return {row["id"]: PlatformSpec.model_validate(row) for row in rows}

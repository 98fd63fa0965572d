"""PlatformSpec: what a fine-tuning platform supports, as it is said of it and as its sources and runs show.

Recommendations use the verified column only. The data were read on 2026-11-24 in the packages of the named releases,
on a machine without a GPU: `ran` means a 20-step run on its CPU.
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


class Support(Record):
    """One cell of the support matrix.

    claim: the published comparison's word (None: it says nothing). verified: a key or flag of its own ("native"), a
    short script over its parts ("script"), or "no". ran: a run of this method ended well, on a CPU, when it was read.
    """

    claim: str | None = None
    verified: Level
    evidence: str
    ran: bool = False


class PlatformSpec(Record):
    """One platform release. `ease` and `maturity` are ranks for ordering (1 is easiest, most mature), with reasons.

    emitted_tasks: what `advisor/emit/` writes projects for.
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

"""KeyTable: what each key of a training platform's configuration means to memory and speed.

Keys that are translated into a plan stand in the readers' code; here stand all others of a release.
"""

import json
from functools import cache
from pathlib import Path

from profiles.record import Record
from profiles.source import Source

DATA = Path(__file__).parent / "data" / "config_keys.json"


class KeyTable(Record):
    """The keys of one release that are not translated.

    harmless: change neither memory nor speed of a step. unjudged: do, in a way that is not modelled (the value is the
    reason), but leave the estimate a meaning. void: leave it none. removed: refused by this release; the value is what
    to write instead. includes: tables whose keys count as this one's.
    """

    id: str
    release: str
    includes: tuple[str, ...] = ()
    source: Source
    harmless: frozenset[str]
    unjudged: dict[str, str]
    void: dict[str, str]
    removed: dict[str, str]


@cache
def load_key_tables() -> dict[str, KeyTable]:
    """All tables by id, each with the keys of those that it includes."""
    tables: dict[str, KeyTable] = {}
    for row in json.loads(DATA.read_text(encoding="utf-8")):
        table = KeyTable.model_validate(row)
        for other in (tables[name] for name in table.includes):
            table = table.replace(
                harmless=table.harmless | other.harmless,
                unjudged={**other.unjudged, **table.unjudged},
                void={**other.void, **table.void},
            )
        tables[table.id] = table
    return tables

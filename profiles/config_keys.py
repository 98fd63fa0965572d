"""KeyTable: what each key of a training platform's configuration means to memory and speed."""

import json
from functools import cache
from pathlib import Path

from profiles.record import Record
from profiles.source import Source

DATA = Path(__file__).parent / "data" / "config_keys.json"


class KeyTable(Record):
    """The keys of one release, each in one place.

    read: translated into a plan, by the reader of this name. harmless: change neither memory nor speed of a step.
    unjudged: do, in a way that is not modelled (the value is the reason), but leave the estimate a meaning. void: leave
    it none. removed: refused by this release; the value is what to write instead. includes: tables whose keys count as
    this one's, where it says nothing of them itself.
    """

    id: str
    release: str
    includes: tuple[str, ...] = ()
    source: Source
    read: frozenset[str]
    harmless: frozenset[str]
    unjudged: dict[str, str]
    void: dict[str, str]
    removed: dict[str, str]

    @property
    def keys(self) -> frozenset[str]:
        """All of them."""
        return frozenset((*self.read, *self.harmless, *self.unjudged, *self.void, *self.removed))

    def with_keys_of(self, other: "KeyTable") -> "KeyTable":
        """This table, and what another says of keys that this one does not name."""

        def new(reasons: dict[str, str]) -> dict[str, str]:
            return {key: reason for key, reason in reasons.items() if key not in self.keys}

        return self.replace(
            read=self.read | (other.read - self.keys),
            harmless=self.harmless | (other.harmless - self.keys),
            unjudged=self.unjudged | new(other.unjudged),
            void=self.void | new(other.void),
        )


@cache
def load_key_tables() -> dict[str, KeyTable]:
    """All tables by id, each with the keys of those that it includes."""
    tables: dict[str, KeyTable] = {}
    for row in json.loads(DATA.read_text(encoding="utf-8")):
        table = KeyTable.model_validate(row)
        for name in table.includes:
            table = table.with_keys_of(tables[name])
        tables[table.id] = table
    return tables

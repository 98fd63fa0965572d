"""Where a fact comes from: every catalogue row carries one."""

from profiles.record import Record


class Source(Record):
    """A citation: `url` or a paper's name, the day it was read (ISO), and what it does not say."""

    url: str
    date: str
    note: str = ""

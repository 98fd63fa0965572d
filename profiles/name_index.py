"""Names that people type -> ids: insensitive to case, spaces and punctuation, exact otherwise (never substrings)."""

import difflib
import re
from collections.abc import Iterable, Mapping

from profiles.errors import UnknownNameError

_SEPARATORS = re.compile(r"[^a-z0-9]+")


def normalize_name(name: str) -> str:
    """'RTX 4090' and 'rtx-4090' -> 'rtx4090'.

    Between two digits the separator stays ('.' or '-'), so that Qwen2.5-7B ('qwen2.5-7b') is not Qwen2-57B.
    """
    text = name.casefold().strip()

    def keep(match: re.Match[str]) -> str:
        around = text[match.start() - 1 : match.start()] + text[match.end() : match.end() + 1]
        if len(around) == 2 and around.isdigit():
            return "." if match.group() == "." else "-"
        return ""

    return _SEPARATORS.sub(keep, text)


class NameIndex:
    """Every name of every row, each belonging to one row only."""

    def __init__(self, kind: str, names: Mapping[str, Iterable[str]], listing: str) -> None:
        """`names`: id -> its other names. Raises ValueError where two rows claim one name."""
        self.kind = kind
        self.listing = listing
        self._ids: dict[str, str] = {}
        for row_id, aliases in names.items():
            for name in (row_id, *aliases):
                owner = self._ids.setdefault(normalize_name(name), row_id)
                if owner != row_id:
                    raise ValueError(f"{kind} name {name!r} belongs to both {owner!r} and {row_id!r}")

    def __len__(self) -> int:
        return len(self._ids)

    def get(self, name: str) -> str | None:
        """The id that `name` stands for, or None."""
        return self._ids.get(normalize_name(name))

    def find(self, name: str) -> str:
        """The id that `name` stands for. Raises UnknownNameError, which suggests near names."""
        row_id = self.get(name)
        if row_id is None:
            raise UnknownNameError(self.kind, name, self.suggest(name), self.listing)
        return row_id

    def suggest(self, name: str, n: int = 3) -> tuple[str, ...]:
        """Ids whose names are near `name`, nearest first."""
        near = difflib.get_close_matches(normalize_name(name), self._ids, n=4 * n, cutoff=0.6)
        return tuple(dict.fromkeys(self._ids[key] for key in near))[:n]

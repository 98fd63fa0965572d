"""Tokens a character, by script: the assumption that stands in where a model's tokenizer is not at hand."""

from functools import cache
from importlib.resources import files

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter

from profiles.record import Record


class TokenDensity(Record):
    """Tokens that one character of `ranges` (hexadecimal code points, "0400-052F") costs, fitted.

    `residual` is the largest relative error over `corpora` texts collections (`n` texts) and all `tokenizers`;
    `fitted_to` are those of them that the value was fitted to.
    """

    script: str
    ranges: tuple[str, ...]
    tokens_per_character: PositiveFloat
    residual: PositiveFloat
    n: PositiveInt
    corpora: tuple[str, ...] = Field(min_length=1)
    tokenizers: tuple[str, ...] = Field(min_length=1)
    fitted_to: tuple[str, ...] = Field(min_length=1)
    date: str

    def bounds(self) -> tuple[tuple[int, int], ...]:
        """First and last code point of each range."""
        pairs = ((r.partition("-")[0], r.rpartition("-")[2]) for r in self.ranges)
        return tuple((int(a, 16), int(b, 16)) for a, b in pairs)


OTHER = "other"  # the row without ranges, for characters of no other row


@cache
def load_token_densities() -> tuple[TokenDensity, ...]:
    """All rows of data/token_densities.json."""
    text = (files("profiles") / "data" / "token_densities.json").read_text(encoding="utf-8")
    return TypeAdapter(tuple[TokenDensity, ...]).validate_json(text)


@cache
def density_of(character: str) -> TokenDensity:
    """The row of one character."""
    code = ord(character)
    rows = load_token_densities()
    return next(
        (row for row in rows if any(a <= code <= b for a, b in row.bounds())),
        next(row for row in rows if row.script == OTHER),
    )

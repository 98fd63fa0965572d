"""A number with what is not known about it."""

from typing import Self

from pydantic import model_validator

from profiles.record import Record


class Interval(Record):
    """`expected`, between `low` and `high` with probability `level`. Same unit for all three, named by the field."""

    low: float
    expected: float
    high: float
    level: float = 0.9

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not self.low <= self.expected <= self.high:
            raise ValueError(f"interval out of order: {self.low} <= {self.expected} <= {self.high} does not hold")
        return self

    @classmethod
    def around(cls, expected: float, below: float, above: float, level: float = 0.9) -> Self:
        """From relative margins: `below` 0.02 and `above` 0.05 mean -2 % .. +5 %."""
        return cls(low=expected * (1 - below), expected=expected, high=expected * (1 + above), level=level)

    def scaled(self, factor: float) -> "Interval":
        """All three times a positive factor."""
        return Interval(
            low=self.low * factor, expected=self.expected * factor, high=self.high * factor, level=self.level
        )

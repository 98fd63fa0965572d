"""DatasetFacts: what a plan needs to know of the training data, above all how long its examples are.

A LengthDistribution keeps a few points of the quantile function instead of all lengths. Everything that a planner
asks (what truncation loses, how far a batch is padded, how well packing fills) is an integral of that curve.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate, pairwise
from typing import Literal, Self

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt, model_validator

from profiles.plan import Task
from profiles.record import Record

Form = Literal["messages", "prompt-completion", "text", "preference", "unpaired-preference", "classification", "prompt"]
# What the rows of each task may be, on any platform (TRL 1.16 and LLaMA-Factory 0.9.5 documentation of data formats)
TASK_FORMS: dict[Task, tuple[Form, ...]] = {
    "sft": ("prompt-completion", "messages", "text"),
    "pretrain": ("text",),
    "classification": ("classification",),
    "dpo": ("preference",),
    "orpo": ("preference",),
    "kto": ("unpaired-preference",),
    "reward": ("preference",),
    "grpo": ("prompt-completion", "prompt"),
}

# Dense at the top, where truncation and padding are decided.
LEVELS = (0.01, 0.05, 0.1, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 0.9999)

# transformers 5.23 trainer_pt_utils.get_length_grouped_indices: sorts within 50 batches, not over the whole dataset.
GROUPED_BATCHES = 50

# trl 1.16 pack_dataset packs inside datasets.map(batched=True), whose default batch is 1000 examples.
PACKED_TOGETHER = 1000


class Truncation(Record):
    """What cutting every example to `seq_len` costs: shares (0 to 1) of all tokens lost and of examples cut."""

    tokens_lost: float = Field(ge=0, le=1)
    examples_cut: float = Field(ge=0, le=1)


@dataclass(frozen=True)
class _Curve:
    """A non-decreasing, piecewise linear quantile function: pieces (p0, p1, length at p0, length at p1)."""

    pieces: tuple[tuple[float, float, float, float], ...]

    @cached_property
    def _areas(self) -> list[float]:
        return list(accumulate(((p1 - p0) * (a + b) / 2 for p0, p1, a, b in self.pieces), initial=0.0))

    @cached_property
    def _starts(self) -> list[float]:
        return [p0 for p0, *_ in self.pieces]

    @property
    def mean(self) -> float:
        return self._areas[-1]

    def area(self, share: float) -> float:
        """Integral of the curve from 0 to `share`."""
        i = max(bisect_right(self._starts, share) - 1, 0)
        p0, p1, a, b = self.pieces[i]
        x = min(share, p1) - p0
        return self._areas[i] + x * (a + (b - a) * x / (p1 - p0) / 2)

    def stratum_mean(self, low: float, high: float) -> float:
        """Mean length between two quantile levels."""
        return (self.area(high) - self.area(low)) / (high - low)

    def expected_max(self, k: int) -> float:
        """Mean of the largest of k independent draws: the integral of Q(p) * k * p^(k-1) over 0..1."""
        total = 0.0
        for p0, p1, a, b in self.pieces:
            slope = (b - a) / (p1 - p0)
            total += b * p1**k - a * p0**k - slope * (p1 ** (k + 1) - p0 ** (k + 1)) / (k + 1)
        return total


class LengthDistribution(Record):
    """Tokens an example: points of the quantile function, linear between them, vertical where a level repeats.

    Minimum, maximum and mean are those of the `examples` that were measured; between two of `LEVELS` the curve is
    bent so that each part keeps its mean. `relative_uncertainty` is the error (0.1 = 10 %) that all lengths share
    because of how they were counted: 0 with the model's own tokenizer.
    """

    examples: PositiveInt
    levels: tuple[float, ...]
    lengths: tuple[NonNegativeFloat, ...]
    counted_by: str
    relative_uncertainty: NonNegativeFloat = 0.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.levels) != len(self.lengths) or len(self.levels) < 2:
            raise ValueError("levels and lengths need the same number of points, at least 2")
        if self.levels[0] != 0 or self.levels[-1] != 1:
            raise ValueError("levels must run from 0 to 1")
        for values in (self.levels, self.lengths):
            if any(a > b for a, b in pairwise(values)):
                raise ValueError("levels and lengths must not decrease")
        return self

    @classmethod
    def from_lengths(cls, lengths: Iterable[float], *, counted_by: str, relative_uncertainty: float = 0.0) -> Self:
        """Summarise `lengths` (tokens, any order, at least one)."""
        ordered = sorted(lengths)
        n = len(ordered)
        if not n:
            raise ValueError("a length distribution needs at least one length")
        cuts = sorted({0, n, *(round(level * n) for level in LEVELS)})
        points: list[tuple[float, float]] = []
        for i, j in pairwise(cuts):
            points += _segment(i / n, j / n, ordered[i], ordered[j - 1], sum(ordered[i:j]) / (j - i))
        return cls(
            examples=n,
            levels=tuple(p for p, _ in points),
            lengths=tuple(x for _, x in points),
            counted_by=counted_by,
            relative_uncertainty=relative_uncertainty,
        )

    def with_longest(self, length: float) -> Self:
        """The same distribution, known to reach `length`: a sample rarely holds the longest example."""
        if length <= self.max:
            return self
        return self.replace(levels=(*self.levels, 1.0), lengths=(*self.lengths, length))

    @cached_property
    def _curve(self) -> _Curve:
        return self._capped(self.lengths[-1])

    def _capped(self, cap: float) -> _Curve:
        """The curve of min(length, cap)."""
        pieces = []
        for (p0, a), (p1, b) in pairwise(zip(self.levels, self.lengths, strict=True)):
            if p1 <= p0:
                continue
            if a < cap < b:
                middle = p0 + (p1 - p0) * (cap - a) / (b - a)
                if p0 < middle < p1:
                    pieces += [(p0, middle, a, cap), (middle, p1, cap, cap)]
                    continue
            pieces.append((p0, p1, min(a, cap), min(b, cap)))
        return _Curve(tuple(pieces))

    @cached_property
    def mean(self) -> float:
        """Mean tokens an example, nothing cut."""
        return self._curve.mean

    @property
    def max(self) -> float:
        """The longest example, tokens."""
        return self.lengths[-1]

    def quantile(self, share: float) -> float:
        """The length that `share` (0 to 1) of the examples do not exceed."""
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie between 0 and 1, got {share}")
        if share == 1:
            return self.max
        i = bisect_left(self.levels, share)
        if self.levels[i] == share:
            return self.lengths[i]
        p0, p1, a, b = self.levels[i - 1], self.levels[i], self.lengths[i - 1], self.lengths[i]
        return a + (b - a) * (share - p0) / (p1 - p0)

    @property
    def p50(self) -> float:
        """Median tokens an example."""
        return self.quantile(0.5)

    @property
    def p90(self) -> float:
        """Tokens that 90 % of the examples do not exceed."""
        return self.quantile(0.9)

    @property
    def p99(self) -> float:
        """Tokens that 99 % of the examples do not exceed."""
        return self.quantile(0.99)

    def mean_len(self, seq_len: int) -> float:
        """Mean tokens an example when each is cut to `seq_len`."""
        return self._capped(seq_len).mean

    def truncated(self, seq_len: int) -> Truncation:
        """What cutting to `seq_len` loses."""
        kept = self.mean_len(seq_len) / self.mean if self.mean else 1.0
        within = 0.0
        for (p0, a), (p1, b) in pairwise(zip(self.levels, self.lengths, strict=True)):
            if b <= seq_len:
                within = p1
            elif a <= seq_len:
                within = p0 + (p1 - p0) * (seq_len - a) / (b - a)
        return Truncation(tokens_lost=min(max(1 - kept, 0), 1), examples_cut=min(max(1 - within, 0), 1))

    def padded_mean(self, seq_len: int, micro_batch_size: int, group_by_length: bool = False) -> float:
        """Mean padded tokens an example, when each batch is padded to its longest example (cut to `seq_len`).

        Random batches: the expected maximum of `micro_batch_size` independent draws. Grouped by length: the batch
        that holds the i-th slice of 50 sorted batches is as long as the slice's topmost member.
        """
        curve, k = self._capped(seq_len), micro_batch_size
        random = min(max(curve.expected_max(k), curve.mean), min(seq_len, self.max))
        if not group_by_length or k == 1:
            return random
        pool = GROUPED_BATCHES * k
        tops = [curve.stratum_mean((i * k - 1) / pool, i * k / pool) for i in range(1, GROUPED_BATCHES + 1)]
        return min(max(sum(tops) / GROUPED_BATCHES, curve.mean), random)

    def packing_efficiency(self, seq_len: int, examples: int = PACKED_TOGETHER) -> float:
        """Share of real tokens in rows of `seq_len` filled by best-fit-decreasing packing (TRL's "bfd").

        Longer examples are cut. `examples` are packed together (TRL: at most 1000 at a time), which is why rows
        that hold hundreds of short examples waste a visible part of their last row.
        """
        return _packing_efficiency(self._capped(seq_len), seq_len, min(examples, PACKED_TOGETHER))


def _segment(p0: float, p1: float, a: float, b: float, mean: float) -> list[tuple[float, float]]:
    """Points from (p0, a) to (p1, b) over a kink that gives the piece its true mean."""
    if a == b:
        return [(p0, a), (p1, b)]
    bend = 2 * (mean - a) / (b - a)  # 1 for a straight line, below for a curve that rises late
    kink = (p1 - (p1 - p0) * bend, a) if bend <= 1 else (p1 - (p1 - p0) * (bend - 1), b)
    return [(p0, a), (min(max(kink[0], p0), p1), kink[1]), (p1, b)]


@lru_cache(maxsize=256)  # milliseconds, asked again for every plan of one seq_len
def _packing_efficiency(curve: _Curve, seq_len: int, examples: int) -> float:
    lengths = [curve.stratum_mean(i / examples, (i + 1) / examples) for i in range(examples)]
    return min(sum(lengths) / (_count_rows(lengths[::-1], seq_len) * seq_len), 1.0)


def _count_rows(descending: Sequence[float], seq_len: int) -> int:
    """Rows that best-fit-decreasing opens for `descending` lengths, each at most `seq_len`."""
    spaces: list[float] = []
    rows = 0
    for length in descending:
        i = bisect_left(spaces, length)
        if i < len(spaces):
            space = spaces.pop(i)
        else:
            space, rows = float(seq_len), rows + 1
        insort(spaces, max(space - length, 0.0))
    return rows


class DatasetFacts(Record):
    """What was found in the data. `path` is as given; `form` what an example becomes when it is normalised.

    `characters` of all texts; `duplicates` examples equal to an earlier one; `empty` blank documents left out;
    `skipped` broken rows left out on request; `fingerprint` sha256 over the normalised examples in order, so that
    compression and spacing of the file do not change it. `complete` is False if only the first rows were read.
    """

    path: str
    format: str
    form: Form
    examples: PositiveInt
    characters: NonNegativeInt
    lengths: LengthDistribution
    duplicates: NonNegativeInt = 0
    empty: NonNegativeInt = 0
    skipped: NonNegativeInt = 0
    labels: PositiveInt | None = None  # different classes of a classification dataset
    ignored_columns: tuple[str, ...] = ()
    fingerprint: str
    complete: bool = True

    @property
    def tokens(self) -> float:
        """Tokens of all examples, nothing cut."""
        return self.examples * self.lengths.mean

"""The search inside a cell: the plan that gives up least, and of those the one that takes the least time (or money).

Exact: the same plan as by trying all of the product of the axes, which a property test does. Three orders, held by
property tests of the estimators, spare most of it. Memory rises with the micro-batch (while gradients are accumulated),
so the largest that fits is bisected; what stands on a card whatever is computed bounds its memory from below; and at
one micro-batch checkpointing only adds work, so it is timed only where the micro-batch does not fit without.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple

from advisor.axes import Axes, accumulation, micro_batches
from advisor.plans import Cell
from advisor.recommendation import Facts
from advisor.request import Request
from estimators.plan_figures import Body, Figures, Spread
from profiles.plan import Sharding


class Point(NamedTuple):
    """A plan of the space, as far as it is not the cell's draft."""

    body: Body
    spread: Spread
    micro_batch_size: int
    accumulation: int


class Trial(NamedTuple):
    """A plan that fits. cost: seconds of a token, times the cards where money comes first; 0 where it is not known."""

    cost: float
    point: Point


@dataclass(slots=True)
class Level:
    """The plans of one level that fit, and what was tried: the micro-batches of every body."""

    trials: list[Trial]
    sizes: tuple[int, ...]


@dataclass(slots=True)
class Effort:
    """How much of the space was worked out: plans settled, and figures that it took."""

    plans: int = 0
    peaks: int = 0
    times: int = 0


@dataclass(slots=True)
class Search:
    """Walks the levels of a cell, from the one that gives up least."""

    cell: Cell
    axes: Axes
    request: Request
    facts: Facts
    figures: Figures
    effort: Effort = field(default_factory=Effort)

    def levels(self) -> Iterator[Level]:
        """The levels at which anything fits."""
        for offload, seq_len, targets, rank, optimizer, sharding in self.axes.levels():
            level = Level([], ())
            for spread in self.spreads(optimizer=optimizer, sharding=sharding, offload=offload):
                fitting: dict[tuple[bool, str], set[int]] = {}
                for body in self.bodies(seq_len=seq_len, targets=targets, rank=rank):
                    self._try(body, spread, level, fitting.setdefault((body.packing, body.attention), set()))
            if level.trials:
                level.trials.sort(key=preference)
                yield level

    def spreads(self, *, optimizer: str, sharding: Sharding, offload: bool) -> Iterator[Spread]:
        """The numbers of cards over which this can be spread; one card has nothing to shard, and int8 is not."""
        for n in self.axes.n_gpus:
            kind: Sharding = "none" if n == 1 else sharding
            if n == 1 and sharding not in ("none", self.axes.shardings[0]):
                continue  # the same plan as with the first kind
            if (offload and kind != "fsdp2") or (kind == "fsdp2" and self.cell.quantization == "int8"):
                continue
            yield Spread(n_gpus=n, optimizer=optimizer, sharding=kind, offload=offload)

    def bodies(self, *, seq_len: int, targets: tuple[str, ...], rank: int) -> Iterator[Body]:
        """What is free to be chosen by time alone: packing, attention code and checkpointing, in that order."""
        axes = self.axes
        for packing, code, checkpointing in product(axes.packings, axes.attentions, axes.checkpointings):
            yield Body(
                lora_rank=rank,
                target_modules=targets,
                seq_len=seq_len,
                packing=packing,
                gradient_checkpointing=checkpointing,
                attention=code,
            )

    def sizes(self, body: Body, spread: Spread) -> list[tuple[int, int]]:
        """(micro-batch, accumulation), ascending."""
        packed = body.seq_len if body.packing else None
        n = spread.n_gpus
        found = micro_batches(self.request, self.facts, n_gpus=n, packed_len=packed)
        return [(m, accumulation(m, self.request, self.facts, n_gpus=n, packed_len=packed)) for m in found]

    def _try(self, body: Body, spread: Spread, level: Level, plainer: set[int]) -> None:
        """Time what fits. `plainer`: micro-batches that fit with less recomputed, which are faster so."""
        sizes = self.sizes(body, spread)
        self.effort.plans += len(sizes)
        level.sizes = max(level.sizes, tuple(m for m, _ in sizes), key=len)
        pair = self.figures.pair(body, spread)
        budget = self.facts.hardware.gpu.memory_bytes
        if pair.floor() > budget:
            return
        wanted = [size for size in sizes if size[0] not in plainer]

        def fits(i: int) -> bool:
            self.effort.peaks += 1
            return pair.peak(*wanted[i]) <= budget

        for i in fitting_indices(fits, [n > 1 for _, n in wanted]):
            m, n = wanted[i]
            plainer.add(m)
            self.effort.times += 1
            seconds = pair.seconds_per_token(m, n)
            paid = spread.n_gpus if self.request.goal == "cheap" else 1
            level.trials.append(Trial(0.0 if seconds is None else seconds * paid, Point(body, spread, m, n)))


def fitting_indices(fits: Callable[[int], bool], accumulates: list[bool]) -> list[int]:
    """Which of the micro-batches fit: bisected while all accumulate; the last may not, and then keeps less."""
    alone = [i for i, several in enumerate(accumulates) if not several]
    low, high = -1, len(accumulates) - len(alone) - 1
    if high >= 0 and fits(0):
        low = 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return [*range(low + 1), *(i for i in alone if fits(i))]


def preference(trial: Trial) -> tuple[object, ...]:
    """Cost; then, where that is the same or not known: no packing, no recomputation, larger micro-batches."""
    body, spread, size, _ = trial.point
    return trial.cost, body.packing, body.gradient_checkpointing != "none", -size, -spread.n_gpus, body.attention


def every_point(search: Search) -> Iterator[tuple[int, Point]]:
    """The whole product with the rank of each plan's level: what brute force walks, and benchmarks count."""
    axes = search.axes
    for rank_of_level, (offload, seq_len, targets, rank, optimizer, sharding) in enumerate(axes.levels()):
        for spread in search.spreads(optimizer=optimizer, sharding=sharding, offload=offload):
            for body in search.bodies(seq_len=seq_len, targets=targets, rank=rank):
                for m, n in search.sizes(body, spread):
                    yield rank_of_level, Point(body, spread, m, n)

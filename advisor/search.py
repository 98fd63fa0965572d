"""The search inside a cell: the plan that gives up least, and of those the one that takes the least time (or money).

Exact: the same plan as by trying all of the product of the axes, which a property test does. Three orders, held by
property tests of the estimators, spare most of it. Memory rises with the micro-batch (while gradients are accumulated),
so the largest that fits is bisected; what stands on a card whatever is computed bounds its memory from below; and at
one micro-batch checkpointing only adds work, so it is timed only where the micro-batch does not fit without.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import NamedTuple, get_args

from advisor.axes import Axes, accumulation, micro_batches, sequences_a_card
from advisor.plans import Cell
from advisor.recommendation import Facts
from advisor.request import Request
from estimators.plan_figures import Body, Figures, Spread
from estimators.sharding import fsdp2_refusal
from profiles.plan import Sharding

SHARDINGS: tuple[Sharding, ...] = get_args(Sharding)


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
        for offload, seq_len, targets, rank, optimizer in self.axes.levels():
            level = Level([], ())
            for spread in self.spreads(optimizer=optimizer, offload=offload):
                fitting: dict[Hashable, set[int]] = {}
                for body in self.bodies(seq_len=seq_len, targets=targets, rank=rank):
                    alike = body._replace(gradient_checkpointing="none")
                    self._try(body, spread, level, fitting.setdefault(alike, set()))
            if level.trials:
                level.trials.sort(key=preference)
                yield level

    def spreads(self, *, optimizer: str, offload: bool) -> Iterator[Spread]:
        """Over how many cards, and how they share; one card shares nothing, and FSDP2 wants several to offload."""
        for n in self.axes.n_gpus:
            alone: tuple[Sharding, ...] = ("none",)
            kinds = self.axes.offloadings if offload else self.axes.shardings if n > 1 else alone
            for kind in kinds:
                if kind != "fsdp2" or (n > 1 and fsdp2_refusal(self.cell.method, optimizer) is None):
                    yield Spread(n_gpus=n, optimizer=optimizer, sharding=kind, offload=offload)

    def bodies(self, *, seq_len: int, targets: tuple[str, ...], rank: int) -> Iterator[Body]:
        """What is free to be chosen by time alone; what recomputes comes after what does not."""
        axes = self.axes
        for packing, code, loss, checkpointing in product(
            axes.packings, axes.attentions, axes.loss_kernels, axes.checkpointings
        ):
            if code == "flash_attention_2" and not packing and len(axes.attentions) > 1:
                continue  # torch's own code runs the same kernel
            yield Body(
                lora_rank=rank,
                target_modules=targets,
                seq_len=seq_len,
                packing=packing,
                gradient_checkpointing=checkpointing,
                attention=code,
                loss_kernel=loss,
            )

    def sizes(self, body: Body, spread: Spread) -> list[tuple[int, int]]:
        """(micro-batch, accumulation), ascending."""
        packed = body.seq_len if body.packing else None
        n = spread.n_gpus
        share = sequences_a_card(self.request, self.facts, n_gpus=n, packed_len=packed)
        masked = body.packing and body.attention != "flash_attention_2"
        return [
            (m, accumulation(m, share)) for m in micro_batches(self.request, self.facts, share, masked_documents=masked)
        ]

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
    """Cost; then, where that is the same or not known: no packing, no recomputation, larger micro-batches, all cards,
    and what comes with torch and the platform before what is one package more."""
    body, spread, size, _ = trial.point
    plain = body.loss_kernel is not None, body.attention == "flash_attention_2", SHARDINGS.index(spread.sharding)
    return (
        trial.cost, body.packing, body.gradient_checkpointing != "none", -size, -spread.n_gpus, *plain, body.attention,
    )  # fmt: skip


def every_point(search: Search) -> Iterator[tuple[int, Point]]:
    """The whole product with the rank of each plan's level: what brute force walks, and benchmarks count."""
    axes = search.axes
    for rank_of_level, (offload, seq_len, targets, rank, optimizer) in enumerate(axes.levels()):
        for spread in search.spreads(optimizer=optimizer, offload=offload):
            for body in search.bodies(seq_len=seq_len, targets=targets, rank=rank):
                for m, n in search.sizes(body, spread):
                    yield rank_of_level, Point(body, spread, m, n)

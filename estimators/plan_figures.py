"""Two figures of very many plans: the high end of device memory and the seconds of a token, without a record for each.

A search asks for them of plans that share a model, a machine and a method. What such plans have in common is worked out
once: layer profiles of a `Body` (what is computed), standing bytes and transfers of a `Spread` (how it is kept and
divided), kernels of a body at one micro-batch. The figures are those of `estimate_memory` and `estimate_speed`, which
tests hold them to.
"""

from collections.abc import Hashable, Iterator
from copy import copy
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from estimators.efficiency import Rates, rates_of
from estimators.generation import generation_seconds
from estimators.interval import Interval
from estimators.margins import allocated_interval, slack_margins
from estimators.memory import COMES_AND_GOES, MemoryModel, estimate_memory
from estimators.methods import AdaptedLinear, Method, TrainedTensors, get_method
from estimators.methods.scalar_head import task_model
from estimators.overhead import device_interval, workspace_bytes
from estimators.regime import Regime, resolve_regime
from estimators.standing import Standing, standing_bytes
from estimators.step_time import communication_seconds, micro_batch, offload_seconds, optimizer_items, overlapped
from estimators.throughput import (
    as_card,
    batch_shape,
    busy_seconds,
    calibrated_constants,
    candidate_cards,
    estimate_speed,
    matmul_dtype,
    real_tokens,
    why_no_speed,
)
from estimators.work import Batch, MicroBatch
from profiles.catalog import get_optimizer
from profiles.dataset import LengthDistribution
from profiles.gpu import GpuSpec, Hardware
from profiles.model import ModelSpec
from profiles.plan import Attention, Checkpointing, LossKernel, Plan, Sharding

if TYPE_CHECKING:
    from profiles.calibration import Calibration

NOTHING = Interval(low=0.0, expected=0.0, high=0.0)


class Body(NamedTuple):
    """What a card computes for a sequence."""

    lora_rank: int
    target_modules: tuple[str, ...]
    seq_len: int
    packing: bool
    gradient_checkpointing: Checkpointing
    attention: Attention
    loss_kernel: LossKernel | None


class Spread(NamedTuple):
    """How weights, gradients and states are kept, and over how many cards. offload: what the sharding divides, in main
    memory."""

    n_gpus: int
    optimizer: str
    sharding: Sharding
    offload: bool


LONE = Spread(n_gpus=1, optimizer="adamw_torch_fused", sharding="none", offload=False)


class Pair(Protocol):
    """A body on a spread: its figures for each micro-batch and number of accumulated ones."""

    def floor(self) -> float:
        """Bytes below which no micro-batch of the two stays: what stands on the card whatever is computed."""

    def peak(self, micro_batch_size: int, accumulation: int) -> float:
        """High end of one card's device memory, bytes."""

    def seconds_per_token(self, micro_batch_size: int, accumulation: int) -> float | None:
        """Expected seconds of a real token over all cards; None where the speed is not known."""


class Figures(Protocol):
    """Figures of the plans that differ from one draft in body, spread and batch."""

    def pair(self, body: Body, spread: Spread) -> Pair:
        """What the two have together.

        Raises:
            UnsupportedError: they cannot be combined.
        """


def plan_of(draft: Plan, body: Body, spread: Spread, *, micro_batch_size: int, accumulation: int) -> Plan:
    """The draft with all of it set. Not validated again: the axes hold only values that a Plan takes."""
    changes: dict[str, Any] = {
        "lora_rank": body.lora_rank,
        "lora_alpha": None if draft.lora_alpha is None else 2.0 * body.lora_rank,
        "target_modules": body.target_modules,
        "seq_len": body.seq_len,
        "packing": body.packing,
        "padding_mask": True if body.packing and body.attention == "sdpa" else draft.padding_mask,  # documents apart
        "gradient_checkpointing": body.gradient_checkpointing,
        "attention": body.attention,
        "loss_kernel": body.loss_kernel,
        "n_gpus": spread.n_gpus,
        "optimizer": spread.optimizer,
        "sharding": spread.sharding,
        "offload_optimizer": spread.offload,
        "offload_parameters": spread.offload and spread.sharding != "zero2",  # ZeRO-2 keeps whole weights on each card
        "micro_batch_size": micro_batch_size,
        "gradient_accumulation_steps": accumulation,
    }
    return draft.model_copy(update=changes)


class PlanFigures:
    """The fast figures."""

    def __init__(
        self,
        draft: Plan,
        model: ModelSpec,
        hardware: Hardware,
        *,
        calibration: "Calibration | None" = None,
        lengths: LengthDistribution | None = None,
    ) -> None:
        self.draft, self.hardware, self.lengths = draft, hardware, lengths
        self.model = task_model(draft, model)
        self.method = _remembering(get_method(draft.method))
        self.context = device_interval(NOTHING, hardware.gpu).high
        self._constants = calibrated_constants(calibration)
        known = not why_no_speed(hardware)
        self._cards = (candidate_cards(hardware) or (hardware.gpu,)) if known else ()
        self._memories: dict[Hashable, MemoryModel] = {}
        self._standing: dict[Hashable, Standing] = {}
        self._moved: dict[Hashable, tuple[float, float, float]] = {}
        self._micro: dict[Hashable, tuple[Batch, MicroBatch]] = {}
        self._busy: dict[Hashable, tuple[Batch, float]] = {}
        self._rates: dict[Hashable, Rates | None] = {}
        self._sampled: dict[Hashable, float] = {}
        self._regimes: dict[Hashable, Regime] = {}
        self._tokens: dict[Hashable, float] = {}

    def pair(self, body: Body, spread: Spread) -> Pair:
        """As `Figures.pair`."""
        return _FastPair(self, body, spread)

    def memory(self, body: Body, spread: Spread, plan: Plan) -> MemoryModel:
        """The memory model of `plan`: its body's, with the spread's standing bytes."""
        gpu = self.hardware.gpu
        regime = self.regime(body, spread, plan, gpu)
        key = body, regime, plan.gradient_accumulation_steps > 1
        of_body = self._memories.get(key)
        if of_body is None:
            of_body = self._memories[key] = MemoryModel(plan, self.model, gpu)
        found = copy(of_body)
        found.standing = self.standing(body, spread, plan, regime)
        return found

    def standing(self, body: Body, spread: Spread, plan: Plan, regime: Regime) -> Standing:
        """What lies on one card whatever is computed."""
        accumulates = plan.gradient_accumulation_steps > 1
        key = body.lora_rank, body.target_modules, spread, accumulates, regime.loss, _sizes(regime)
        found = self._standing.get(key)
        if found is None:
            workspace = workspace_bytes(self.hardware.gpu)
            found = self._standing[key] = standing_bytes(plan, self.model, self.method, regime, workspace)
        return found

    def clocks(self, body: Body, spread: Spread, plan: Plan) -> list["_Clock"]:
        """What times `plan` on each of the cards whose rates are known."""
        found = []
        for gpu in self._cards:
            regime = self.regime(body, spread, plan, gpu)
            rates = self._rates_of(gpu, regime)
            if rates is not None:
                key = body.lora_rank, body.target_modules, spread, gpu.id, _sizes(regime)
                moved = self._moved.get(key)
                if moved is None:
                    moved = self._moved[key] = self._move(plan, regime, rates)
                found.append(_Clock(gpu, regime, rates, *moved))
        return found

    def regime(self, body: Body, spread: Spread, plan: Plan, gpu: GpuSpec) -> Regime:
        """What the plan's platform makes of it: the number of sequences counts only as one or several."""
        key = body, spread.sharding, plan.micro_batch_size > 1, gpu.id
        found = self._regimes.get(key)
        if found is None:
            found = self._regimes[key] = resolve_regime(plan, self.model, gpu)
        return found

    def busy(self, body: Body, spread: Spread, clock: "_Clock", micro_batch_size: int) -> tuple[Batch, float]:
        """The shape of a micro-batch, and its seconds on one card."""
        key = body, micro_batch_size, spread.sharding, clock.gpu.id
        found = self._busy.get(key)
        if found is None:
            plan = plan_of(self.draft, body, spread, micro_batch_size=micro_batch_size, accumulation=1)
            batch, micro = self._micro_batch(body, plan, clock)
            found = self._busy[key] = batch, busy_seconds(plan, micro, clock.rates)[1]
        return found

    def sampling(self, body: Body, spread: Spread, clock: "_Clock", rows: int) -> float:
        """Seconds that GRPO takes on one card to sample `rows` completions; nothing for other tasks."""
        if self.draft.task != "grpo":
            return 0.0
        key = body.seq_len, rows, clock.gpu.id, clock.regime
        found = self._sampled.get(key)
        if found is None:
            plan = plan_of(self.draft, body, spread, micro_batch_size=rows, accumulation=1)
            found = self._sampled[key] = generation_seconds(
                plan, self.model, self.method, clock.regime, clock.rates, sequences=rows
            )
        return found

    def _micro_batch(self, body: Body, plan: Plan, clock: "_Clock") -> tuple[Batch, MicroBatch]:
        """Kernels of one micro-batch, which no sharding changes."""
        key = body, plan.micro_batch_size, clock.gpu.id, clock.regime
        found = self._micro.get(key)
        if found is None:
            batch = batch_shape(plan, self.method, self.lengths)
            kernels = micro_batch(plan, self.model, self.method, clock.regime, clock.rates, batch)
            found = self._micro[key] = batch, kernels
        return found

    def tokens(self, body: Body, micro_batch_size: int) -> float:
        """Real tokens of a micro-batch on one card."""
        key = body.seq_len, body.packing, micro_batch_size
        found = self._tokens.get(key)
        if found is None:
            plan = plan_of(self.draft, body, LONE, micro_batch_size=micro_batch_size, accumulation=1)
            found = self._tokens[key] = real_tokens(plan, self.lengths)
        return found

    def _rates_of(self, gpu: GpuSpec, regime: Regime) -> Rates | None:
        key = gpu.id, regime.compute_dtype
        if key not in self._rates:
            card = as_card(gpu, self._constants)
            self._rates[key] = rates_of(card, matmul_dtype(regime, card), constants=self._constants)
        return self._rates[key]

    def _move(self, plan: Plan, regime: Regime, rates: Rates) -> tuple[float, float, float]:
        """Seconds of a micro-batch's collectives, of a step's, and of the optimizer."""
        per_micro, per_step, _ = communication_seconds(plan, self.model, self.method, regime, rates)
        items = optimizer_items(plan, self.model, self.method, regime, rates, get_optimizer(plan.optimizer))
        return per_micro, per_step, sum(item.seconds for item in items)


def _sizes(regime: Regime) -> tuple[object, ...]:
    """What weights, states and transfers depend on: not the kernel, the mask or checkpointing."""
    r = regime
    return r.compute, r.autocast, r.quantized, r.nested, r.base, r.adapter, r.trained


def _remembering(method: Method) -> Method:
    """The method, asked once for what it trains and adapts at each rank and choice of modules."""
    trained: dict[Hashable, tuple[TrainedTensors, ...]] = {}
    adapted: dict[Hashable, tuple[AdaptedLinear, ...]] = {}

    def find_trained(model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        key = plan.lora_rank, plan.target_modules
        if key not in trained:
            trained[key] = tuple(method.trained_for(model, plan))
        return iter(trained[key])

    def find_adapted(model: ModelSpec, plan: Plan) -> tuple[AdaptedLinear, ...]:
        key = plan.lora_rank, plan.target_modules
        if key not in adapted:
            adapted[key] = method.adapted(model, plan)
        return adapted[key]

    found = copy(method)
    vars(found).update(trained_for=find_trained, adapted=find_adapted)
    return found


class _Clock(NamedTuple):
    """One card, and what a step takes there besides its micro-batches' kernels."""

    gpu: GpuSpec
    regime: Regime
    rates: Rates
    per_micro: float
    per_step: float
    optimizer: float


class _Drafted:
    """The plans of a body on a spread."""

    def __init__(self, draft: Plan, body: Body, spread: Spread) -> None:
        self.draft, self.body, self.spread = draft, body, spread

    def plan(self, micro_batch_size: int, accumulation: int) -> Plan:
        return plan_of(self.draft, self.body, self.spread, micro_batch_size=micro_batch_size, accumulation=accumulation)


class _FastPair(_Drafted):
    def __init__(self, figures: PlanFigures, body: Body, spread: Spread) -> None:
        super().__init__(figures.draft, body, spread)
        self.figures = figures
        self._memory: dict[tuple[bool, bool], tuple[MemoryModel, float, float, float]] = {}
        self._clocks: dict[bool, list[_Clock]] = {}

    def floor(self) -> float:
        plan = self.plan(1, 1)
        regime = self.figures.regime(self.body, self.spread, plan, self.figures.hardware.gpu)
        standing = self.figures.standing(self.body, self.spread, plan, regime)
        kept = standing.base + standing.adapters + standing.states + standing.workspace + standing.gradients
        return kept * allocated_interval(1.0, plan, regime, "analytic").high + self.figures.context

    def peak(self, micro_batch_size: int, accumulation: int) -> float:
        key = micro_batch_size > 1, accumulation > 1
        known = self._memory.get(key)
        if known is None:
            plan = self.plan(micro_batch_size, accumulation)
            memory = self.figures.memory(self.body, self.spread, plan)
            saved, other = (m.high for m in slack_margins(memory.regime))
            margin = allocated_interval(1.0, plan, memory.regime, "analytic").high
            known = self._memory[key] = memory, saved, other, margin
        memory, saved, other, margin = known
        highest = 0.0
        for _, parts in memory.phases(micro_batch_size, accumulation):
            total = 0.0
            for name, n_bytes in parts:
                total += n_bytes
                if name == "saved_activations":
                    total += saved * n_bytes
                elif name in COMES_AND_GOES:
                    total += other * n_bytes
            highest = max(highest, total)
        return highest * margin + self.figures.context

    def seconds_per_token(self, micro_batch_size: int, accumulation: int) -> float | None:
        figures, body, spread, several = self.figures, self.body, self.spread, micro_batch_size > 1
        clocks = self._clocks.get(several)
        if clocks is None:
            plan = self.plan(micro_batch_size, accumulation)
            clocks = self._clocks[several] = figures.clocks(body, spread, plan)
        found = []
        for clock in clocks:
            batch, busy = figures.busy(body, spread, clock, micro_batch_size)
            once, rates = busy, clock.rates
            if clock.per_micro:
                once += overlapped(busy, clock.per_micro, rates.overlap)
            if spread.offload or clock.regime.offload_checkpoints:
                plan = self.plan(micro_batch_size, accumulation)
                offload, _ = offload_seconds(plan, figures.model, clock.regime, rates, batch)
                once += overlapped(busy, offload, rates.overlap)
            sampling = figures.sampling(body, spread, clock, micro_batch_size * accumulation)
            found.append(once * accumulation + sampling + clock.per_step + clock.optimizer)
        if not found:
            return None
        found.sort()
        return found[len(found) // 2] / (figures.tokens(body, micro_batch_size) * accumulation * spread.n_gpus)


class ReferenceFigures:
    """The same figures plan by plan from the estimators: what the fast ones are checked against."""

    def __init__(
        self,
        draft: Plan,
        model: ModelSpec,
        hardware: Hardware,
        *,
        calibration: "Calibration | None" = None,
        lengths: LengthDistribution | None = None,
        memory: Any = estimate_memory,
        speed: Any = estimate_speed,
    ) -> None:
        self.draft, self.model, self.hardware = draft, model, hardware
        self.calibration, self.lengths = calibration, lengths
        self._memory, self._speed = memory, speed

    def pair(self, body: Body, spread: Spread) -> Pair:
        """As `Figures.pair`."""
        return _ReferencePair(self, body, spread)

    def peak(self, plan: Plan) -> float:
        """High end of device memory, bytes."""
        return float(self._memory(plan, self.model, self.hardware).device.high)

    def seconds_per_token(self, plan: Plan) -> float | None:
        """Expected seconds of a real token."""
        speed = self._speed(plan, self.model, self.hardware, calibration=self.calibration, lengths=self.lengths)
        return None if speed is None else speed.step_seconds.expected / speed.tokens_per_step


class _ReferencePair(_Drafted):
    def __init__(self, figures: ReferenceFigures, body: Body, spread: Spread) -> None:
        super().__init__(figures.draft, body, spread)
        self.figures = figures

    def floor(self) -> float:
        return 0.0

    def peak(self, micro_batch_size: int, accumulation: int) -> float:
        return self.figures.peak(self.plan(micro_batch_size, accumulation))

    def seconds_per_token(self, micro_batch_size: int, accumulation: int) -> float | None:
        return self.figures.seconds_per_token(self.plan(micro_batch_size, accumulation))

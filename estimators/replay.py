"""Reserved memory, analytic tier: two whole steps on the tape, every allocation through a model of the allocator.

`memory.py` needs one layer of each kind; fragmentation depends on the order of everything, so here all layers run, load
and optimizer states included. Tens of milliseconds, no torch.
"""

from dataclasses import dataclass, replace
from typing import Any

from estimators.allocator import CachingAllocator, DeviceOutOfMemoryError
from estimators.answer import Component, MemoryEstimate
from estimators.batches import Batches, optimizer_steps
from estimators.interval import Interval
from estimators.layer import forgets_cache, input_width, run_layer
from estimators.layer_ops import FP32
from estimators.logits import evaluation_parts, run_head
from estimators.margins import allocated_interval, replayed_interval
from estimators.memory import MemoryModel, estimate_memory, memory_model
from estimators.offload import BUFFERS, MINIMUM_BYTES
from estimators.overhead import MULTIPLYING_THREADS, context_bytes, device_interval
from estimators.regime import Regime
from estimators.setup import LayerRun
from estimators.tape import Buffer, Line, Node, Summed, Tape, Tensor
from estimators.vector_sum import resident_threads, vector_sum
from estimators.weights import is_quantized, linear_bytes
from profiles.catalog import get_optimizer
from profiles.gpu import GpuSpec, Hardware
from profiles.model import Linear, ModelSpec, Norm
from profiles.plan import Plan
from profiles.units import MIB

DISTINCT = 2  # micro-batches of a step: without gradients and with
DDP_BUCKET = 25 * MIB
INT64 = 8
INPUTS = 3  # ids, mask, labels


@dataclass(frozen=True, slots=True)
class Replay:
    """Peaks over load and two steps, in bytes. rounding: what the blocks have above what was asked for."""

    allocated: int
    reserved: int
    rounding: int


def estimate_memory_replayed(
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    *,
    batches: Batches = (),
    release_outputs: bool = False,
    empty_cache: bool = False,
    moved: bool = False,
) -> MemoryEstimate:
    """The analytic estimate with reserved memory from a replay instead of a fitted share, and with the rounding of the
    allocator's blocks, where each card holds the whole model.

    batches, release_outputs, empty_cache, moved: as in `replay`.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
    """
    estimate = estimate_memory(plan, model, hardware)
    offloads = plan.offload_optimizer or plan.offload_parameters
    if plan.sharding not in ("none", "ddp") or offloads or hardware.gpu.vendor == "CPU":
        return estimate
    loop: dict[str, Any] = {
        "batches": batches, "release_outputs": release_outputs, "empty_cache": empty_cache, "moved": moved
    }  # fmt: skip
    found = replay(plan, model, hardware.gpu, **loop)
    regime = memory_model(plan, model, hardware.gpu).regime
    floor = allocated_interval(estimate.allocated.expected + found.rounding, plan, regime, "analytic")
    reserved = replayed_interval(float(found.reserved), floor, plan, regime, "analytic")
    most = estimate.budget - context_bytes(hardware.gpu).high
    if floor.high <= most < reserved.high and _runs_within(
        plan, model, hardware.gpu, most * floor.expected / floor.high, loop
    ):
        reserved = Interval(low=min(reserved.low, most), expected=min(reserved.expected, most), high=most)
    said = "reserved memory: two whole steps replayed through a model of the caching allocator"
    rounding = Component(name="rounding", n_bytes=float(found.rounding))
    return estimate.replace(
        phases=tuple(
            p.replace(components=(*p.components, rounding)) if p.name == estimate.peak_phase and found.rounding else p
            for p in estimate.phases
        ),
        allocated=floor,
        reserved=reserved,
        device=device_interval(reserved, hardware.gpu),
        assumptions=(*estimate.assumptions, said),
    )


def _runs_within(plan: Plan, model: ModelSpec, gpu: GpuSpec, limit: float, loop: dict[str, Any]) -> bool:
    try:
        replay(plan, model, gpu, limit=int(limit), **loop)
    except DeviceOutOfMemoryError:
        return False
    return True


class _Held(Buffer):
    """A buffer with its name at the allocator; 0 for none."""

    __slots__ = ("key",)

    def __init__(self, per_token: float, constant: float, key: int) -> None:
        super().__init__(per_token, constant)
        self.key = key


class _ReplayTape(Tape):
    """Passes every buffer on to an allocator, at the micro-batch's number of tokens."""

    __slots__ = ("_last", "allocator", "gradients", "threads", "tokens")

    def __init__(self, allocator: CachingAllocator, tokens: int, threads: int) -> None:
        super().__init__()
        self.threads = threads
        self.allocator = allocator
        self.gradients: list[int] = []
        self.tokens = tokens
        self._last = 0

    def take(self, n_bytes: float) -> int:
        """Allocate for good; returns the key, 0 for nothing."""
        if n_bytes < 1:
            return 0
        self._last += 1
        self.allocator.malloc(self._last, int(n_bytes))
        return self._last

    def give(self, *keys: int) -> None:
        """Free what `take` returned."""
        for key in keys:
            if key:
                self.allocator.free(key)

    def alloc(self, per_token: float, constant: float = 0.0) -> Buffer:
        return _Held(per_token, constant, self.take(per_token * self.tokens + constant))

    def release(self, buffer: Buffer) -> None:
        buffer.refs -= 1
        if not buffer.refs and isinstance(buffer, _Held):
            self.give(buffer.key)

    def scratch(self, *pieces: Line) -> None:
        self.give(*[self.take(per_token * self.tokens + constant) for per_token, constant in pieces])

    def sum(self, summed: Summed, beside: Line) -> None:
        more = beside[0] * self.tokens + beside[1]
        held = self.take(more)
        partial = vector_sum(summed[0] * self.tokens, summed[1], self.threads)
        self.give(self.take(partial + min(more, 0.0)), held)

    def keep_gradient(self, n_bytes: float) -> None:
        self.gradients.append(self.take(n_bytes))

    def adopt(self, buffer: Buffer) -> None:
        super().adopt(buffer)
        if isinstance(buffer, _Held):
            self.gradients.append(buffer.key)


def replay(
    plan: Plan,
    model: ModelSpec,
    gpu: GpuSpec,
    *,
    batches: Batches = (),
    limit: int | None = None,
    release_outputs: bool = False,
    empty_cache: bool = False,
    moved: bool = False,
) -> Replay:
    """Load the model, then run two equal steps of `plan`, or those of `batches`, on one card that holds all of it.

    batches: (rows, padded length) of each micro-batch. empty_cache: the loop gives cached segments back after each
    step. moved: the model was loaded elsewhere and moved to the card. release_outputs: each step is a function of its
    own, so that outputs that are kept through backward go at its end.
    With a `limit` on what can be reserved the allocator gives cached segments back before it fails, as CUDA's does.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
        DeviceOutOfMemoryError: it does not run within the limit.
    """
    allocator = CachingAllocator(limit=limit, expandable_segments=plan.expandable_segments)
    run = _Run(plan, model, memory_model(plan, model, gpu), _ReplayTape(allocator, 0, resident_threads(gpu)))
    run.load(moved=moved)
    if run.regime.evaluates_logits:
        run.evaluate()
    for step, micro_batches in enumerate(optimizer_steps(plan, batches, distinct=DISTINCT)):
        for rows, length in micro_batches:
            own = plan.replace(micro_batch_size=rows, seq_len=length, mean_len=None) if batches else plan
            run.take_batch(own, memory_model(own, model, gpu))
            run.forward_and_backward()
        run.update(first=step == 0)
        if release_outputs:
            run.drop_outputs()
        if empty_cache:
            allocator.empty_cache()
    if run.regime.evaluates_logits:
        run.evaluate()
    return Replay(
        allocated=allocator.peak_allocated,
        reserved=allocator.peak_reserved,
        rounding=allocator.peak_allocated - allocator.peak_requested,
    )


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A layer to be run again: what it was given and returned, and the nodes of layers below that are not. moved: what
    it was given went to host memory."""

    run: LayerRun
    given: Tensor
    out: Tensor
    below: list[Node]
    moved: bool


class _Run:
    def __init__(self, plan: Plan, model: ModelSpec, memory: MemoryModel, tape: _ReplayTape) -> None:
        self.tape, self.model = tape, memory.model
        self.take_batch(plan, memory)
        self.trained = list(memory.method.trained_for(model, plan))
        self.accumulates = False
        self.workspaces = 0
        self.logits: Tensor | None = None
        self.cached: list[int] = []
        self.graph: list[Buffer] = []
        self.buffers = 0  # of offloaded checkpoints

    def take_batch(self, plan: Plan, memory: MemoryModel) -> None:
        """The next step runs this plan's micro-batch."""
        self.plan, self.memory = plan, memory
        self.regime: Regime = memory.regime
        self.layers: list[LayerRun] = [run for run in memory.runs for _ in range(run.count)]
        self.tokens = self.tape.tokens = plan.micro_batch_size * memory.seq_len

    def load(self, *, moved: bool) -> None:
        """Weights as `from_pretrained` brings them, what k-bit preparation widens, adapters.

        transformers 5.23 (core_model_loading.py, modeling_utils.py) warms the cache up with one allocation of all
        weights, then takes parameters in the order of their names. moved: `.to(device)` of a model in 16 bits, in the
        order of its modules.
        """
        tape, regime, model = self.tape, self.regime, self.model
        moved = moved and not regime.quantized
        prepared = bool(self.plan.kbit_prepared and regime.quantized)
        itemsize = regime.compute if prepared else regime.base
        whole: list[tuple[int, float]] = []  # what is not quantised: key, elements

        def keep(elements: float) -> None:
            whole.append((tape.take(elements * itemsize), elements))

        if not moved:
            tape.give(tape.take(self._loaded_bytes(itemsize)))
        head = model.head if model.head is not None and not model.tie_word_embeddings else None
        if head is not None and not moved:  # "lm_head" comes before "model"
            keep(head.weight_parameters)
        for embedding in model.embeddings:
            keep(embedding.parameters)
        trained: list[tuple[int, float]] = []  # what is widened because it is trained
        for run in self.layers:
            first = len(whole)
            parts: list[Linear | Norm] = [*run.block.linears, *run.block.norms]
            for part in parts if moved else sorted(parts, key=lambda x: x.name):
                if isinstance(part, Linear) and is_quantized(part, regime):
                    self._load_quantized(part)
                elif isinstance(part, Linear):
                    copies = 1 if part.kind == "parameter" else part.copies
                    for _ in range(copies):
                        keep(part.weight_parameters / copies)
                    if part.bias:
                        keep(part.bias_parameters)
                else:
                    keep(part.parameters)
            if run.setup.trains_weights and regime.trained > regime.base:
                trained += whole[first:]
        for norm in model.extra_norms:
            keep(norm.parameters)
        if head is not None and moved:
            keep(head.weight_parameters)
        if prepared:
            for key, elements in whole:
                tape.take(elements * FP32)
                tape.give(key)
        for key, elements in trained:
            tape.take(elements * regime.trained)
            tape.give(key)
        self._load_adapters()
        if self.plan.sharding == "ddp":
            self._take_buckets()

    def _take_buckets(self) -> None:
        """DDP keeps all gradients once more, in flat tensors of 25 MiB (reducer.cpp, initialize_buckets)."""
        left = sum(self._trained_bytes())
        while left > 0:
            self.tape.take(min(left, DDP_BUCKET))
            left -= DDP_BUCKET

    def _loaded_bytes(self, itemsize: float) -> float:
        """What the warm-up takes: quantised weights by their bits alone."""
        bits = {0: 0.0, 4: 0.5, 8: 1.0}[self.regime.quantized]
        linears = [x for run in self.layers for x in run.block.linears if is_quantized(x, self.regime)]
        quantized = sum(x.weight_parameters for x in linears)
        return (self.model.parameters - quantized) * itemsize + quantized * bits

    def _load_quantized(self, linear: Linear) -> None:
        """A weight that is quantised comes in 16 bits first; the absmax of 4 bits in fp32 before they are nested."""
        tape, regime = self.tape, self.regime
        for _ in range(linear.copies):
            weights = linear.weight_parameters / linear.copies
            if regime.quantized != 4:
                tape.take(linear_bytes(linear, regime) / linear.copies)
                continue
            full = tape.take(weights * regime.compute)
            tape.take(weights / 2)
            absmax = tape.take(weights / 16)
            if regime.nested:
                centred = tape.take(weights / 16)
                tape.take(weights / 64)
                tape.give(centred, absmax)
            tape.give(full)

    def _load_adapters(self) -> None:
        """PEFT makes adapters in the base's dtype, and widens them one after another when all stand."""
        tape, regime = self.tape, self.regime
        elements = [t.elements for t in self.trained if not t.in_base for _ in range(t.tensors)]
        narrow = min(regime.adapter, regime.compute)
        made = [tape.take(n * narrow) for n in elements]
        if narrow < regime.adapter:
            for key, n in zip(made, elements, strict=True):
                tape.take(n * regime.adapter)
                tape.give(key)

    def forward_and_backward(self) -> None:
        """A micro-batch: inputs, forward, backward; outputs that the loop keeps live until the next forward."""
        tape, regime, memory = self.tape, self.regime, self.memory
        found = len(tape.gradients)
        self.accumulates = bool(found or memory.waiting)
        self._begin_to_multiply()
        inputs = [tape.take(INT64 * self.tokens) for _ in range(INPUTS)]
        inputs.append(tape.take(memory.mask_bytes(self.tokens)))
        words = x = tape.tensor(input_width(self.layers[0].block), regime.entry, memory.setup.input_requires_grad)
        checkpoints: list[_Checkpoint] = []
        offloads = regime.offload_checkpoints and x.width * x.itemsize * self.tokens > MINIMUM_BYTES
        if offloads and not memory.method.trains_base:  # a leaf, that gets a gradient
            tape.hold(words)
        cached: list[int] = []  # keys and values
        copies: list[int] = []  # that autocast caches to the end of forward
        escaped: list[Buffer] = []  # from checkpointing: int8 inputs, until the graph goes
        for run in self.layers:
            if run.regime.checkpointing and run.reached:
                moved = offloads and len(checkpoints) < memory.checkpointed - 1
                given = x if moved else tape.hold(x)
                tape.records = False  # this run saves nothing: what it makes goes as soon as it is used
                x = self._layer(run, x)
                tape.records = True
                tape.drop_returned()
                escaped += tape.leave_graph()
                x.requires_grad = True
                if memory.caches_copies:
                    share = 1 / memory.checkpointed
                    copies += [tape.take(n_bytes * tensors * share) for n_bytes, tensors in memory.copied]
                checkpoints.append(_Checkpoint(run, given, x, tape.nodes, moved))
                tape.nodes = []
            else:
                tape.records = run.reached
                x = self._layer(run, x)
                tape.records = True
                tape.drop_returned()
                cached += [tape.take(memory.cache_bytes(run.block) * self.tokens / 2) for _ in ("keys", "values")]
        top = tape.hold(x) if checkpoints else x
        tied = memory.method.trains_base and self.model.tie_word_embeddings
        setup = replace(memory.setup, accumulates=self.accumulates and not tied)  # the head's waits for the words'
        loss, logits = run_head(tape, x, self.model, regime, setup, tokens=self.tokens)
        tape.give(*copies)
        self.drop_outputs()
        self.logits, self.cached = logits, cached
        if forgets_cache(regime, memory.setup):
            tape.drop_graph()
        penalty = tape.take(memory.penalty)
        later = bool(checkpoints) and regime.loss == "chunked"  # then nothing is multiplied before a layer runs again
        if not later:
            self._take_workspace(2)
        loss.grad = tape.alloc(0.0)
        if memory.waiting:  # the penalty's, which the layers' own are added to
            tape.gradients += [tape.take(n_bytes) for n_bytes in self._trained_bytes()]
        self._backward()
        if memory.held_penalty:
            self.cached.append(penalty)
        else:
            tape.give(penalty)
        waiting = tape.gradients[found:] if found else []
        if checkpoints:
            tape.drop(top)
        if offloads:
            self._take_offload_buffer(x)
        self._take_workspace(2)
        for checkpoint in reversed(checkpoints):
            self._backward_of(checkpoint)
        if words.grad is not None:
            tape.release(words.grad)
        if offloads and not memory.method.trains_base:
            tape.drop(words)
        self._embedding_gradient()
        for key in waiting:
            tape.gradients.remove(key)
        tape.give(*inputs, *waiting)
        self._let_go(escaped)

    def update(self, *, first: bool) -> None:
        """The optimizer, and zero_grad."""
        if first:
            self._make_states()
        self._step_temporaries()
        if self.plan.zero_grad_set_to_none or self.plan.method == "badam":
            self.tape.give(*self.tape.gradients)
            self.tape.gradients.clear()

    def evaluate(self) -> None:
        """One held-out row with whole logits, before the first step and after the last: the layers, the head's product,
        its fp32 copy, log_softmax."""
        tape, length = self.tape, self.memory.seq_len
        tape.tokens, tape.records = length, False
        self._begin_to_multiply()
        keys = [tape.take(INT64 * length) for _ in range(INPUTS)]
        x = tape.tensor(input_width(self.layers[0].block), self.regime.entry, False)
        for run in self.layers:
            x = self._layer(run, x)
            tape.drop_returned()
            tape.drop_graph()
        keys += [tape.take(n * length) for n in evaluation_parts(self.model, self.regime)]
        tape.drop(x)
        tape.give(*keys)
        tape.tokens, tape.records = self.tokens, True

    def drop_outputs(self) -> None:
        """The loop lets go of what the model returned."""
        if self.logits is not None:
            self.tape.drop(self.logits)
            self.logits = None
        self.tape.give(*self.cached)
        self.cached = []
        for buffer in self.graph:
            self.tape.release(buffer)
        self.graph = []

    def _begin_to_multiply(self) -> None:
        """The first product makes the buffer that Unsloth's all share."""
        if not self.workspaces:
            self.tape.take(self.memory.shared_weight)
        self._take_workspace(1)

    def _take_workspace(self, threads: int) -> None:
        """cuBLAS' of each thread that multiplies: forward's, then autograd's."""
        while self.workspaces < threads:
            self.tape.take(self.memory.standing.workspace / MULTIPLYING_THREADS)
            self.workspaces += 1

    def _layer(self, run: LayerRun, x: Tensor) -> Tensor:
        setup = replace(run.setup, accumulates=self.accumulates)
        return run_layer(self.tape, x, run.block, run.regime, setup, self.memory.seq_len)

    def _backward_of(self, checkpoint: _Checkpoint) -> None:
        """Run the layer again and back, then what lies between it and the next checkpoint below."""
        tape, given = self.tape, checkpoint.given
        gradient, checkpoint.out.grad = checkpoint.out.grad, None
        x = given
        if checkpoint.moved:  # back from host memory, into a buffer that is there
            x = Tensor(tape.alloc(0.0), given.width, given.itemsize, given.requires_grad)
        x.grad = None
        out = self._layer(checkpoint.run, tape.hold(x))
        tape.drop(out)
        tape.drop_returned()
        out.grad = gradient
        tape.recomputed = not self.regime.reentrant
        tape.backward()
        tape.recomputed = False
        tape.drop_graph()
        given.grad = x.grad
        tape.drop(x)
        if checkpoint.below:
            tape.nodes = checkpoint.below
            self._backward()

    def _backward(self) -> None:
        """Walk back; what functions keep on their own goes with the graph, which outputs that are kept may hold."""
        self.tape.backward()
        self._let_go(self.tape.leave_graph())

    def _let_go(self, of_graph: list[Buffer]) -> None:
        if self.memory.outputs_hold_graph:
            self.graph += of_graph
            return
        for buffer in of_graph:
            self.tape.release(buffer)

    def _take_offload_buffer(self, x: Tensor) -> None:
        """Each step takes one more, until there are all."""
        if self.buffers < BUFFERS:
            self.tape.take(x.width * x.itemsize * self.tokens)
            self.buffers += 1

    def _embedding_gradient(self) -> None:
        """A dense gradient; of a tied head a second one, which is added into the first."""
        if not self.memory.method.trains_base:
            return
        n_bytes = self.model.embeddings[0].parameters * self.regime.base
        if self.model.tie_word_embeddings or self.accumulates:
            self.tape.give(self.tape.take(n_bytes))
        else:
            self.tape.gradients.append(self.tape.take(n_bytes))

    def _trained_bytes(self) -> list[int]:
        """Of each trained tensor."""
        regime = self.regime
        itemsizes = [(t, regime.trained if t.in_base else regime.adapter) for t in self.trained]
        return [t.elements * itemsize for t, itemsize in itemsizes for _ in range(t.tensors)]

    def _make_states(self) -> None:
        """Adam's states appear in the first step, one pair per tensor."""
        optimizer = get_optimizer(self.plan.optimizer)
        for t in self.trained:
            itemsize = self.regime.trained if t.in_base else self.regime.adapter
            n_bytes = self.memory.method.state_bytes(t, optimizer, itemsize) / t.tensors
            for _ in range(t.tensors * max(optimizer.state_tensors, 1)):
                self.tape.take(n_bytes / max(optimizer.state_tensors, 1))

    def _step_temporaries(self) -> None:
        """A foreach step makes a tensor for each parameter, or for what a method projects it to; others what they make
        together."""
        tape, temporary = self.tape, self.memory.standing.temporary
        if not get_optimizer(self.plan.optimizer).step_temporary:
            tape.give(tape.take(temporary))
            return
        sizes = self._trained_bytes()
        tape.give(*[tape.take(temporary * n_bytes / sum(sizes)) for n_bytes in sizes])

"""Reserved memory, analytic tier: two whole steps on the tape, every allocation through a model of the allocator.

`memory.py` needs one layer of each kind; fragmentation depends on the order of everything, so here all layers run, load
and optimizer states included. Tens of milliseconds, no torch.
"""

from dataclasses import dataclass

from estimators.allocator import CachingAllocator, DeviceOutOfMemoryError
from estimators.answer import MemoryEstimate
from estimators.interval import Interval
from estimators.layer import input_width, run_layer
from estimators.logits import run_head
from estimators.memory import MemoryModel, estimate_memory, memory_model
from estimators.overhead import context_bytes, device_interval
from estimators.regime import Regime
from estimators.tape import Buffer, Tape, Tensor
from estimators.weights import is_quantized, linear_bytes
from profiles.catalog import get_margin, get_optimizer
from profiles.gpu import GpuSpec, Hardware
from profiles.model import Block, Linear, ModelSpec
from profiles.plan import Plan

STEPS = 2  # the first makes the optimizer's states, the second meets them
INT64 = 8
INPUTS = 3  # ids, mask, labels


@dataclass(frozen=True, slots=True)
class Replay:
    """Peaks over load and two steps, in bytes."""

    allocated: int
    reserved: int


def estimate_memory_replayed(
    plan: Plan, model: ModelSpec, hardware: Hardware, *, release_outputs: bool = False
) -> MemoryEstimate:
    """The analytic estimate with reserved memory from a replay instead of a fitted share, where one card is enough.

    release_outputs: as in `replay`.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
    """
    estimate = estimate_memory(plan, model, hardware)
    if plan.sharding != "none" or plan.offload_optimizer or plan.offload_parameters or hardware.gpu.vendor == "CPU":
        return estimate
    found = replay(plan, model, hardware.gpu, release_outputs=release_outputs)
    margin = get_margin("reserved", "replayed")
    floor = estimate.allocated
    expected = max(floor.expected, float(found.reserved))
    reserved = Interval(
        low=max(floor.low, expected * (1 + margin.low)),
        expected=expected,
        high=max(floor.high, expected * (1 + margin.high)),
    )
    most = estimate.budget - context_bytes(hardware.gpu).high
    if floor.high <= most < reserved.high and _runs_within(
        plan, model, hardware.gpu, most * floor.expected / floor.high
    ):
        reserved = Interval(low=min(reserved.low, most), expected=min(reserved.expected, most), high=most)
    said = "reserved memory: two whole steps replayed through a model of the caching allocator"
    return estimate.replace(
        reserved=reserved, device=device_interval(reserved, hardware.gpu), assumptions=(*estimate.assumptions, said)
    )


def _runs_within(plan: Plan, model: ModelSpec, gpu: GpuSpec, limit: float) -> bool:
    try:
        replay(plan, model, gpu, limit=int(limit))
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
    """Passes every buffer on to an allocator, at a fixed number of tokens."""

    __slots__ = ("_last", "_tokens", "allocator", "gradients")

    def __init__(self, allocator: CachingAllocator, tokens: int) -> None:
        super().__init__()
        self.allocator = allocator
        self.gradients: list[int] = []
        self._tokens = tokens
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
        return _Held(per_token, constant, self.take(per_token * self._tokens + constant))

    def release(self, buffer: Buffer) -> None:
        buffer.refs -= 1
        if not buffer.refs and isinstance(buffer, _Held):
            self.give(buffer.key)

    def scratch(self, per_token: float, constant: float = 0.0) -> None:
        self.give(self.take(per_token * self._tokens + constant))

    def keep_gradient(self, n_bytes: float) -> None:
        self.gradients.append(self.take(n_bytes))


def replay(
    plan: Plan, model: ModelSpec, gpu: GpuSpec, *, limit: int | None = None, release_outputs: bool = False
) -> Replay:
    """Load the model, then run two equal steps of `plan`, on one card without sharding.

    release_outputs: each step is a function of its own, so that outputs that are kept through backward go at its end.
    With a `limit` on what can be reserved the allocator gives cached segments back before it fails, as CUDA's does.

    Raises:
        UnsupportedError, InvalidInputError: as estimate_memory.
        DeviceOutOfMemoryError: it does not run within the limit.
    """
    memory = memory_model(plan, model, gpu)
    allocator = CachingAllocator(limit=limit, expandable_segments=plan.expandable_segments)
    run = _Run(plan, model, memory, _ReplayTape(allocator, plan.micro_batch_size * memory.seq_len))
    run.load()
    for step in range(STEPS):
        run.step(first=step == 0)
        if release_outputs:
            run.drop_outputs()
    return Replay(allocated=allocator.peak_allocated, reserved=allocator.peak_reserved)


class _Run:
    def __init__(self, plan: Plan, model: ModelSpec, memory: MemoryModel, tape: _ReplayTape) -> None:
        self.plan, self.model, self.memory, self.tape = plan, memory.model, memory, tape
        self.regime: Regime = memory.regime
        self.tokens = plan.micro_batch_size * memory.seq_len
        self.blocks: list[Block] = [g.block for g in self.model.layers for _ in range(g.count)]
        self.trained = list(memory.method.trained(model, plan))
        self.logits: Tensor | None = None

    def load(self) -> None:
        """Weights in the order of the modules, adapters, the workspaces of both threads."""
        tape, regime, model = self.tape, self.regime, self.model
        for embedding in model.embeddings:
            tape.take(embedding.parameters * regime.base)
        for block in self.blocks:
            for linear in block.linears:
                self._load_linear(linear)
            for norm in block.norms:
                tape.take(norm.parameters * regime.base)
        if model.head is not None and not model.tie_word_embeddings:
            tape.take(model.head.weight_parameters * regime.base)
        for t in self.trained:
            if not t.in_base:
                for _ in range(t.tensors):
                    tape.take(t.elements * regime.adapter)
        for _ in range(2):
            tape.take(self.memory.standing.workspace / 2)

    def _load_linear(self, linear: Linear) -> None:
        """A weight that is quantised comes in 16 bits first, and its absmax in fp32 before it is nested."""
        tape, regime = self.tape, self.regime
        copies = 1 if linear.kind == "parameter" else linear.copies
        for _ in range(copies):
            if not is_quantized(linear, regime) or regime.quantized != 4:
                tape.take(linear_bytes(linear, regime) / copies)
                continue
            weights = linear.weight_parameters / copies
            full = tape.take(weights * regime.compute)
            tape.take(weights / 2)
            absmax = tape.take(weights / 16)
            if regime.nested:
                tape.take(weights / 64)
                tape.give(absmax)
            tape.give(full)

    def step(self, *, first: bool) -> None:
        """Inputs, forward, backward, optimizer, zero_grad; outputs that the loop keeps live until the next forward."""
        tape, regime, setup, memory = self.tape, self.regime, self.memory.setup, self.memory
        inputs = [tape.take(INT64 * self.tokens) for _ in range(INPUTS)]
        inputs.append(tape.take(memory.mask_bytes(self.tokens)))
        x = tape.tensor(input_width(self.blocks[0]), regime.residual, setup.input_requires_grad)
        checkpoints: list[Tensor] = []
        escaped: list[int] = []  # from checkpointing: int8 inputs, until the graph goes with the loss
        for block in self.blocks:
            if regime.checkpointing:
                checkpoints.append(x if regime.offload_checkpoints else tape.hold(x))
                x = run_layer(tape, x, block, memory.regime_of(block), setup, memory.seq_len)
                tape.drop_returned()
                self._forget()
                escaped.append(tape.take(memory.escaped_bytes(block, self.tokens)))
                x.requires_grad = True
            else:
                x = run_layer(tape, x, block, memory.regime_of(block), setup, memory.seq_len)
                tape.drop_returned()
        top = tape.hold(x) if checkpoints else x
        loss, logits = run_head(tape, x, self.model, regime, setup, tokens=self.tokens)
        self.drop_outputs()
        self.logits = logits
        loss.grad = tape.alloc(0.0)
        tape.backward()
        tape.drop_graph()
        if checkpoints:
            self._backward_of_checkpoints(checkpoints, top)
        self._embedding_gradient()
        tape.give(*inputs, *escaped)
        tape.give(tape.take(memory.standing.temporary))
        if first:
            self._make_states()
        tape.give(*tape.gradients)
        tape.gradients.clear()

    def drop_outputs(self) -> None:
        """The loop lets go of what the model returned."""
        if self.logits is not None:
            self.tape.drop(self.logits)
            self.logits = None

    def _forget(self) -> None:
        """What a checkpointed layer saved in its first run is not kept."""
        for node in self.tape.nodes:
            for buffer in node.saved:
                self.tape.release(buffer)
        self.tape.nodes.clear()
        self.tape.drop_graph()

    def _backward_of_checkpoints(self, checkpoints: list[Tensor], top: Tensor) -> None:
        tape, regime, setup, memory = self.tape, self.regime, self.memory.setup, self.memory
        gradient, top.grad = top.grad, None
        tape.drop(top)
        for block, x in zip(reversed(self.blocks), reversed(checkpoints), strict=True):
            if regime.offload_checkpoints:  # back from host memory
                x = tape.tensor(x.width, x.itemsize, x.requires_grad)
            x.grad = None
            out = run_layer(tape, tape.hold(x), block, memory.regime_of(block), setup, memory.seq_len)
            tape.drop(out)
            tape.drop_returned()
            out.grad = gradient
            tape.backward()
            tape.drop_graph()
            gradient, x.grad = x.grad, None
            tape.drop(x)
        if gradient is not None:
            tape.release(gradient)

    def _embedding_gradient(self) -> None:
        """A dense gradient; of a tied head a second one, which is added into the first."""
        if not self.memory.method.trains_base:
            return
        n_bytes = self.model.embeddings[0].parameters * self.regime.base
        if self.model.tie_word_embeddings:
            self.tape.give(self.tape.take(n_bytes))
        else:
            self.tape.gradients.append(self.tape.take(n_bytes))

    def _make_states(self) -> None:
        """Adam's states appear in the first step, one pair per tensor."""
        optimizer = get_optimizer(self.plan.optimizer)
        for t in self.trained:
            itemsize = self.regime.trained if t.in_base else self.regime.adapter
            n_bytes = self.memory.method.state_bytes(t, optimizer, itemsize) / t.tensors
            for _ in range(t.tensors * max(optimizer.state_tensors, 1)):
                self.tape.take(n_bytes / max(optimizer.state_tensors, 1))

"""A run's steps, for the replay: all layers on a tape that allocates.

Order is everything here: each function follows what the loop, autograd and PEFT do one after the other.
"""

from dataclasses import dataclass, replace

from estimators.layer import forgets_cache, input_width, run_layer
from estimators.logits import evaluation_parts, run_head
from estimators.memory import MemoryModel
from estimators.offload import BUFFERS, MINIMUM_BYTES
from estimators.overhead import MULTIPLYING_THREADS
from estimators.replay_load import unrolled
from estimators.replay_tape import ReplayTape
from estimators.setup import LayerRun
from estimators.standing import tensor_itemsize
from estimators.tape import Buffer, Node, Tensor
from profiles.catalog import get_optimizer
from profiles.plan import Plan

INT64 = 8
INPUTS = 3  # ids, mask, labels


@dataclass(frozen=True, slots=True)
class _Checkpoint:
    """A layer to be run again: what it was given and returned, and the nodes of layers below that are not. moved: what
    it was given went to host memory."""

    run: LayerRun
    given: Tensor
    out: Tensor
    below: list[Node]
    moved: bool


@dataclass(slots=True)
class _Forward:
    """What a forward leaves. words: the embedding's output; copies: autocast's cache, to the end of forward; cached:
    keys and values; escaped: int8 inputs of checkpoints, until the graph goes."""

    words: Tensor
    out: Tensor
    checkpoints: list[_Checkpoint]
    copies: list[int]
    cached: list[int]
    escaped: list[Buffer]


class ReplayedRun:
    """A model that is loaded, and what its loop holds between steps."""

    def __init__(self, tape: ReplayTape, plan: Plan, memory: MemoryModel) -> None:
        self.tape = tape
        self.take_batch(plan, memory)
        self._accumulates = False  # gradients exist
        self._workspaces = 0
        self._penalty = 0  # AdaLoRA's
        self._offload_buffers = 0
        self._logits: Tensor | None = None
        self._cached: list[int] = []
        self._graph: list[Buffer] = []

    def take_batch(self, plan: Plan, memory: MemoryModel) -> None:
        """The next step runs this plan's micro-batch."""
        self.plan, self.memory, self.regime = plan, memory, memory.regime
        self.layers = unrolled(memory)
        self.tokens = self.tape.tokens = plan.micro_batch_size * memory.seq_len

    def forward_and_backward(self) -> None:
        """A micro-batch: inputs, forward, backward; outputs that the loop keeps live until the next forward."""
        tape, memory = self.tape, self.memory
        found = len(tape.gradients)
        self._accumulates = bool(found or memory.waiting)
        self._begin_to_multiply()
        inputs = [tape.take(INT64 * self.tokens) for _ in range(INPUTS)]
        inputs.append(tape.take(memory.mask_bytes(self.tokens)))
        forward = self._forward()
        checkpoints, words = forward.checkpoints, forward.words
        top = tape.hold(forward.out) if checkpoints else forward.out
        loss = self._loss(forward)
        if not (checkpoints and self.regime.loss == "chunked"):  # else nothing is multiplied before a layer runs again
            self._take_workspace(2)
        loss.grad = tape.alloc(0.0)
        self._backward_of_head()
        waiting = tape.gradients[found:] if found else []
        if checkpoints:
            tape.drop(top)
        if self._offloads:
            self._take_offload_buffer(forward.out)
        self._take_workspace(2)
        for checkpoint in reversed(checkpoints):
            self._backward_of(checkpoint)
        if words.grad is not None:
            tape.release(words.grad)
        if self._holds_words:
            tape.drop(words)
        self._embedding_gradient()
        for key in waiting:
            tape.gradients.remove(key)
        tape.give(*inputs, *waiting)
        self._let_go(forward.escaped)

    @property
    def _offloads(self) -> bool:
        bytes_a_token = input_width(self.layers[0].block) * self.regime.entry
        return self.regime.offload_checkpoints and bytes_a_token * self.tokens > MINIMUM_BYTES

    @property
    def _holds_words(self) -> bool:
        """Offloaded checkpoints of a frozen embedding's output: it is a leaf that gets a gradient."""
        return self._offloads and not self.memory.method.trains_base

    def _forward(self) -> _Forward:
        """The layers; the first run of a checkpointed one saves nothing: what it makes goes as soon as it is used."""
        tape, memory = self.tape, self.memory
        x = tape.tensor(input_width(self.layers[0].block), self.regime.entry, memory.setup.input_requires_grad)
        if self._holds_words:
            tape.hold(x)
        left = _Forward(words=x, out=x, checkpoints=[], copies=[], cached=[], escaped=[])
        for run in self.layers:
            if run.regime.checkpointing and run.reached:
                moved = self._offloads and len(left.checkpoints) < memory.checkpointed - 1
                given = x if moved else tape.hold(x)
                tape.records = False
                x = self._layer(run, x)
                tape.records = True
                tape.drop_returned()
                left.escaped += tape.leave_graph()
                x.requires_grad = True
                left.copies += self._cached_copies()
                left.checkpoints.append(_Checkpoint(run, given, x, tape.nodes, moved))
                tape.nodes = []
            else:
                tape.records = run.reached
                x = self._layer(run, x)
                tape.records = True
                tape.drop_returned()
                each = memory.cache_bytes(run.block) * self.tokens / 2
                left.cached += [tape.take(each) for _ in ("keys", "values")]
        left.out = x
        return left

    def _cached_copies(self) -> list[int]:
        """A checkpointed layer's share of autocast's half copies."""
        memory = self.memory
        if not memory.caches_copies:
            return []
        return [self.tape.take(n_bytes * tensors / memory.checkpointed) for n_bytes, tensors in memory.copied]

    def _loss(self, forward: _Forward) -> Tensor:
        """Head and loss; the outputs of the step before go as these take their place."""
        tape, memory, regime = self.tape, self.memory, self.regime
        tied = memory.method.trains_base and memory.model.tie_word_embeddings
        setup = replace(memory.setup, accumulates=self._accumulates and not tied)  # the head's waits for the words'
        loss, logits = run_head(tape, forward.out, memory.model, regime, setup, tokens=self.tokens)
        tape.give(*forward.copies)
        self.drop_outputs()
        self._logits, self._cached = logits, forward.cached
        if forgets_cache(regime, memory.setup):
            tape.drop_graph()
        self._penalty = tape.take(memory.penalty)
        return loss

    def _backward_of_head(self) -> None:
        """And of the layers above the first checkpoint. AdaLoRA's penalty has its gradients first: the layers' own are
        added to them."""
        tape, memory = self.tape, self.memory
        if memory.waiting:
            tape.gradients += [tape.take(n_bytes) for n_bytes in memory.trained_bytes()]
        self._backward()
        if memory.held_penalty:
            self._cached.append(self._penalty)
        else:
            tape.give(self._penalty)

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
        keys += [tape.take(n * length) for n in evaluation_parts(self.memory.model, self.regime)]
        tape.drop(x)
        tape.give(*keys)
        tape.tokens, tape.records = self.tokens, True

    def drop_outputs(self) -> None:
        """The loop lets go of what the model returned."""
        if self._logits is not None:
            self.tape.drop(self._logits)
            self._logits = None
        self.tape.give(*self._cached)
        self._cached = []
        for buffer in self._graph:
            self.tape.release(buffer)
        self._graph = []

    def _begin_to_multiply(self) -> None:
        """The first product makes the buffer that Unsloth's all share."""
        if not self._workspaces:
            self.tape.take(self.memory.shared_weight)
        self._take_workspace(1)

    def _take_workspace(self, threads: int) -> None:
        """cuBLAS' of each thread that multiplies: forward's, then autograd's."""
        while self._workspaces < threads:
            self.tape.take(self.memory.standing.workspace / MULTIPLYING_THREADS)
            self._workspaces += 1

    def _layer(self, run: LayerRun, x: Tensor) -> Tensor:
        setup = replace(run.setup, accumulates=self._accumulates)
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
            self._graph += of_graph
            return
        for buffer in of_graph:
            self.tape.release(buffer)

    def _take_offload_buffer(self, x: Tensor) -> None:
        """Each step takes one more, until there are all."""
        if self._offload_buffers < BUFFERS:
            self.tape.take(x.width * x.itemsize * self.tokens)
            self._offload_buffers += 1

    def _embedding_gradient(self) -> None:
        """A dense gradient; of a tied head a second one, which is added into the first."""
        if not self.memory.method.trains_base:
            return
        n_bytes = self.memory.model.embeddings[0].parameters * self.regime.base
        if self.memory.model.tie_word_embeddings or self._accumulates:
            self.tape.give(self.tape.take(n_bytes))
        else:
            self.tape.gradients.append(self.tape.take(n_bytes))

    def _make_states(self) -> None:
        """Adam's states appear in the first step, one pair per tensor."""
        optimizer = get_optimizer(self.plan.optimizer)
        for t in self.memory.trained:
            itemsize = tensor_itemsize(t, self.regime)
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
        sizes = self.memory.trained_bytes()
        tape.give(*[tape.take(temporary * n_bytes / sum(sizes)) for n_bytes in sizes])

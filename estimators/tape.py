"""A tape of one layer: which tensors eager PyTorch keeps, and which it makes on the way back, without PyTorch.

An operation allocates its outputs, saves what its derivative reads, and adds a node; `backward` walks the nodes in
reverse order of creation as the autograd engine does (torch/csrc/autograd/engine.cpp: by sequence number; saved tensors
are released after the node has run; a second gradient is added in place when nobody else holds the first).

Every size is a pair: bytes per token of the micro-batch, and bytes that do not depend on tokens (a dequantised weight,
a bf16 copy, a weight gradient). A peak over the walk is therefore an upper envelope of straight lines in the number of
tokens, and one walk serves all batch sizes.
"""

from collections.abc import Iterable, Sequence

Line = tuple[float, float]
NO_BYTES: Line = (0.0, 0.0)
Summed = tuple[float, float]  # rows a token and width of what is summed over all tokens


def upper_envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Drop every line that another one is never below (in both parts)."""
    best: list[Line] = []
    for line in sorted(set(lines), reverse=True):
        if not best or line[1] > best[-1][1]:
            best.append(line)
    return tuple(best)


Sums = tuple[tuple[Summed, tuple[Line, ...]], ...]


def _total(lines: Iterable[Line]) -> Line:
    per_token = constant = 0.0
    for a, b in lines:
        per_token += a
        constant += b
    return per_token, constant


class Buffer:
    """A storage: bytes per token, constant bytes, and how many hold it."""

    __slots__ = ("constant", "per_token", "refs")

    def __init__(self, per_token: float, constant: float) -> None:
        self.per_token = per_token
        self.constant = constant
        self.refs = 1


class Tensor:
    """A view on a buffer: `width` elements a token and `fixed` elements in all, of `itemsize` bytes, and its gradient
    while one is on the way."""

    __slots__ = ("buffer", "fixed", "grad", "itemsize", "requires_grad", "width")

    def __init__(self, buffer: Buffer, width: float, itemsize: int, requires_grad: bool, fixed: float = 0.0) -> None:
        self.buffer = buffer
        self.width = width
        self.fixed = fixed
        self.itemsize = itemsize
        self.requires_grad = requires_grad
        self.grad: Buffer | None = None


class Node:
    """An operation that backward goes through."""

    __slots__ = ("inputs", "output", "over_inputs", "passes", "pieces", "saved", "summed", "weight_grad")

    def __init__(
        self,
        output: Tensor,
        inputs: tuple[Tensor, ...],
        saved: Sequence[Buffer],
        passes: Sequence[Tensor],
        pieces: Sequence[Line],
        weight_grad: float,
        over_inputs: bool,
        summed: Summed | None,
    ) -> None:
        self.output = output
        self.over_inputs = over_inputs
        self.inputs = inputs
        self.saved = saved
        self.passes = passes
        self.pieces = pieces
        self.weight_grad = weight_grad
        self.summed = summed


class Tape:
    """Counts live bytes, and keeps the candidates for the highest point since the last `mark`: where memory has risen
    and is about to fall."""

    __slots__ = (
        "_before_last_save", "_kept", "_lines", "_rising", "_sums", "constant", "named", "nodes", "per_token",
        "recomputed", "records", "returned",
    )  # fmt: skip

    def __init__(self, *, records: bool = True) -> None:
        self.records = records  # not in the first run of a checkpointed layer: nothing is saved
        self.recomputed = False  # what backward reads comes from a checkpoint's second run
        self.per_token = 0.0
        self.constant = 0.0
        self.nodes: list[Node] = []
        self.returned: list[Tensor] = []  # what a layer hands out beside its result
        self.named: list[Tensor] = []  # what the layer's own function names until it returns
        self._kept: list[Buffer] = []
        self._lines: list[Line] = []
        self._sums: dict[Summed, list[Line]] = {}
        self._before_last_save = 0
        self._rising = False

    def mark(self) -> None:
        """Forget the highest points so far; start from what lives now."""
        self._lines = [(self.per_token, self.constant)]
        self._sums = {}
        self._before_last_save = 1
        self._rising = False

    def _note(self) -> None:
        if self._rising:
            self._lines.append((self.per_token, self.constant))
            self._rising = False

    def envelope(self) -> tuple[Line, ...]:
        """The lines since `mark` that can be highest for some number of tokens."""
        self._note()
        return upper_envelope(self._lines)

    def sums(self) -> Sums:
        """What is summed over tokens, each with the highest lines beside it since `mark`."""
        return tuple((summed, upper_envelope(lines)) for summed, lines in self._sums.items())

    def envelope_until_last_save(self) -> tuple[Line, ...]:
        """The same, but only until the last saving operation makes its output: a checkpoint run again stops there."""
        return upper_envelope(self._lines[: self._before_last_save])

    def alloc(self, per_token: float, constant: float = 0.0) -> Buffer:
        """A new buffer."""
        self.per_token += per_token
        self.constant += constant
        self._rising = True
        return Buffer(per_token, constant)

    def release(self, buffer: Buffer) -> None:
        """One holder less; the last one frees it."""
        buffer.refs -= 1
        if not buffer.refs:
            if self._rising:
                self._lines.append((self.per_token, self.constant))
                self._rising = False
            self.per_token -= buffer.per_token
            self.constant -= buffer.constant

    def scratch(self, *pieces: Line) -> None:
        """Allocations that are made and given back within one operation."""
        per_token, constant = _total(pieces)
        self._lines.append((self.per_token + per_token, self.constant + constant))
        self._rising = False

    def sum(self, summed: Summed, beside: Line) -> None:
        """A kernel sums over tokens with `beside` more bytes alive: its partial sums are no line in their number."""
        self._sums.setdefault(summed, []).append((self.per_token + beside[0], self.constant + beside[1]))

    def keep_gradient(self, n_bytes: float) -> None:
        """A parameter's gradient: it stays when the walk is over."""
        self.alloc(0.0, n_bytes)

    def adopt(self, buffer: Buffer) -> None:
        """What a forward made becomes a parameter's gradient: it stays when the walk is over."""
        buffer.refs += 1

    def tensor(self, width: float, itemsize: int, requires_grad: bool) -> Tensor:
        """A new tensor without history."""
        return Tensor(self.alloc(width * itemsize), width, itemsize, requires_grad)

    def drop(self, *tensors: Tensor) -> None:
        """Python lets go of these tensors."""
        for t in tensors:
            self.release(t.buffer)

    def drop_returned(self) -> None:
        """Nobody looks at what the layer returned beside its result."""
        self.drop(*self.returned)
        self.returned.clear()

    def drop_named(self) -> None:
        """The layer's function returns."""
        self.drop(*self.named)
        self.named.clear()

    def keep(self, buffer: Buffer) -> None:
        """A function keeps this on its own, not by save_for_backward: it goes with the graph, not with the node."""
        buffer.refs += 1
        self._kept.append(buffer)

    def pinned(self) -> float:
        """Bytes a token of what functions keep on their own."""
        return sum({id(b): b.per_token for b in self._kept}.values())

    def leave_graph(self) -> list[Buffer]:
        """Hand over what functions keep on their own, to be released by who holds the graph."""
        kept, self._kept = self._kept, []
        return kept

    def drop_graph(self) -> None:
        """Nobody holds the graph any more."""
        for buffer in self.leave_graph():
            self.release(buffer)

    def hold(self, tensor: Tensor) -> Tensor:
        """A view of the same storage (reshape, transpose): one more holder, the same gradient slot."""
        tensor.buffer.refs += 1
        return tensor

    def op(
        self,
        *inputs: Tensor,
        width: float,
        itemsize: int,
        fixed: float = 0.0,
        saved: Sequence[Buffer] = (),
        passes: Sequence[Tensor] = (),
        scratch: Line = NO_BYTES,
        pieces: Sequence[Line] = (),
        weight_grad: float = 0.0,
        trains: bool = False,
        over_inputs: bool = False,
        summed: Summed | None = None,
    ) -> Tensor:
        """An operation with a new output. Saves `saved` (fresh buffers are owned by the caller until it drops them).

        Inputs in `passes` get the output's gradient itself (an addition); the others a buffer of their own size.
        `scratch` (or `pieces`, where it is several allocations) is what the derivative takes beside its results,
        `weight_grad` what it leaves behind for good; `over_inputs`: each input's gradient is written over the input,
        which is saved. `summed`: the derivative ends with a sum over tokens, with the scratch still there.
        """
        needs_grad = trains
        for t in inputs:
            if t.requires_grad:
                needs_grad = True
                break
        records = needs_grad and self.records
        if records and saved:
            self._note()
            self._before_last_save = len(self._lines)
        out = Tensor(self.alloc(width * itemsize, fixed * itemsize), width, itemsize, needs_grad, fixed)
        if records:
            if scratch is not NO_BYTES:
                pieces = (scratch,)
            for buffer in saved:
                buffer.refs += 1
            self.nodes.append(Node(out, inputs, saved, passes, pieces, weight_grad, over_inputs, summed))
        return out

    def save_output(self, out: Tensor) -> None:
        """The last node keeps its own output `out`."""
        if out.requires_grad and self.records:
            node = self.nodes[-1]
            node.saved = (*node.saved, out.buffer)
            out.buffer.refs += 1

    def cast(self, x: Tensor, itemsize: int) -> Tensor:
        """`x.to(dtype)`: x itself (one more holder) if it has that size already."""
        if x.itemsize == itemsize:
            return self.hold(x)
        return self.op(x, width=x.width, fixed=x.fixed, itemsize=itemsize)

    def backward(self, *, until_saved: bool = False) -> None:
        """Walk back over the recorded nodes from the outputs that have a gradient.

        With `until_saved`, stop before the first node that reads a saved tensor: there a checkpoint runs again.
        """
        nodes = self.nodes
        while nodes:
            node = nodes[-1]
            grad = node.output.grad
            if grad is None:
                nodes.pop()
                self._free(node)
                continue
            if until_saved and node.saved:
                return
            nodes.pop()
            made = self._run(node, grad)
            self._free(node)
            for t, buffer in made:
                if t.grad is None:
                    t.grad = buffer
                else:
                    self._accumulate(t, t.grad, buffer)

    def _run(self, node: Node, grad: Buffer) -> list[tuple[Tensor, Buffer]]:
        passes, over = node.passes, node.over_inputs
        made = [
            (t, self.hold(t).buffer if over else self.alloc(t.width * t.itemsize, t.fixed * t.itemsize))
            for t in node.inputs
            if t.requires_grad and t not in passes
        ]
        if node.weight_grad:
            self.keep_gradient(node.weight_grad)
        if node.pieces:
            self.scratch(*node.pieces)
        if node.summed is not None:
            self.sum(node.summed, self._beside_sum(node))
        for t in passes:
            if t.requires_grad:
                grad.refs += 1
                made.append((t, grad))
        node.output.grad = None
        self.release(grad)
        return made

    def _beside_sum(self, node: Node) -> Line:
        """The engine sums (validate_outputs) when the function has returned. What a checkpoint made again for it has
        gone by then, what it had saved itself goes afterwards."""
        gone = [x for x in node.saved if x.refs == 1] if self.recomputed else []
        per_token, constant = _total(node.pieces)
        return per_token - sum(x.per_token for x in gone), constant - sum(x.constant for x in gone)

    def _free(self, node: Node) -> None:
        for buffer in node.saved:
            self.release(buffer)

    def _accumulate(self, t: Tensor, held: Buffer, buffer: Buffer) -> None:
        """InputBuffer::add: in place if one of the two is held by nobody else, else into a third."""
        if held is buffer or held.refs == 1:
            self.release(buffer)
        elif buffer.refs == 1:
            self.release(held)
            t.grad = buffer
        else:
            total = self.alloc(t.width * t.itemsize, t.fixed * t.itemsize)
            self.release(held)
            self.release(buffer)
            t.grad = total

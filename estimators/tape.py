"""A tape of one layer: which tensors eager PyTorch keeps, and which it makes on the way back, without PyTorch.

An operation allocates its outputs, saves what its derivative reads, and adds a node; `backward` walks the nodes in
reverse order of creation as the autograd engine does (torch/csrc/autograd/engine.cpp: by sequence number; saved tensors
are released after the node has run; a second gradient is added in place when nobody else holds the first).

Every size is a pair: bytes per token of the micro-batch, and bytes that do not depend on tokens (a dequantised weight,
a bf16 copy, a weight gradient). A peak over the walk is therefore an upper envelope of straight lines in the number of
tokens, and one walk serves all batch sizes.
"""

from collections.abc import Iterable

Line = tuple[float, float]


def upper_envelope(lines: Iterable[Line]) -> tuple[Line, ...]:
    """Drop every line that another one is never below (in both parts)."""
    best: list[Line] = []
    for line in sorted(set(lines), reverse=True):
        if not best or line[1] > best[-1][1]:
            best.append(line)
    return tuple(best)


class Buffer:
    """A storage: bytes per token, constant bytes, and how many hold it."""

    __slots__ = ("constant", "per_token", "refs")

    def __init__(self, per_token: float, constant: float) -> None:
        self.per_token = per_token
        self.constant = constant
        self.refs = 1


class Tensor:
    """A view on a buffer: `width` elements a token of `itemsize` bytes, and its gradient while one is on the way."""

    __slots__ = ("buffer", "grad", "itemsize", "requires_grad", "width")

    def __init__(self, buffer: Buffer, width: float, itemsize: int, requires_grad: bool) -> None:
        self.buffer = buffer
        self.width = width
        self.itemsize = itemsize
        self.requires_grad = requires_grad
        self.grad: Buffer | None = None


class _Node:
    __slots__ = ("grads", "output", "passes", "saved", "scratch", "weight_grad")

    def __init__(
        self,
        output: Tensor,
        saved: list[Buffer],
        grads: list[tuple[Tensor, float]],
        passes: list[Tensor],
        scratch: Line,
        weight_grad: float,
    ) -> None:
        self.output = output
        self.saved = saved
        self.grads = grads
        self.passes = passes
        self.scratch = scratch
        self.weight_grad = weight_grad


class Tape:
    """Counts live bytes. `lines` holds the candidates for the highest point since the last `mark`.

    `until_last_save` is how many of them stand before the last saving operation makes its output: there a checkpoint
    that is run again stops.
    """

    __slots__ = ("constant", "lines", "nodes", "per_token", "until_last_save")

    def __init__(self) -> None:
        self.until_last_save = 0
        self.per_token = 0.0
        self.constant = 0.0
        self.nodes: list[_Node] = []
        self.lines: list[Line] = []

    def mark(self) -> None:
        """Forget the highest points so far; start from what lives now."""
        self.lines = [(self.per_token, self.constant)]

    def envelope(self) -> tuple[Line, ...]:
        """The lines since `mark` that can be highest for some number of tokens."""
        return upper_envelope(self.lines)

    def alloc(self, per_token: float, constant: float = 0.0) -> Buffer:
        """A new buffer."""
        self.per_token += per_token
        self.constant += constant
        self.lines.append((self.per_token, self.constant))
        return Buffer(per_token, constant)

    def release(self, buffer: Buffer) -> None:
        """One holder less; the last one frees it."""
        buffer.refs -= 1
        if buffer.refs == 0:
            self.per_token -= buffer.per_token
            self.constant -= buffer.constant

    def scratch(self, per_token: float, constant: float = 0.0) -> None:
        """Memory that a kernel takes and gives back within one operation."""
        self.lines.append((self.per_token + per_token, self.constant + constant))

    def tensor(self, width: float, itemsize: int, requires_grad: bool) -> Tensor:
        """A new tensor without history."""
        return Tensor(self.alloc(width * itemsize), width, itemsize, requires_grad)

    def drop(self, *tensors: Tensor) -> None:
        """Python lets go of these tensors."""
        for t in tensors:
            self.release(t.buffer)

    def hold(self, tensor: Tensor) -> Tensor:
        """A view of the same storage (reshape, transpose): one more holder, the same gradient slot."""
        tensor.buffer.refs += 1
        return tensor

    def op(
        self,
        *inputs: Tensor,
        width: float,
        itemsize: int,
        saved: Iterable[Buffer] = (),
        passes: Iterable[Tensor] = (),
        scratch: Line = (0.0, 0.0),
        weight_grad: float = 0.0,
        grad_width: dict[int, float] | None = None,
        trains: bool = False,
    ) -> Tensor:
        """An operation with a new output. Saves `saved` (fresh buffers are owned by the caller until it drops them).

        Inputs in `passes` get the output's gradient itself (an addition); the others a buffer of their own size.
        `scratch` is what the derivative takes beside its results, `weight_grad` what it leaves behind for good.
        """
        needs = [t for t in inputs if t.requires_grad]
        kept = list(saved) if needs or trains else []
        if kept:
            self.until_last_save = len(self.lines)
        out = self.tensor(width, itemsize, bool(needs) or trains)
        if out.requires_grad:
            for buffer in kept:
                buffer.refs += 1
            through = [t for t in passes if t.requires_grad]
            grads = [(t, t.width * t.itemsize) for t in needs if t not in through]
            self.nodes.append(_Node(out, kept, grads, through, scratch, weight_grad))
        return out

    def cast(self, x: Tensor, itemsize: int) -> Tensor:
        """`x.to(dtype)`: x itself (one more holder) if it has that size already."""
        if x.itemsize == itemsize:
            return self.hold(x)
        return self.op(x, width=x.width, itemsize=itemsize)

    def backward(self, *, until_saved: bool = False) -> None:
        """Walk back over the recorded nodes from the outputs that have a gradient.

        With `until_saved`, stop before the first node that reads a saved tensor: there a checkpoint runs again.
        """
        while self.nodes:
            node = self.nodes[-1]
            grad = node.output.grad
            if until_saved and node.saved and grad is not None:
                return
            self.nodes.pop()
            if grad is not None:
                made = self._run(node, grad)
                self._free(node)
                for t, buffer in made:
                    self._accumulate(t, buffer)
            else:
                self._free(node)

    def _run(self, node: _Node, grad: Buffer) -> list[tuple[Tensor, Buffer]]:
        made = [(t, self.alloc(n_bytes)) for t, n_bytes in node.grads]
        if node.weight_grad:
            self.alloc(0.0, node.weight_grad)
        if node.scratch != (0.0, 0.0):
            self.scratch(*node.scratch)
        for t in node.passes:
            grad.refs += 1
            made.append((t, grad))
        node.output.grad = None
        self.release(grad)
        return made

    def _free(self, node: _Node) -> None:
        for buffer in node.saved:
            self.release(buffer)

    def _accumulate(self, t: Tensor, buffer: Buffer) -> None:
        """InputBuffer::add: in place if one of the two is held by nobody else, else into a third."""
        if t.grad is None:
            t.grad = buffer
        elif t.grad.refs == 1:
            self.release(buffer)
        elif buffer.refs == 1:
            self.release(t.grad)
            t.grad = buffer
        else:
            total = self.alloc(t.width * t.itemsize)
            self.release(t.grad)
            self.release(buffer)
            t.grad = total

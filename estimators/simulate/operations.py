"""Operations of one step as work: what each multiplies and moves. Filled by the tracker, priced by `speed`.

The child's side: torch is imported here. An operation that launches no kernel on the device is none.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from estimators.flops import ATTENTION_BACKWARD, FLOPS_PER_WEIGHT
from estimators.simulate.kernels import GEMM_4BIT_MAX_ROWS
from estimators.simulate.result import Operation, OperationKind, OperationStage
from estimators.step_time import NF4_BYTES

NO_KERNEL = frozenset(
    {
        "aten::_unsafe_view", "aten::empty", "aten::empty_like", "aten::empty_strided", "aten::lift_fresh",
        "aten::new_empty", "aten::new_empty_strided", "aten::record_stream", "aten::resize_", "aten::set_",
    }
)  # fmt: skip
# Read as much of their first argument as they write, not all of it
GATHERING = frozenset({"aten::embedding", "aten::gather", "aten::index", "aten::index_select"})
# Overwrite what they are given without reading it
FILLING = frozenset({"aten::zero_", "aten::fill_", "aten::copy_", "aten::zeros_like", "aten::ones_like",
                     "aten::full_like", "aten::new_zeros", "aten::new_ones", "aten::new_full"})  # fmt: skip
MANY = ("aten::_foreach", "aten::_fused")  # work on lists of tensors, element by element


class _Work(NamedTuple):
    """The part of an Operation that is the same for all of its calls."""

    kind: OperationKind
    n_bytes: int
    tensor_bytes: int
    itemsize: int
    flops: float = 0.0
    tokens: int = 0
    n_in: int = 0
    n_out: int = 0
    copies: int = 1
    tensors: int = 0


class Tally:
    """Counts operations. An operation of layer `repeated` stands for `times` layers of the whole model."""

    def __init__(self, *, repeated: int, times: int) -> None:
        self.repeated, self.times = repeated, times
        self._counts: Counter[tuple[OperationStage, _Work]] = Counter()

    def restart(self) -> None:
        """Forget the forward and backward passes counted so far: the micro-batch that follows is like them."""
        for key in [k for k in self._counts if k[0] in ("forward", "backward")]:
            del self._counts[key]

    def count(
        self, func: Any, args: Sequence[Any], kwargs: Any, out: Any, *, stage: OperationStage, layers: Sequence[int]
    ) -> None:
        """Add one call. layers: that of the whole call, or of each tensor of its first argument, a list."""
        name = func._schema.name
        if func.is_view or name in NO_KERNEL or not name.startswith(("aten::", "bitsandbytes::")):
            return
        weights = [self.times if layer == self.repeated else 1 for layer in layers]
        for work, weight in _works(func, name, args, kwargs, out, weights):
            self._counts[stage, work] += weight

    def count_product(self, a: torch.Tensor, b: torch.Tensor, stage: OperationStage) -> None:
        """Add a product outside of the layers that was not dispatched."""
        for work in _mm(a, b):
            self._counts[stage, work] += 1

    def operations(self) -> tuple[Operation, ...]:
        """What was counted, the largest number of bytes first."""
        found = (Operation(stage=stage, n=n, **work._asdict()) for (stage, work), n in self._counts.items())
        return tuple(sorted(found, key=lambda o: -o.n * o.n_bytes))


def _works(
    func: Any, name: str, args: Sequence[Any], kwargs: Any, out: Any, weights: list[int]
) -> Iterator[tuple[_Work, int]]:
    """(work, calls) of one call."""
    if name.startswith(MANY):
        each = weights if len(weights) == len(args[0]) else weights * len(args[0])
        moved = [_moved(func, name, [_element(x, i, len(each)) for x in args]) for i in range(len(each))]
        n_bytes = sum(n * w for n, w in zip(moved, each, strict=True))
        yield _Work("elementwise", n_bytes, max(moved), args[0][0].element_size(), tensors=sum(each)), 1
        return
    leaves = _tensors((args, *kwargs.values(), out))
    if not any(x.device.type == "cuda" for x in leaves):
        return
    special = _MATMULS.get(name) or _SPECIAL.get(name)
    if special is not None:
        yield from ((work, weights[0]) for work in special(args, out))
        return
    n_bytes = _moved(func, name, args, out)
    if n_bytes:
        largest = max(_resident(x) for x in leaves)
        yield _Work("elementwise", n_bytes, largest, leaves[0].element_size()), weights[0]


def _element(argument: Any, i: int, length: int) -> Any:
    return argument[i] if isinstance(argument, list | tuple) and len(argument) == length else None


def _resident(tensor: torch.Tensor) -> int:
    """Bytes of memory behind a tensor's elements: an expanded one repeats them."""
    n_bytes: int = min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())
    return n_bytes


def _moved(func: Any, name: str, args: Sequence[Any], out: Any = None) -> int:
    """Bytes read and written: arguments once, results once, and again what is changed in place."""
    written = sum(_resident(x) for x in _tensors(out))
    if name in GATHERING:
        return 2 * written
    changed = _changed(func).intersection(range(len(args)))
    read = 0
    for i, argument in enumerate(args):
        size = sum(_resident(x) for x in _tensors(argument))
        if name not in FILLING or (name == "aten::copy_" and i not in changed):
            read += size
        if i in changed:
            read += size
    in_place = bool(changed)  # what comes back is an argument
    return read + (0 if in_place else written)


@cache
def _changed(func: Any) -> frozenset[int]:
    """Which arguments an operation writes to."""
    marks = enumerate(argument.alias_info for argument in func._schema.arguments)
    return frozenset(i for i, mark in marks if mark is not None and mark.is_write)


def _tensors(value: Any) -> list[torch.Tensor]:
    """The tensors in what an operation takes or returns."""
    if isinstance(value, torch.Tensor):
        return [value]
    return [x for each in value for x in _tensors(each)] if isinstance(value, list | tuple) else []


# -- operations with a price of their own


def _product(tokens: int, n_in: int, n_out: int, x: torch.Tensor, copies: int = 1) -> _Work:
    size = x.element_size()
    n_bytes = size * (copies * n_in * n_out + tokens * (n_in + n_out))
    return _Work(
        "matmul", n_bytes, n_bytes, size, flops=float(FLOPS_PER_WEIGHT * tokens * n_in * n_out), tokens=tokens,
        n_in=n_in, n_out=n_out, copies=copies,
    )  # fmt: skip


def _mm(a: torch.Tensor, b: torch.Tensor) -> Iterator[_Work]:
    yield _product(a.shape[0], a.shape[1], b.shape[-1] if b.dim() > 1 else 1, a)


def _bmm(a: torch.Tensor, b: torch.Tensor) -> Iterator[_Work]:
    yield _product(a.shape[0] * a.shape[1], a.shape[2], b.shape[2], a, copies=a.shape[0])


def _grouped_mm(args: Sequence[Any], out: Any) -> Iterator[_Work]:
    a, b = args[0], args[1]
    if a.dim() == 2 and b.dim() == 3:  # rows of a go to their group's matrix
        yield _product(a.shape[0], a.shape[1], b.shape[2], a, copies=min(b.shape[0], a.shape[0]))
    else:  # a weight's gradient: each group's rows multiply each other
        yield _product(a.shape[-2] * out.shape[0], a.shape[-1] // out.shape[0], b.shape[-1], a, copies=out.shape[0])


def _gemm_4bit(args: Sequence[Any], out: Any) -> Iterator[_Work]:
    x, shape = args[0], args[2]
    n_out, n_in = shape
    rows = x.numel() // x.shape[-1]
    written = x.element_size() if rows > GEMM_4BIT_MAX_ROWS else 0
    n_bytes = round(n_out * n_in * (NF4_BYTES + written))
    yield _Work("dequantize", n_bytes, n_bytes, x.element_size())
    yield _product(rows, n_in, n_out, x)


def _dequantize(args: Sequence[Any], out: Any) -> Iterator[_Work]:
    made = out if isinstance(out, torch.Tensor) else args[-1]
    n_bytes = round(made.numel() * (NF4_BYTES + made.element_size()))
    yield _Work("dequantize", n_bytes, n_bytes, made.element_size())


def _int8_matmul(args: Sequence[Any], out: Any) -> Iterator[_Work]:
    codes, weight = args[1], args[2]
    rows = codes.numel() // codes.shape[-1]
    yield _product(rows, codes.shape[-1], weight.shape[0], args[0])._replace(kind="int8_matmul")


def _attention(kind: OperationKind, first: int, passes: float) -> Any:
    """Attention over q, k, v from argument `first` on; causal kernels skip half of the scores."""

    def work(args: Sequence[Any], out: Any) -> Iterator[_Work]:
        q, k, v = args[first : first + 3]
        batch, heads, length, width = q.shape
        keys = k.shape[2] if length != k.shape[2] else length / 2
        flops = FLOPS_PER_WEIGHT * batch * heads * length * keys * (width + v.shape[-1]) * passes
        n_bytes = sum(_resident(x) for x in (q, k, v, q)) * (2 if first else 1)
        yield _Work(kind, n_bytes, _resident(q), q.element_size(), flops=flops, tokens=length)

    return work


_MATMULS: dict[str, Any] = {
    "aten::mm": lambda args, out: _mm(args[0], args[1]),
    "aten::mv": lambda args, out: _mm(args[0], args[1]),
    "aten::addmm": lambda args, out: _mm(args[1], args[2]),
    "aten::addmv": lambda args, out: _mm(args[1], args[2]),
    "aten::bmm": lambda args, out: _bmm(args[0], args[1]),
    "aten::baddbmm": lambda args, out: _bmm(args[1], args[2]),
    "aten::_grouped_mm": _grouped_mm,
}
_SPECIAL: dict[str, Any] = {
    "bitsandbytes::gemm_4bit": _gemm_4bit,
    "bitsandbytes::dequantize_4bit": _dequantize,
    "bitsandbytes::dequantize_blockwise": _dequantize,
    "bitsandbytes::int8_mixed_scaled_mm": _int8_matmul,
    "bitsandbytes::int8_scaled_mm": _int8_matmul,
    "aten::_scaled_dot_product_flash_attention": _attention("flash", 0, 1),
    "aten::_scaled_dot_product_efficient_attention": _attention("efficient", 0, 1),
    "aten::_scaled_dot_product_flash_attention_backward": _attention("flash", 1, ATTENTION_BACKWARD),
    "aten::_scaled_dot_product_efficient_attention_backward": _attention("efficient", 1, ATTENTION_BACKWARD),
}

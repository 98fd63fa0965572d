"""Memo: what operations on fake tensors returned, by the metadata of their arguments.

A layer's operations are those of the layer before. FakeTensorMode remembers results as well, but in a compiler's
detail: a third of a trace's time went into its keys, and it remembers neither reshaped products (aten::_unsafe_view)
nor anything of bitsandbytes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch._subclasses.fake_tensor import FakeTensor

LIBRARIES = ("aten::", "bitsandbytes::")
PLAIN = (bool, int, float, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)
UNFIT = frozenset({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape, torch.Tag.inplace_view})


class _UnfitError(Exception):
    """This call cannot be remembered."""


class _Made(NamedTuple):
    """A tensor that an operation made, on the storage of its argument number `source` (None: on a new one)."""

    source: int | None
    shape: torch.Size
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device
    attributes: dict[str, Any]


class _Same(NamedTuple):
    """The argument of this number itself."""

    source: int


class Memo:
    """Runs operations under a FakeTensorMode, and each kind only once."""

    def __init__(self) -> None:
        self._fit: dict[Any, bool] = {}
        self._known: dict[Any, tuple[type | None, list[Any]] | None] = {}

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Return what `func(*args, **kwargs)` would."""
        fit = self._fit.get(func)
        if fit is None:
            fit = self._fit[func] = func._schema.name.startswith(LIBRARIES) and UNFIT.isdisjoint(func.tags)
        if not fit:
            return func(*args, **kwargs)
        tensors: list[FakeTensor] = []
        try:
            key = (func, torch.get_default_dtype(), _key(args, tensors), _key((*kwargs, *kwargs.values()), tensors))
        except _UnfitError:
            return func(*args, **kwargs)
        if key not in self._known:
            out = func(*args, **kwargs)
            self._known[key] = _described(out, tensors)
            return out
        known = self._known[key]
        if known is None:
            return func(*args, **kwargs)
        container, described = known
        with torch._C._DisableTorchDispatch():
            out = [_again(each, tensors) for each in described]
        return out[0] if container is None else container(out)


def _key(values: Sequence[Any], tensors: list[FakeTensor]) -> tuple[Any, ...]:
    """What decides on a result; the tensors among the values are put into `tensors`."""
    key: list[Any] = []
    for value in values:
        if isinstance(value, FakeTensor):
            if not _is_plain(value):
                raise _UnfitError
            tensors.append(value)
            key += (value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device)
        elif isinstance(value, list | tuple):
            key.append(_key(value, tensors))
        elif isinstance(value, PLAIN):
            key += (type(value), value)  # 1 and 1.0 are equal
        else:
            raise _UnfitError
    return tuple(key)


def _is_plain(tensor: FakeTensor) -> bool:
    """Whether shape, strides, offset, type and device say all: no known value, no bit for a delayed conjugation."""
    strided = tensor.layout is torch.strided
    return strided and tensor.constant is None and not tensor.is_complex() and not tensor.is_neg()


def _described(out: Any, tensors: Sequence[FakeTensor]) -> tuple[type | None, list[Any]] | None:
    """The type that holds the results (None: there is one, bare) and each of them; None: not to be made again."""
    container = type(out) if isinstance(out, list | tuple) else None
    made: set[int] = set()
    try:
        return container, [_describe(each, tensors, made) for each in (out if container else [out])]
    except _UnfitError:
        return None


def _describe(result: Any, tensors: Sequence[FakeTensor], made: set[int]) -> Any:
    """made: new storages so far; two results on one of them cannot be told from two on two."""
    if isinstance(result, PLAIN):
        return result
    for i, tensor in enumerate(tensors):
        if result is tensor:
            return _Same(i)
    if not isinstance(result, FakeTensor) or not _is_plain(result):
        raise _UnfitError
    storage = result.untyped_storage()
    source = next((i for i, x in enumerate(tensors) if x.untyped_storage()._cdata == storage._cdata), None)
    stride, offset = result.stride(), result.storage_offset()
    if source is None:
        reach = 1 + sum((n - 1) * step for n, step in zip(result.shape, stride, strict=True)) if result.numel() else 0
        if storage._cdata in made or offset or storage.nbytes() != reach * result.element_size():
            raise _UnfitError
        made.add(storage._cdata)
    return _Made(source, result.shape, stride, offset, result.dtype, result.fake_device, dict(vars(result)))


def _again(described: Any, tensors: Sequence[FakeTensor]) -> Any:
    if isinstance(described, _Same):
        return tensors[described.source]
    if not isinstance(described, _Made):
        return described
    source, shape, stride, offset, dtype, device, attributes = described
    if source is None:
        meta = torch.empty_strided(shape, stride, dtype=dtype, device="meta")
    else:
        meta = torch.empty(0, dtype=dtype, device="meta").set_(tensors[source].untyped_storage(), offset, shape, stride)
    fake = torch.Tensor._make_subclass(FakeTensor, meta, dispatch_device=True, device_for_backend_keys=device)
    vars(fake).update(attributes)
    return fake

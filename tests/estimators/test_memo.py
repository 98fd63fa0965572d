"""The memo of fake operations: what it makes again is what FakeTensorMode made."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from estimators.simulate.memo import Memo

aten = torch.ops.aten


class Counting(TorchDispatchMode):
    """Counts the operations that are dispatched."""

    n = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.n += 1
        return func(*args, **kwargs or {})


@pytest.fixture
def fake():
    with FakeTensorMode():
        yield


def half(*shape: int) -> torch.Tensor:
    return torch.empty(*shape, dtype=torch.bfloat16)


def described(out, args) -> list:
    """All that a caller can see of the results, and of whose storage each has."""
    storages = [x.untyped_storage()._cdata for x in args if isinstance(x, torch.Tensor)]
    found: list = [type(out) if isinstance(out, list | tuple) else None]
    for each in out if isinstance(out, list | tuple) else [out]:
        if not isinstance(each, torch.Tensor):
            found.append(each)
            continue
        same = [i for i, x in enumerate(args) if x is each]
        storage = each.untyped_storage()
        shared = [i for i, s in enumerate(storages) if s == storage._cdata]
        metadata = (each.shape, each.stride(), each.storage_offset(), each.dtype, each.device, storage.nbytes())
        found.append((type(each), metadata, same, shared, each.requires_grad, each.is_conj(), vars(each).keys()))
    return found


CALLS = {
    "product": lambda: (aten.mm.default, (half(4, 8), half(8, 3)), {}),
    "product of a transposed one": lambda: (aten.mm.default, (half(4, 8), half(3, 8).t()), {}),
    "view": lambda: (aten.view.default, (half(4, 8), [2, 2, 8]), {}),
    "reshaped product": lambda: (aten._unsafe_view.default, (half(4, 8), [32]), {}),
    "transposed": lambda: (aten.t.default, (half(4, 8),), {}),
    "slice": lambda: (aten.slice.Tensor, (half(4, 8), 0, 1, 3), {}),
    "slice of a slice": lambda: (aten.slice.Tensor, (half(9, 8)[2:], 0, 1, 3), {}),
    "expanded": lambda: (aten.expand.default, (half(1, 8), [4, 8]), {}),
    "detached": lambda: (aten.detach.default, (half(4, 8),), {}),
    "parts": lambda: (aten.split.Tensor, (half(4, 8), 2), {}),
    "dropout": lambda: (aten.native_dropout.default, (half(4, 8), 0.1, True), {}),
    "in place": lambda: (aten.add_.Tensor, (half(4, 8), half(4, 8)), {}),
    "cast": lambda: (aten._to_copy.default, (half(4, 8),), {"dtype": torch.float32}),
    "made": lambda: (aten.empty.memory_format, ([3, 5],), {"dtype": torch.int8, "device": torch.device("cpu")}),
    "list": lambda: (aten.cat.default, ([half(4, 8), half(2, 8)],), {}),
    "list in place": lambda: (aten._foreach_mul_.Scalar, ([half(4, 8), half(2, 8)], 0.5), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_what_is_remembered_is_what_was_made(fake, name):
    memo = Memo()
    func, args, kwargs = CALLS[name]()
    expected = described(func(*args, **kwargs), args)
    assert described(memo.run(func, args, kwargs), args) == expected
    func, args, kwargs = CALLS[name]()  # other tensors, alike
    with Counting() as counting:
        again = memo.run(func, args, kwargs)
    assert counting.n == 0
    assert described(again, args) == expected


def test_numbers_of_other_types_are_other_calls(fake):
    memo = Memo()
    integers = torch.ones(3, dtype=torch.long)
    assert memo.run(aten.mul.Tensor, (integers, 1), {}).dtype is torch.long
    assert memo.run(aten.mul.Tensor, (integers, 1.0), {}).dtype is torch.float32


def test_the_default_type_is_part_of_a_call(fake):
    memo = Memo()
    assert memo.run(aten.ones.default, ([3],), {}).dtype is torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert memo.run(aten.ones.default, ([3],), {}).dtype is torch.float64
    finally:
        torch.set_default_dtype(torch.float32)


def test_a_delayed_conjugation_is_never_lost(fake):
    memo = Memo()
    for _ in range(2):
        turned = memo.run(aten._conj.default, (torch.empty(3, dtype=torch.complex64),), {})
        assert turned.is_conj()


def test_what_depends_on_data_runs_each_time(fake):
    memo = Memo()
    for value in (1.0, 2.0):
        known = torch.tensor(value)
        assert memo.run(aten._local_scalar_dense.default, (known,), {}) == value
        assert memo.run(aten.add.Tensor, (known, known), {}).item() == 2 * value


def test_results_train(fake):
    """Autograd goes through what was made again."""
    memo = Memo()

    class Remembering(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return memo.run(func, args, kwargs or {})

    with Remembering():
        for _ in range(2):
            weight = torch.nn.Parameter(torch.ones(3, 8))
            (torch.ones(4, 8) @ weight.t()).square().mean().backward()
            assert weight.grad is not None
            assert weight.grad.shape == weight.shape

"""Partial sums of a reduction over tokens: the figures of an H200 were read from its allocator (torch 2.11)."""

from types import SimpleNamespace

import pytest

from estimators.simulate.kernels import scratch
from estimators.tape import Tape
from estimators.vector_sum import resident_threads, vector_sum
from profiles.catalog import find_gpu
from profiles.units import MIB

H200 = resident_threads(find_gpu("h200"))


@pytest.mark.parametrize(("rows", "width", "mib"), [(4096, 8192, 132), (4096, 4096, 128), (1024, 4096, 32)])
def test_partial_sums_of_an_h200(rows: int, width: int, mib: int) -> None:
    assert vector_sum(rows, width, H200) == mib * MIB


def test_few_tokens_and_cpus_take_none() -> None:
    assert vector_sum(1000, 4096, H200) == 0  # fewer than 256 values a thread
    assert vector_sum(0, 4096, H200) == 0
    assert vector_sum(4096, 4096, 0) == 0


def test_more_tokens_than_the_card_has_threads_for() -> None:
    most = vector_sum(100 * 64, 4096, H200)
    assert vector_sum(2 * 100 * 64, 4096, H200) == most == 4 * H200 * 128
    assert vector_sum(100_000, 4096, H200) > most  # no thread adds more than 256 values


def test_a_small_card_takes_less() -> None:
    t4 = resident_threads(find_gpu("t4"))
    assert t4 == 40 * 1024
    assert vector_sum(4096, 4096, t4) == 4 * t4 * 128 == 20 * MIB


def test_narrow_and_odd_widths() -> None:
    assert vector_sum(1 << 17, 128, H200) == 4 * 128 * 2048 * 32 * 4  # a head's norm: one column of blocks
    assert vector_sum(4096, 4095, H200) == 4 * 4095 * 5 * 32  # one output a thread, 32 x 16 threads a block


def test_the_simulated_sum_is_over_leading_dimensions() -> None:
    def tensor(*shape: int, cuda: bool = True) -> SimpleNamespace:
        return SimpleNamespace(shape=shape, dim=lambda: len(shape), is_cuda=cuda, is_contiguous=lambda: True)

    name, x = "aten::sum", tensor(2, 2048, 4096)
    assert scratch(name, (x, [0, 1], True), {}, H200) == (128 * MIB,)
    assert scratch(name, (x, [2]), {}, H200) == ()
    assert scratch(name, (x, [1]), {}, H200) == ()
    assert scratch(name, (x,), {}, H200) == ()
    assert scratch(name, (x, [0, 1, 2]), {}, H200) == ()
    assert scratch(name, (tensor(2, 2048, 4096, cuda=False), [0, 1]), {}, H200) == ()


def test_the_tape_notes_what_lives_beside_a_sum() -> None:
    tape = Tape()
    x = tape.tensor(4, 2, True)
    y = tape.op(x, width=4, itemsize=2, saved=[x.buffer], scratch=(16.0, 5.0), summed=(1.0, 4.0), trains=True)
    tape.drop(x, y)
    y.grad = tape.alloc(8)
    tape.mark()
    tape.backward()
    ((summed, lines),) = tape.sums()
    assert summed == (1.0, 4.0)
    assert lines == ((8 + 8 + 8 + 16, 5.0),)  # x, its gradient, y's, the scratch

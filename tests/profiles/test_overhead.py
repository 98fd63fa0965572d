"""What a CUDA process holds besides tensors: rows by compute capability."""

import pytest

from estimators.overhead import context_bytes, cublas_workspace, workspace_bytes
from profiles.catalog import find_gpu, get_overhead
from profiles.units import MIB


@pytest.mark.parametrize(
    ("capability", "row", "expected"),
    [
        ((7, 5), "workspace/any", 8_519_680),
        ((8, 9), "workspace/any", 8_519_680),
        ((9, 0), "workspace/9.0", 32 * MIB),
        ((12, 0), "workspace/9.0", 32 * MIB),
    ],
)
def test_a_workspace_grows_from_hopper_on(capability: tuple[int, int], row: str, expected: int) -> None:
    assert get_overhead("workspace", capability).id == row
    assert cublas_workspace(capability) == expected


def test_a_row_of_one_capability_is_not_another_s() -> None:
    assert get_overhead("context", (7, 5)).id == "context/7.5"
    assert get_overhead("context", (8, 0)).id == "context/any"
    assert get_overhead("context", (10, 0)).id == get_overhead("context", (9, 0)).id == "context/9.0"
    assert all(get_overhead(kind, (7, 5)).source.url for kind in ("context", "workspace"))


def test_a_cpu_has_neither() -> None:
    t4 = find_gpu("t4")
    cpu = t4.replace(vendor="CPU", compute_capability=None)
    assert workspace_bytes(cpu) == context_bytes(cpu).high == 0
    assert workspace_bytes(t4) == 2 * 8_519_680
    assert context_bytes(t4).expected == 141 * MIB

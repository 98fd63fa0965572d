"""The formulas against what the simulated tier said of cells drawn over all axes (benchmarks/grid.py)."""

from statistics import median

import pytest

from benchmarks.grid import compare, recorded

CELLS, MEDIAN, WITHIN_4_PERCENT, UNDER = 3000, 0.0012, 0.99, -0.03
MISCOUNTED = {"adalora", "lora"}  # AdaLoRA's rank counters before a base moves; Unsloth's experts


@pytest.mark.thorough
def test_formulas_do_not_drift_from_the_recorded_cells() -> None:
    found = list(compare(recorded(), replayed=False))
    errors = [c.allocated for c in found]
    assert len(errors) >= CELLS
    assert median(abs(e) for e in errors) <= MEDIAN
    assert sum(abs(e) <= 0.04 for e in errors) >= WITHIN_4_PERCENT * len(errors)
    low = [c for c in found if c.allocated < UNDER]  # without the allocator's blocks, which the answer counts
    assert len(low) <= 0.002 * len(found)
    assert min(c.allocated for c in compare({c.cell.name: c.row for c in low}, replayed=True)) >= UNDER
    miscounted = [c for c in found if c.trained]
    assert {c.cell.fields["method"] for c in miscounted} <= MISCOUNTED
    assert sum(c.cell.fields["method"] == "lora" for c in miscounted) <= 3

"""The formulas against what the simulated tier said of cells drawn over all axes (benchmarks/grid.py)."""

from statistics import median

from benchmarks.grid import compare, recorded

# Where the formulas stand today, not where they shall: the aim is a median of 0.5 % and nothing under by more than 3 %.
MEDIAN, WITHIN_4_PERCENT = 0.003, 0.9


def test_formulas_do_not_drift_from_the_recorded_cells() -> None:
    sizes = [abs(c.allocated) for c in compare(recorded(), replayed=False)]
    assert len(sizes) >= 360
    assert median(sizes) <= MEDIAN
    assert sum(size <= 0.04 for size in sizes) >= WITHIN_4_PERCENT * len(sizes)

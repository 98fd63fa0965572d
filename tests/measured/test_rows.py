"""Published runs as plans: all are read, those that cannot be expressed say why, units are converted once."""

from collections import Counter

import pytest

from benchmarks.model_configs import CONFIGS, model_spec
from benchmarks.rows import RUNS, MeasuredRow, load_rows
from profiles.catalog import find_gpu
from profiles.units import GIB


@pytest.fixture(scope="module")
def rows() -> list[MeasuredRow]:
    return load_rows()


def named(rows: list[MeasuredRow], start: str) -> MeasuredRow:
    return next(row for row in rows if row.id.startswith(start))


def test_every_row_is_a_plan_or_has_a_reason(rows: list[MeasuredRow]) -> None:
    assert len(rows) == len(RUNS.read_text(encoding="utf-8").splitlines()) == 899
    assert all((row.plan is None) == bool(row.skipped) for row in rows)
    assert sum(not row.skipped for row in rows) >= 550
    assert len(Counter(row.source for row in rows)) == 15
    assert {row.quality for row in rows} == {"A"}


def test_every_plan_names_a_card_and_a_model_that_exist(rows: list[MeasuredRow]) -> None:
    used = [row for row in rows if row.plan is not None]
    for gpu_id in {row.gpu_id for row in used}:
        assert gpu_id is not None
        assert find_gpu(gpu_id).id == gpu_id
    assert {row.model_ref for row in used} <= set(CONFIGS)


@pytest.mark.parametrize(
    ("ref", "billions"),
    [  # params_b as the sources print them
        ("llama-3.2-3b", 3.212749824),
        ("mixtral-8x7b", 46.702792704),
        ("mistral-7b", 7.241732096),
        ("llama-3.1-8b", 8.030261248),
        ("qwen-1.8b", 1.837),
        ("mpt-13b", 12.854),
        ("mpt-125m", 0.1241),
    ],
)
def test_shapes_give_the_published_parameter_counts(ref: str, billions: float) -> None:
    assert model_spec(ref).parameters / 10**9 == pytest.approx(billions, rel=0.012)


def test_units_are_converted_once(rows: list[MeasuredRow]) -> None:
    peft = named(rows, "peft-mmqa-lora-llama-3.2-3B-rank32-20260715")
    assert peft.measured["tokens_per_second"] == pytest.approx(7174, abs=1)
    assert 20 * GIB < peft.measured["reserved_bytes"] < 22 * GIB
    assert peft.plan is not None
    assert peft.speed_plan is not None
    assert (peft.plan.seq_len, peft.speed_plan.seq_len) == (676, 216)
    assert "allocated_bytes" not in peft.measured
    t4 = named(rows, "fitcheck-38-")
    assert t4.measured["allocated_bytes"] == pytest.approx(3.6668 * GIB)
    assert t4.measured["backward_peak_bytes"] == pytest.approx(t4.measured["allocated_bytes"], rel=1e-4)
    assert t4.measured["device_bytes"] > t4.measured["reserved_bytes"] > t4.measured["allocated_bytes"]


def test_out_of_memory_rows_are_kept(rows: list[MeasuredRow]) -> None:
    oom = [row for row in rows if row.measured["oom"]]
    assert len(oom) >= 30
    assert all("tokens_per_second" not in row.measured for row in oom)

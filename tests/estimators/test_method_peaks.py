"""The analytic tier against the simulated one, for every method: tests/golden/method_peaks.json.

The simulated tier ran PEFT's and transformers' own code on fake tensors (`python -m benchmarks.method_peaks`). What is
left of the difference is mostly the first layer, which without checkpointing keeps less than the others: the analytic
tier counts it as one of them, one part in twenty of a real model's depth.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from estimators.memory import estimate_memory
from estimators.methods import methods
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "method_peaks.json").read_text(encoding="utf-8"))
CARD = Hardware(gpu=find_gpu(GOLDEN["common"]["gpu"]))
MODELS = {name: describe_model(config, name) for name, config in GOLDEN["models"].items()}
MOST_OVER, MOST_UNDER = 0.012, -0.01


def _plan(row: dict[str, Any]) -> Plan:
    return Plan.model_validate({"model": GOLDEN["models"][row["model"]], **GOLDEN["common"], **row["plan"]})


def _id(row: dict[str, Any]) -> str:
    return "-".join([row["model"], *(str(value) for value in row["plan"].values())])


@pytest.mark.parametrize("row", GOLDEN["rows"], ids=_id)
def test_allocated_peak(row: dict[str, Any]) -> None:
    estimate = estimate_memory(_plan(row), MODELS[row["model"]], CARD)
    peak = max(phase.n_bytes for phase in estimate.phases)
    assert MOST_UNDER <= peak / row["peak_allocated"] - 1 <= MOST_OVER
    assert estimate.trainable_parameters == row["trainable_parameters"]


def test_all_methods_are_covered() -> None:
    assert {row["plan"]["method"] for row in GOLDEN["rows"]} == set(methods())
    assert len(GOLDEN["rows"]) == 140

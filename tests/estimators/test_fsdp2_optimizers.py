"""Which optimizers take FSDP2's shards, asked of the optimizers themselves in two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.api import resolve_plan
from estimators.sharding import fsdp2_refusal
from profiles.catalog import find_gpu, load_optimizers
from profiles.errors import UnsupportedError
from profiles.gpu import Hardware
from profiles.plan import Plan

PROGRAM = Path(__file__).with_name("fsdp2_steps.py")
NOT_OFFERED = {"muon"}  # LLaMA-Factory's own, which its emission refuses on shards


@pytest.mark.slow
def test_the_catalogue_knows_which_optimizers_update_shards() -> None:
    """Every optimizer of the catalogue steps once on real FSDP2 parameters, or says why it cannot."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    said = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("{")))
    known = {name: spec.takes_dtensors for name, spec in load_optimizers().items() if name not in NOT_OFFERED}
    assert {name: not words for name, words in said.items()} == known
    assert sum(known.values()) >= 5
    assert all("DTensor" in w or "sharding strategy" in w for w in said.values() if w)


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({"method": "full", "optimizer": "adamw_8bit"}, "8-bit AdamW"),
        ({"method": "full", "optimizer": "adafactor"}, "Adafactor"),
        ({"method": "adalora"}, "AdaLoRA"),
    ],
)
def test_a_plan_that_fsdp2_cannot_run_is_refused(fields: dict[str, str], word: str) -> None:
    """The estimate says so, and what to do instead."""
    plan = Plan(model="meta-llama/Llama-3.2-1B", n_gpus=2, sharding="fsdp2").replace(**fields)
    two = Hardware(gpu=find_gpu("a100-80-sxm"), n_gpus=2)
    with pytest.raises(UnsupportedError, match=word):
        resolve_plan(plan, hardware=two, offline=True)
    assert resolve_plan(plan.replace(sharding="ddp"), hardware=two, offline=True)
    assert fsdp2_refusal("lora", "adamw_torch_fused") is None

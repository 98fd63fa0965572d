"""What the simulator's process leaves out of what it imports, and reads otherwise."""

import json
import subprocess
import sys
from pathlib import Path

from estimators.simulate.job import Job
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
IMPORTED = """
import json, sys
from estimators.simulate.job import Job
from estimators.simulate.worker import run_job
import torch
run_job(Job.model_validate_json(sys.stdin.read()))
json.dump(sorted(sys.modules), sys.stdout)
"""
BEHIND = {  # modules that only the real ones import
    "torch._dynamo.symbolic_convert", "sympy.core", "torch.distributed.tensor._ops", "pandas.core", "datasets.features",
    "torch.distributed.checkpoint", "torch._dynamo.utils",
}  # fmt: skip
TABLE = """
from pathlib import Path
from estimators.simulate.quick import _exported
import transformers.utils.import_utils as reader
models = Path(reader.__file__).parents[1] / "models"
plain = reader.create_import_structure_from_path(models)
reader.create_import_structure_from_path.cache_clear()
reader.fetch__all__ = _exported
assert plain and plain == reader.create_import_structure_from_path(models)
"""


def run(script: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], input=given, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_run_on_one_card_imports_nothing_that_it_never_calls():
    plan = Plan(model="tiny", method="lora", seq_len=128)
    job = Job(plan=plan, model=describe_model(TINY, "tiny"), hardware=Hardware(gpu=find_gpu("rtx4090")))
    imported = set(json.loads(run(IMPORTED, job.model_dump_json()).splitlines()[-1]))
    assert {"torch._subclasses.fake_tensor", "transformers.models.llama.modeling_llama"} < imported
    assert not BEHIND & imported


def test_names_are_read_as_transformers_reads_them():
    run(TABLE)

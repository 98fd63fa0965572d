"""What the simulator's process leaves out of what it imports, and reads otherwise."""

import json
import subprocess
import sys
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

from estimators.simulate.imports import SHARED_METHODS
from estimators.simulate.job import Job
from estimators.simulate.quick import _version
from profiles.catalog import find_gpu
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan

pytestmark = pytest.mark.platform

ROOT = Path(__file__).parents[2]
TINY = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
}  # fmt: skip
IMPORTED = """
import json, os, sys
from estimators.simulate.imports import SHARED_METHODS
from estimators.simulate.job import Job
from estimators.simulate.worker import run_job
import torch
run_job(Job.model_validate_json(sys.stdin.read()))
print(json.dumps(sorted(sys.modules)), flush=True)
os._exit(0)  # as the child itself ends: the guard's fake kernels must not outlive the interpreter
"""
BEHIND = {  # modules that only the real ones import
    "torch._dynamo.symbolic_convert", "sympy.core", "torch.distributed.tensor._ops", "pandas.core", "datasets.features",
    "torch.distributed.checkpoint", "torch._dynamo.utils", "bitsandbytes.functional", "rich.console", "PIL.Image",
    "jinja2.environment", "peft.tuners.vera.model",
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


TRAINABLE = """
import os, sys
from estimators.simulate.job import Job
from estimators.simulate.worker import run_job
print(run_job(Job.model_validate_json(sys.stdin.read())).trainable_parameters, flush=True)
os._exit(0)
"""
QUICK_CLASSES = """
from estimators.simulate.quick import answer_quickly
answer_quickly()
from dataclasses import dataclass, field
@dataclass(order=True)
class Point:
    x: int
    y: list = field(default_factory=list)
@dataclass
class Other:
    x: int
    y: list = field(default_factory=list)
assert repr(Point(1)) == "Point(x=1, y=[])" and repr(Other(1)) == "Other(x=1, y=[])"
assert Point(1) == Point(1) < Point(2) and Point(1) != Other(1) and Point(1).y is not Point(1).y
assert Point.__init__ is not Other.__init__ and Point(y=[3], x=2).y == [3]
"""
CONVERSIONS = """
from peft.utils import transformers_weight_conversion as conversion
from profiles.catalog import load_model_rows
from profiles.families import describe_model
seen = set()
for name, row in load_model_rows().items():
    spec = describe_model(row.config, name)
    pattern = conversion._MODEL_TO_CONVERSION_PATTERN.get(spec.model_type)
    converted = bool(conversion._MOE_TARGET_MODULE_MAPPING.get(pattern))
    assert spec.has_fused_experts or not converted, spec.name
    seen.add((spec.has_fused_experts, converted))
assert (True, True) in seen and (False, False) in seen
"""


def job(method: str, **changes: Any) -> str:
    plan = Plan(model="tiny", method=method, seq_len=128, **changes)
    made = Job(plan=plan, model=describe_model(TINY, "tiny"), hardware=Hardware(gpu=find_gpu("rtx4090")))
    return made.model_dump_json()


def run(script: str, given: str = "") -> str:
    done = subprocess.run(
        [sys.executable, "-c", script], input=given, capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_a_run_on_one_card_imports_nothing_that_it_never_calls():
    imported = set(json.loads(run(IMPORTED, job("lora")).splitlines()[-1]))
    assert {"torch._subclasses.fake_tensor", "transformers.models.llama.modeling_llama"} < imported
    assert not BEHIND & imported


@pytest.mark.parametrize("method", ["vera", "ia3", "prompt"])
def test_of_peft_the_job_s_method_is_imported(method):
    imported = json.loads(run(IMPORTED, job(method)).splitlines()[-1])
    kind = {"prompt": "prompt_tuning"}.get(method, method)
    models = {name.split(".")[2] for name in imported if name.startswith("peft.tuners.") and name.endswith(".model")}
    assert f"peft.tuners.{kind}.config" in imported
    assert models <= {kind, *SHARED_METHODS}


def test_lora_can_train_some_embeddings_beside_its_adapters():
    options = {"trainable_token_indices": [1, 2, 3]}
    with_tokens = json.loads(run(TRAINABLE, job("lora", method_options=options)))
    plain = json.loads(run(TRAINABLE, job("lora")))
    assert with_tokens - plain == 3 * TINY["hidden_size"]


def test_dataclasses_of_one_text_are_their_own():
    run(QUICK_CLASSES)


def test_versions_are_those_of_the_whole_files():
    installed = list(distributions())
    assert [_version(x) for x in installed] == [x.version for x in installed]


def test_peft_converts_the_targets_of_fused_experts_only():
    run(CONVERSIONS)


def test_names_are_read_as_transformers_reads_them():
    run(TABLE)

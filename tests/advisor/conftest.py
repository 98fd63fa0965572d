"""A small model and stand-in estimators: the decision is tested on numbers that the test can reckon itself."""

import os
from functools import partial

import pytest

import advisor.api
import advisor.evaluate
import estimators.replay
from advisor.recommendation import DataFacts, Facts
from estimators.answer import Component, MemoryEstimate, Phase, SpeedEstimate
from estimators.interval import Interval
from estimators.methods import get_method
from estimators.plan_figures import ReferenceFigures
from profiles.families import describe_model
from profiles.gpu import GpuSpec, Hardware
from profiles.units import GIB

CONFIG = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4, "int8": 1, "nf4": 0.55, "nf4-dq": 0.52, "fp4": 0.55}


def stand_in_memory(plan, model, hardware, *, calibration=None):
    """Weights by storage, 12 bytes a trained parameter, activations linear in tokens and 10 times less checkpointed."""
    trained = get_method(plan.method).trainable_parameters(model, plan)
    per_token = model.num_hidden_layers * model.hidden_size * (3 if plan.gradient_checkpointing != "none" else 30)
    cards = plan.n_gpus if plan.sharding == "fsdp2" else 1
    parts = {
        "base_weights": BYTES[plan.quantization] * model.parameters / cards,
        "saved_activations": per_token * plan.tokens_per_micro_batch,
        "optimizer_states": (4 if "8bit" in plan.optimizer else 12) * trained / cards,
    }
    phase = Phase(name="loss", components=tuple(Component(name=n, n_bytes=b) for n, b in parts.items()))
    around = Interval.around(phase.n_bytes, 0.02, 0.04)
    return MemoryEstimate(
        basis="analytic", phases=(phase,), peak_phase="loss", allocated=around, reserved=around, device=around,
        budget=float(hardware.gpu.memory_bytes), trainable_parameters=trained,
    )  # fmt: skip


def stand_in_speed(plan, model, hardware, *, calibration=None, lengths=None):
    """FLOPs at a fixed rate: a third more with checkpointing, more over a quantised base, an overhead a step.

    A batch is padded the more, the larger it is.
    """
    work = 8.0 if plan.gradient_checkpointing != "none" else 6.0
    slower = {"int8": 2.0, "nf4": 1.3, "nf4-dq": 1.3, "fp4": 1.3}.get(plan.quantization, 1.0)
    longest = plan.seq_len
    if plan.mean_len is not None:
        longest = min(plan.seq_len, plan.mean_len * (1 + 0.5 * (plan.micro_batch_size - 1)))
    tokens = plan.global_batch_size * longest
    seconds = work * model.parameters * tokens / 50e12 * slower + 0.2 * plan.gradient_accumulation_steps
    real = plan.global_batch_size * (plan.mean_len or plan.seq_len)
    return SpeedEstimate(
        basis="analytic", items=(), step_seconds=Interval.around(seconds, 0.2, 0.3),
        tokens_per_second=Interval.around(real / seconds, 0.2, 0.2), tokens_per_step=real,
        model_flops_utilization=None,
    )  # fmt: skip


@pytest.fixture
def stand_ins(monkeypatch):
    """The stand-in estimators in place of the real ones."""
    monkeypatch.setattr(advisor.evaluate, "estimate_memory", stand_in_memory)
    figures = partial(ReferenceFigures, memory=stand_in_memory, speed=stand_in_speed)
    monkeypatch.setattr(advisor.evaluate, "PlanFigures", figures)
    monkeypatch.setattr(estimators.replay, "estimate_memory_replayed", stand_in_memory)
    for module in (advisor.evaluate, advisor.api):
        monkeypatch.setattr(module, "estimate_speed", stand_in_speed)


@pytest.fixture
def make_facts():
    """Facts of a 1.2B Llama on a card of `gib`."""

    def make(gib=24.0, *, config=CONFIG, vendor="NVIDIA", bf16=True, n_gpus=1, examples=None, mean_len=None, seq_len=2048, task="sft"):  # fmt: skip # noqa: E501
        card = GpuSpec(id="card", name="card", vendor=vendor, memory_gib=gib, bf16=bf16)
        origin = "cpu" if vendor == "CPU" else "named"
        return Facts(
            model=describe_model(config, "small-llama"),
            hardware=Hardware(gpu=card, n_gpus=n_gpus, origin=origin),
            data=DataFacts(examples=examples, mean_len=mean_len, basis="as given"),
            task=task,
            seq_len=seq_len,
        )

    return make


@pytest.fixture(scope="session")
def gib():
    """Bytes of a GiB."""
    return GIB


@pytest.fixture(scope="session")
def llamafactory_python():
    """An interpreter that has LLaMA-Factory."""
    named = os.environ.get("FTADVISE_LLAMAFACTORY_PYTHON")
    if named:
        return named
    environments = pytest.importorskip("advisor.environments", reason="needs FTADVISE_LLAMAFACTORY_PYTHON")
    found = environments.find_environment("llamafactory")
    if found is None:
        pytest.skip("no LLaMA-Factory here: `ftadvise env create llamafactory`, or FTADVISE_LLAMAFACTORY_PYTHON")
    return found.python

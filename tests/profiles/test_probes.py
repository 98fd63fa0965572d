import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiles.plan import Plan
from profiles.probes import run as probe_run
from profiles.probes.job import PROBES, ProbeJob
from profiles.probes.run import run_probe
from profiles.units import GIB, MIB

CONFIG = {
    "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 128, "tie_word_embeddings": True,
}  # fmt: skip
METHODS = ("lora", "full", "bitfit", "prompt", "prefix", "ptuning", "adalora")


def plan(**changes: object) -> Plan:
    fields = {"model": CONFIG, "quantization": "fp32", "gradient_checkpointing": "none", "seq_len": 16}
    return Plan.model_validate({**fields, **changes})


def job(probe: str, **changes: object) -> ProbeJob:
    return ProbeJob.model_validate({"probe": probe, "device": "cpu", "seconds": 0.5, "threads": 1, **changes})


def replace_child(monkeypatch, code: str) -> None:
    """Run `code` in the place of a probe."""
    original = subprocess.Popen

    def start(command, **options):
        return original([sys.executable, "-c", code], **options)

    monkeypatch.setattr(probe_run.subprocess, "Popen", start)


POINT = '{"kernel": {"kind": "copy", "dtype": "fp32", "shape": {"n_bytes": 8}, "seconds": 0.5}}'


def test_every_probe_has_its_program() -> None:
    from ast import FunctionDef, parse, walk

    folder = Path(probe_run.__file__).parent
    source = "".join((folder / f"{name}.py").read_text() for name in ("kernels", "collective", "training"))
    found = {node.name for node in walk(parse(source)) if isinstance(node, FunctionDef)}
    assert len(PROBES) == 9
    assert {f"probe_{name}" for name in PROBES} <= found


def test_what_was_measured_before_a_crash_counts(monkeypatch) -> None:
    replace_child(monkeypatch, f"print('{POINT}', flush=True); raise RuntimeError('out of luck')")
    outcome = run_probe(job("copy"), rss_bytes=GIB)
    assert len(outcome.kernels) == 1
    assert outcome.error == "ended with code 1: RuntimeError: out of luck"
    assert outcome.describe().startswith("1 points in ")


def test_what_was_measured_before_a_kill_counts(monkeypatch) -> None:
    code = f"import os; print('{POINT}', flush=True); print('{{\"kern', end='', flush=True); os.kill(os.getpid(), 9)"
    replace_child(monkeypatch, code)
    outcome = run_probe(job("copy"), rss_bytes=GIB)
    assert len(outcome.kernels) == 1
    assert outcome.error == "was killed by SIGKILL"


def test_a_probe_that_hangs_is_stopped_in_time(monkeypatch) -> None:
    replace_child(monkeypatch, f"import time; print('{POINT}', flush=True); time.sleep(60)")
    start = time.monotonic()
    outcome = run_probe(job("copy"), rss_bytes=GIB, limit=1.0)
    assert time.monotonic() - start < 10
    assert (len(outcome.kernels), outcome.error) == (1, "took too long and was stopped")


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_a_probe_that_eats_memory_is_stopped(monkeypatch) -> None:
    replace_child(monkeypatch, "import time; x = bytearray(300 * 2**20); time.sleep(60)")
    outcome = run_probe(job("copy"), rss_bytes=100 * MIB, limit=30.0)
    assert outcome.error == "took too much memory and was stopped"


def test_a_probe_that_dies_at_once_is_an_outcome_and_no_exception(monkeypatch) -> None:
    replace_child(monkeypatch, "import sys; sys.exit(3)")
    assert run_probe(job("copy"), rss_bytes=GIB).error == "ended with code 3"


@pytest.mark.skipif(sys.platform != "linux", reason="prctl")
def test_a_probe_ends_with_its_parent() -> None:
    """The parent is killed with -9, and its child is gone a moment later."""
    child = "import sys, time; from profiles.probes.__main__ import end_with_parent; end_with_parent()"
    child += "; print(1, flush=True); time.sleep(60)"
    code = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}], stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""
    root = Path(__file__).parents[2]
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=root)
    grandchild = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    for _ in range(100):
        if not _alive(grandchild):
            break
        time.sleep(0.05)
    assert not _alive(grandchild)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.platform
def test_kernels_are_really_timed() -> None:
    pytest.importorskip("torch")
    outcome = run_probe(job("copy"), rss_bytes=4 * GIB)
    assert outcome.error == ""
    assert [k.kind for k in outcome.kernels] == ["copy", "add"]
    assert all(1e8 < k.shape["n_bytes"] / k.seconds < 1e12 for k in outcome.kernels)


@pytest.mark.slow
@pytest.mark.platform
@pytest.mark.parametrize("name", [n for n in PROBES if n != "steps"])
def test_every_kernel_probe_runs(name: str) -> None:
    pytest.importorskip("torch")
    outcome = run_probe(job(name), rss_bytes=4 * GIB)
    assert outcome.error == ""
    assert len(outcome.kernels) >= (0 if name in ("transfer", "collective") else 1)


@pytest.mark.slow
@pytest.mark.platform
def test_two_processes_time_their_collectives() -> None:
    pytest.importorskip("torch")
    from profiles.probes.collective import time_collectives

    found = list(time_collectives(job("collective"), ranks=2, sizes_mib=(2, 1)))
    assert [(k.kind, k.shape["n_bytes"]) for k in found] == [
        (kind, size * 2**20) for size in (2, 1) for kind in ("all_reduce", "all_gather", "reduce_scatter")
    ]
    assert all(k.shape["n_gpus"] == 2 and 1e-5 < k.seconds < 10 for k in found)


@pytest.mark.platform
def test_real_steps_of_every_method_and_one_that_fails() -> None:
    pytest.importorskip("peft")
    plans = [plan(method=m) for m in METHODS]
    plans.insert(1, plan(method="oft"))  # not known to the loop: loses only itself
    plans += [plan(gradient_checkpointing="full"), plan(micro_batch_size=2, gradient_accumulation_steps=2)]
    outcome = run_probe(job("steps", seconds=60, plans=plans, clock="cpu"), rss_bytes=4 * GIB)
    assert outcome.error == ""
    assert len(outcome.failed) == 1
    assert outcome.failed[0].startswith("oft at 16 tokens: UnsupportedError: ")
    assert [s.plan for s in outcome.steps] == [p for p in plans if p.method != "oft"]
    assert all(0 < s.seconds < 30 for s in outcome.steps)


@pytest.mark.platform
@pytest.mark.parametrize("method", METHODS)
def test_the_loop_trains_what_the_method_trains(method: str) -> None:
    pytest.importorskip("peft")
    os.environ["HF_HUB_OFFLINE"] = "1"
    from estimators.methods import get_method
    from profiles.families import describe_model
    from profiles.probes.training import adapt_model, load_base

    asked = plan(method=method)
    model = adapt_model(load_base(asked, "cpu"), asked)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == get_method(method).trainable_parameters(describe_model(CONFIG, "m"), asked)

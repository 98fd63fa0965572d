import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advisor import calibrate as machine
from advisor.api import estimate
from advisor.calibration_plans import LENGTHS, calibration_plans, default_model, truncated
from advisor.calibrations import calibration_id, environment_of, find_calibration, hardware_name, installed_versions
from advisor.cli.main import run
from advisor.detection import detect_cpu
from estimators.throughput import TIME_FACTOR
from profiles.calibration import MISMATCH_MARGIN, TimedKernel, TimedStep
from profiles.errors import AdviseError, InvalidInputError, UnsupportedError
from profiles.measurement import Environment, Measurement
from profiles.plan import Plan
from profiles.probes.run import ProbeOutcome
from profiles.store import Store
from profiles.units import GIB

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512,
    "max_position_embeddings": 512,
}  # fmt: skip
PLANS = calibration_plans(CONFIG, device="cpu", full=False)
STEPS = [TimedStep(plan=p, seconds=0.01 * (i + 1)) for i, p in enumerate(PLANS[:6])]
KERNEL = TimedKernel(kind="matmul", dtype="fp32", shape={"tokens": 128, "n_in": 64, "n_out": 64}, seconds=1e-4)


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Store:
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))
    return Store()


@pytest.fixture
def probes(monkeypatch):
    """Probes that answer at once; the steps probe crashes after what it had measured."""
    asked = []

    def stand_in(job, *, rss_bytes):
        asked.append(job)
        assert rss_bytes > 0
        if job.probe == "steps":
            return ProbeOutcome(probe="steps", steps=STEPS, seconds=1, error="was killed by SIGKILL")
        kernels = (KERNEL,) if job.probe == "matmul" else ()
        return ProbeOutcome(probe=job.probe, kernels=kernels, seconds=1)

    monkeypatch.setattr(machine, "run_probe", stand_in)
    return asked


def calibrate(store: Store):
    return machine.calibrate(machine.CalibrationOptions(device="cpu"), store=store)


def snapshot(store: Store) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(store.calibrations.folder.glob("*.json"))}


def test_a_calibration_is_kept_and_every_answer_here_says_so(store, probes, capsys) -> None:
    answer = calibrate(store)
    assert len(probes) == 7
    assert probes[-1].plans == calibration_plans(machine.model_config("smollm2-135m")[0], device="cpu", full=False)
    assert store.calibrations.load() == (answer.calibration,)
    assert answer.calibration.constants[TIME_FACTOR].n == 6
    assert run(["estimate", "--model", "smollm2-135m", "--gpu", "cpu", "--quantization", "fp32", "--json"]) in (0, 1)
    speed = json.loads(capsys.readouterr().out)["answer"]["speed"]
    assert speed["calibration"].startswith(f"calibrated on {hardware_name(detect_cpu().gpu)}, ")
    assert "n=6, +-" in speed["calibration"]
    code = run(["advise", "--model", "smollm2-135m", "--gpu", "cpu", "--seq-len", "128", "--json"])
    assert code in (0, 1)
    best = json.loads(capsys.readouterr().out)["answer"]["best"]
    assert best["speed"]["calibration"] == speed["calibration"]


def test_a_second_run_refines_the_same_file(store, probes) -> None:
    calibrate(store)
    again = calibrate(store)
    assert [c.id for c in store.calibrations.load()] == [again.calibration.id]
    assert again.calibration.constants[TIME_FACTOR].n == 12
    assert len(again.calibration.kernels) == 2


def test_a_crashed_probe_loses_only_itself_and_is_named(store, probes, capsys) -> None:
    assert run(["calibrate", "--device", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert "steps was killed by SIGKILL" in out
    assert "matmul ..." in err
    assert "6 training steps and 1 kernels" in out


def test_without_a_card_cuda_is_refused_and_without_torch_everything(store, probes, monkeypatch) -> None:
    monkeypatch.setattr(machine, "resolve_hardware", lambda gpu=None: detect_cpu())
    with pytest.raises(UnsupportedError, match="no CUDA card"):
        machine.calibrate(machine.CalibrationOptions(device="cuda"), store=store)
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(AdviseError, match="needs torch"):
        calibrate(store)
    assert probes == []


# Which calibration speaks


def other_versions(store: Store, **versions: str):
    return machine.learn(detect_cpu(), store, kernels=[KERNEL], steps=STEPS, versions=versions)


def test_other_versions_widen_the_interval_and_are_named(store) -> None:
    pytest.importorskip("torch")
    other_versions(store, torch="1.0")
    found, said = find_calibration(detect_cpu(), store)
    stored = store.calibrations.load()[0]
    assert said == ()
    residual = stored.constants[TIME_FACTOR].residual
    assert found.constants[TIME_FACTOR].residual == pytest.approx(residual + MISMATCH_MARGIN)
    assert found.notes[0].startswith("calibrated with torch 1.0 (here ")
    other_versions(store, **installed_versions())
    found, _ = find_calibration(detect_cpu(), store)
    assert found.notes == ()


def test_other_hardware_does_not_count(store) -> None:
    other_versions(store, torch="1.0")
    cpu = detect_cpu()
    for changes in ({"name": "CPU, 999 cores"}, {"arch": "another"}):
        assert find_calibration(cpu.replace(gpu=cpu.gpu.replace(**changes)), store) == (None, ())


def test_no_store_costs_nothing_and_makes_none(store) -> None:
    assert find_calibration(detect_cpu(), store) == (None, ())
    assert not store.home.exists()


def test_a_damaged_file_is_said_left_alone_and_does_not_stop_an_answer(store, probes, capsys) -> None:
    path = Path(calibrate(store).path)
    path.write_bytes(b'{"id": "cut o')
    assert run(["estimate", "--model", "smollm2-135m", "--gpu", "cpu", "--quantization", "fp32"]) in (0, 1)
    out = " ".join(capsys.readouterr().out.split())
    assert "uncalibrated" in out
    assert "is damaged, or no JSON; its calibration is not used" in out
    with pytest.raises(InvalidInputError, match="damaged"):
        calibrate(store)
    assert path.read_bytes() == b'{"id": "cut o'


@pytest.mark.parametrize("basis", ["analytic", pytest.param("simulated", marks=pytest.mark.platform)])
@pytest.mark.parametrize("speed_is_known", [True, False])
def test_a_damaged_file_is_said_on_every_basis(store, probes, monkeypatch, basis, speed_is_known) -> None:
    Path(calibrate(store).path).write_bytes(b"")
    plan, cpu = {"model": CONFIG, "quantization": "fp32", "seq_len": 64}, detect_cpu()
    if not speed_is_known:
        monkeypatch.setattr("advisor.api.estimate_speed", lambda *args, **kwargs: None)
        plan |= {"platform": "unsloth"}  # which is not simulated
    found = estimate(plan, hardware=cpu, basis=basis)
    assert (found.speed is not None) == speed_is_known
    said = found.speed.assumptions if found.speed else found.memory.assumptions
    assert any("its calibration is not used" in note for note in said)


# Export and import


def test_an_exported_file_is_imported_elsewhere(store, probes, tmp_path, capsys) -> None:
    calibrate(store)
    file = tmp_path / "out.json"
    assert run(["calibrate", "--export", str(file)]) == 0
    elsewhere = Store(tmp_path / "elsewhere")
    found = machine.import_calibration(file, elsewhere)
    assert found.origin == "imported"
    assert find_calibration(detect_cpu(), elsewhere)[0] == found
    before = file.read_bytes()
    assert run(["calibrate", "--export", str(file)]) == 2
    assert file.read_bytes() == before
    assert "exists already" in capsys.readouterr().err
    with pytest.raises(InvalidInputError, match="taken by another"):
        machine.import_calibration(file, store)


BROKEN = {
    "cut off": (lambda d: None, "damaged"),
    "a list": (lambda d: [1], "no calibration"),
    "foreign": (lambda d: {"a": 1}, "no calibration"),
    "newer": (lambda d: {**d, "schema_version": 9}, "unknown schema"),
    "other keys": (lambda d: {**d, "x": 1}, "Extra|unknown key"),
    "another id": (lambda d: {**d, "id": "mine"}, "not that of its hardware"),
    "path as id": (lambda d: {**d, "id": "../x"}, "not that of its hardware"),
    "absurd": (lambda d: _changed(d, "launch_seconds", 1e9), "beyond belief"),
    "negative": (lambda d: _changed(d, "launch_seconds", -1.0), "beyond belief"),
    "no such constant": (lambda d: _changed(d, "nonsense", 1.0), "no constant 'nonsense'"),
    "zero seconds": (lambda d: {**d, "steps": [{**d["steps"][0], "seconds": 0}]}, "greater than 0"),
}


def _changed(data, name, value):
    return {**data, "constants": {**data["constants"], name: {"value": value, "n": 1, "residual": 0.1}}}


@pytest.mark.thorough
@pytest.mark.parametrize("case", BROKEN)
def test_corrupt_and_foreign_files_are_refused(store, tmp_path, case) -> None:
    good = other_versions(store, torch="1.0")
    change, said = BROKEN[case]
    content = change(good.model_dump(mode="json"))
    file = tmp_path / "in.json"
    file.write_text(json.dumps(content) if content is not None else good.model_dump_json()[:-30])
    before = snapshot(store)
    with pytest.raises(InvalidInputError, match=said) as caught:
        machine.import_calibration(file, store)
    assert caught.value.hint
    assert snapshot(store) == before


def test_there_is_nothing_to_export_at_first(store, tmp_path) -> None:
    with pytest.raises(AdviseError, match="no calibration to export"):
        machine.export_calibration(tmp_path / "x.json", store)


def test_show_lists_what_is_stored(store, capsys) -> None:
    assert run(["calibrate", "--show"]) == 0
    assert "No calibration is stored" in capsys.readouterr().out
    other_versions(store, torch="1.0")
    assert run(["calibrate", "--show"]) == 0
    assert "torch 1.0" in capsys.readouterr().out
    assert run(["calibrate", "--show", "--export", "x.json"]) == 2


# Nothing damages the store

CHILD = """
import sys
from advisor import calibrate as machine
from advisor.detection import detect_cpu
from profiles.calibration import TimedStep
from profiles.store import Store
steps = [TimedStep.model_validate_json(line) for line in open(sys.argv[1])]
print("ready", flush=True)
for n in range(int(sys.argv[2])):
    machine.learn(detect_cpu(), Store(), steps=steps, versions={"torch": sys.argv[3]})
"""


def start_child(tmp_path: Path, rounds: int, version: str, steps=STEPS[:4], **options) -> subprocess.Popen:
    file = tmp_path / f"steps-{version}-{rounds}.jsonl"
    file.write_text("".join(s.model_dump_json() + "\n" for s in steps))
    command = [sys.executable, "-c", CHILD, str(file), str(rounds), version]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2], **options
    )


@pytest.mark.thorough
def test_kill_9_at_any_moment_leaves_a_whole_store(store, tmp_path) -> None:
    good = other_versions(store, torch="1.0")
    rng = random.Random(7)
    for _ in range(5):
        child = start_child(tmp_path, 10_000, "2.0")
        assert child.stdout.readline() == "ready\n"
        time.sleep(rng.uniform(0.0, 0.25))
        child.send_signal(signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
        child.stdout.close()
        child.stderr.close()
        loaded = Store().calibrations.load()
        assert good in loaded
        assert len(loaded) <= 2
    other_versions(store, torch="2.0")  # the lock of the killed is free, and what they left is cleared away
    assert [p.name for p in store.calibrations.folder.iterdir() if p.name.endswith(".tmp")] == []


def test_two_at_once_both_count(store, tmp_path) -> None:
    children = [start_child(tmp_path, n, "2.0", steps) for n, steps in ((1, STEPS[:3]), (2, STEPS[3:]))]
    for child in children:
        _, complaints = child.communicate(timeout=60)
        assert child.returncode == 0, complaints
    (found,) = store.calibrations.load()
    assert {s.key for s in found.steps} == {s.key for s in STEPS}


def test_a_full_disk_leaves_the_store_as_it_was(store, tmp_path) -> None:
    """A limit on the size of files makes the write itself fail, as a full disk does."""
    other_versions(store, torch="2.0")
    before = snapshot(store)

    def small() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))

    child = start_child(tmp_path, 1, "2.0", preexec_fn=small)
    _, complaints = child.communicate(timeout=60)
    assert child.returncode == 1
    assert "store-unwritable" in complaints or "cannot be written" in complaints
    assert snapshot(store) == before
    assert not list(store.calibrations.folder.glob(".*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_home_is_said_before_anything_is_measured(store, probes, capsys) -> None:
    store.home.mkdir()
    store.home.chmod(0o500)
    assert run(["calibrate", "--device", "cpu"]) == 2
    assert "FTADVISE_HOME" in capsys.readouterr().err
    assert probes == []


def test_a_home_that_cannot_be_written_is_said_before_anything_is_measured(tmp_path, probes, capsys, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "file" / "home"))
    assert run(["calibrate", "--device", "cpu"]) == 2
    assert "FTADVISE_HOME" in capsys.readouterr().err
    assert probes == []


def test_no_space_is_said_before_anything_is_measured(store, probes, capsys, monkeypatch) -> None:
    def full(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("profiles.store.NamedTemporaryFile", full)
    assert run(["calibrate", "--device", "cpu"]) == 2
    err = capsys.readouterr().err
    assert "No space left on device" in err
    assert "Free some space" in err
    assert probes == []


# Runs feed back


def measurement(**changes: object) -> Measurement:
    fields = {
        "id": "r", "date": "2026-11-24", "plan": PLANS[0], "environment": Environment(hardware="cpu: x86_64"),
        "model_parameters": 1, "trainable_parameters": 1, "steps": 20, "step_seconds_median": 0.5,
        "tokens_per_second": None, "first_loss": None, "last_loss": None,
    }  # fmt: skip
    return Measurement.model_validate({**fields, **changes})


def test_a_finished_run_is_learnt_from(store) -> None:
    found = machine.learn_from_run(measurement(), store)
    assert [(s.origin, s.seconds) for s in found.steps] == [("launch", 0.5)]
    assert TIME_FACTOR not in found.constants  # one run says nothing about the next
    assert machine.learn_from_run(measurement(step_seconds_median=0.6), store).steps[1].seconds == 0.6


@pytest.mark.parametrize(
    "changes",
    [
        {"finished": False}, {"steps": 2}, {"step_seconds_median": None},
        {"plan": Plan(model="no-such-org/no-such-model")}, {"plan": Plan(model=CONFIG, n_gpus=2, sharding="ddp")},
        {"environment": Environment(hardware="1x NVIDIA Imaginary")},
    ],
)  # fmt: skip
def test_a_run_that_says_nothing_is_left_out(store, changes) -> None:
    assert machine.learn_from_run(measurement(**changes), store) is None
    assert not store.home.exists()


# The plans


def test_plans_are_truncated_and_weighted() -> None:
    assert {p.model["num_hidden_layers"] for p in PLANS} == {2, 3}
    assert {p.seq_len for p in PLANS} == set(LENGTHS["cpu"])
    assert {p.method for p in PLANS} == {"lora", "full", "prompt", "ptuning", "adalora", "prefix"}
    assert {p.quantization for p in PLANS} == {"fp32"}
    assert len({p.model_dump_json() for p in PLANS}) == len(PLANS)
    card = calibration_plans(CONFIG, device="cuda", full=True)
    assert len(card) > len(PLANS)
    assert {"bf16", "nf4-dq"} == {p.quantization for p in card}


def test_the_first_dozen_of_a_card_s_plans_covers_every_kind() -> None:
    """A calibration of an H200 got through 17 of them before its time was up."""
    first = calibration_plans(CONFIG, device="cuda", full=False)[:12]
    assert {p.method for p in first} == {"lora", "qlora", "full"}
    assert {(p.method, p.gradient_checkpointing) for p in first} >= {("lora", "full"), ("full", "full")}
    assert {p.model["num_hidden_layers"] for p in first} == {2, 3}
    assert len({p.model["hidden_size"] for p in first}) == 2
    assert {p.seq_len for p in first} == set(LENGTHS["cuda"])


def test_per_layer_lists_are_cut_and_configs_without_layers_refused() -> None:
    config = {**CONFIG, "layer_types": ["full_attention"] * 4}
    assert truncated(config, 2)["layer_types"] == ["full_attention"] * 2
    with pytest.raises(InvalidInputError, match="how many layers"):
        truncated({"model_type": "x"}, 2)


def test_the_default_model_suits_the_device() -> None:
    assert "135M" in default_model("cpu", 1)
    assert "8B" in default_model("cuda", 80 * GIB)
    assert "0.5B" in default_model("cuda", 8 * GIB)


def test_ids_are_file_names_and_tell_environments_apart() -> None:
    cpu = detect_cpu()
    ids = {calibration_id(environment_of(cpu, {"torch": v})) for v in ("2.12", "2.13")}
    assert len(ids) == 2
    assert all(len(i) < 120 and "/" not in i and " " not in i for i in ids)

"""The launcher against stand-in scripts, which cost milliseconds: what is watched, stopped, killed, told."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from advisor.emit import RunFile, emitters
from advisor.launch import launchers, load_run_file, read_state
from advisor.launch.folder import RunState, write_state
from advisor.launch.metrics import Event
from profiles.errors import AdviseError, InvalidInputError
from profiles.plan import Plan

SCRIPT = """
import json, os, signal, sys, time
from pathlib import Path
runs = Path("runs"); runs.mkdir(exist_ok=True)
steps, pause, extra = {steps}, {pause}, {extra!r}
def write(**event):
    with open("runs/metrics.jsonl", "a") as f: f.write(json.dumps({{"time": time.time(), **event}}) + "\\n")
def save(step):
    d = runs / "checkpoints" / f"checkpoint-{{step}}"; d.mkdir(parents=True, exist_ok=True)
    (d / "trainer_state.json").write_text("{{}}")
first = 0
if "--resume" in sys.argv:
    first = max(int(p.name.split("-")[1]) for p in (runs / "checkpoints").iterdir())
write(event="start", step=first, max_steps=steps, device="cpu", processes=1, trainable_parameters=7, versions={{}})
for step in range(first + 1, steps + 1):
    time.sleep(pause)
    write(event="step", step=step, max_steps=steps, loss=3 - step / 10, seconds=pause, tokens=50, process=1000)
    if step == 2: exec(extra)
    if (runs / "stop").exists():
        save(step); write(event="end", status="stopped", step=step); sys.exit(130)
save(steps); Path("model").mkdir(exist_ok=True)
write(event="end", status="finished", step=steps)
"""


class Recorder:
    """A reporter that remembers, and does something at the second step."""

    def __init__(self, at_second_step: Callable[[], None] = lambda: None) -> None:
        self.events: list[Event] = []
        self.notes: list[str] = []
        self.end: RunState | None = None
        self._act = at_second_step

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def event(self, event: Event) -> None:
        self.events.append(event)
        if event.event == "step" and event.step == 2:
            self._act()

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finish(self, state: RunState) -> None:
        self.end = state


def make_run(folder: Path, steps: int = 4, pause: float = 0.01, extra: str = "") -> Path:
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.jsonl").write_text("{}\n")
    plan = Plan(model="tiny", gpu="cpu")
    run = RunFile(
        platform="hf", plan=plan, model="tiny", model_parameters=100, trainable_parameters=7,
        requirements=("pydantic==0.0.1",),
    )  # fmt: skip
    (folder / "plan.json").write_text(run.model_dump_json())
    (folder / "train.py").write_text(SCRIPT.format(steps=steps, pause=pause, extra=extra))
    return folder


LOCAL = launchers()["local"]


def test_the_command_is_the_platforms_with_this_interpreter(tmp_path: Path) -> None:
    run = load_run_file(make_run(tmp_path / "r"))
    assert LOCAL.command(run, "/py") == ["/py", "train.py"]
    assert LOCAL.command(run, "/py", resume=True) == ["/py", "train.py", "--resume"]
    sharded = run.replace(plan=Plan(model="m", n_gpus=2, sharding="ddp"))
    assert LOCAL.command(sharded, "/py")[:3] == ["/py", "-m", "accelerate.commands.launch"]
    assert emitters()["hf"].command(sharded.plan)[-1] == "train.py"


def test_a_run_to_its_end_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "my run [1] $(x) 'é'")
    recorder = Recorder()
    state = LOCAL.run(folder, recorder)
    assert state.status == "finished"
    assert (state.step, state.max_steps, state.returncode) == (4, 4, 0)
    assert [e.event for e in recorder.events] == ["start", "step", "step", "step", "step", "end"]
    assert recorder.end == state == read_state(folder)
    assert any("pydantic" in note for note in recorder.notes)  # not the tested version


def test_ctrl_c_stops_with_a_checkpoint_and_resume_goes_on(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", steps=40, pause=0.05)
    recorder = Recorder(lambda: os.kill(os.getpid(), signal.SIGINT))
    state = LOCAL.run(folder, recorder)
    assert state.status == "stopped"
    assert 2 <= state.step < 40
    assert "--resume" in state.hint
    again = Recorder()
    resumed = LOCAL.run(folder, again, resume=True)
    assert (resumed.status, resumed.step) == ("finished", 40)
    assert again.events[0].step == state.step
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_second_ctrl_c_kills_a_script_that_does_not_listen(tmp_path: Path) -> None:
    deaf = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    folder = make_run(tmp_path / "r", extra=deaf)
    times: list[float] = []

    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        threading.Timer(0.3, lambda: (times.append(time.time()), os.kill(os.getpid(), signal.SIGINT))).start()

    import advisor.launch.stop as stop

    before, stop.GRACE_SECONDS = stop.GRACE_SECONDS, 0.3
    try:
        state = LOCAL.run(folder, Recorder(twice))
    finally:
        stop.GRACE_SECONDS = before
    assert state.status == "stopped"
    assert state.returncode == -signal.SIGKILL
    assert time.time() - times[0] < 5


FAILURES = {
    "gpu memory": ("raise RuntimeError('CUDA out of memory. Tried to allocate 2.00 GiB')", "out-of-memory", "halve"),
    "said by the script": (
        "write(event='end', status='out-of-memory', step=2); sys.exit(1)", "out-of-memory", "halve"
    ),
    "kill -9": ("os.kill(os.getpid(), signal.SIGKILL)", "killed", "memory"),
    "an exception": ("raise ValueError('no such column')", "failed", "train.log"),
    "an exit": ("sys.exit('Nothing to train: no biases')", "failed", "train.log"),
}  # fmt: skip


@pytest.mark.parametrize("case", FAILURES)
def test_what_went_wrong_is_told(tmp_path: Path, case: str) -> None:
    extra, status, hint = FAILURES[case]
    folder = make_run(tmp_path / "r", extra=extra)
    state = LOCAL.run(folder, Recorder())
    assert state.status == status
    assert hint in state.hint
    assert state.step == 2
    assert read_state(folder) == state
    if case == "an exception":
        assert "ValueError: no such column" in state.message
    if case == "an exit":
        assert "Nothing to train" in state.message


def test_a_failing_reporter_ends_the_run_and_leaves_a_state(tmp_path: Path) -> None:
    def broken() -> None:
        raise BrokenPipeError

    folder = make_run(tmp_path / "r", steps=100, pause=0.05)
    with pytest.raises(BrokenPipeError):
        LOCAL.run(folder, Recorder(broken))
    state = read_state(folder)
    assert state is not None
    assert state.status != "running"


def test_a_launcher_killed_hard_leaves_a_state_that_tells_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r", steps=200, pause=0.05)
    code = (
        "import sys; from pathlib import Path; from advisor.launch import launchers; "
        "from advisor.launch.monitor import JsonLines; launchers()['local'].run(Path(sys.argv[1]), JsonLines())"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    while '"step"' not in launcher.stdout.readline():
        pass
    launcher.kill()
    launcher.wait()
    running = read_state(folder)
    assert running is not None
    assert running.status == "running"  # the training itself goes on
    with pytest.raises(InvalidInputError, match="running already"):
        LOCAL.run(folder, Recorder())
    assert running.pid is not None
    os.kill(running.pid, signal.SIGKILL)
    deadline = time.time() + 10
    while (state := read_state(folder)) and state.status == "running" and time.time() < deadline:
        time.sleep(0.05)
    assert state is not None
    assert state.status == "interrupted"
    assert "--restart" in state.hint


def test_an_earlier_run_is_never_overwritten(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    LOCAL.run(folder, Recorder())
    with pytest.raises(InvalidInputError, match="earlier run"):
        LOCAL.run(folder, Recorder())
    recorder = Recorder()
    assert LOCAL.run(folder, recorder, restart=True).status == "finished"
    assert any("runs.1" in note for note in recorder.notes)
    assert len((folder / "runs.1" / "metrics.jsonl").read_text().splitlines()) == 6


def test_what_cannot_start_is_refused_before_anything_happens(tmp_path: Path) -> None:
    with pytest.raises(InvalidInputError, match="no run folder"):
        LOCAL.run(tmp_path, Recorder())
    folder = make_run(tmp_path / "r")
    with pytest.raises(InvalidInputError, match="no checkpoint"):
        LOCAL.run(folder, Recorder(), resume=True)
    with pytest.raises(InvalidInputError, match="no interpreter"):
        LOCAL.run(folder, Recorder(), python="/no/such/python")
    (folder / "data" / "train.jsonl").unlink()
    with pytest.raises(InvalidInputError, match="missing"):
        LOCAL.run(folder, Recorder())
    (folder / "plan.json").write_text('{"schema_version": 1}')
    with pytest.raises(InvalidInputError, match=r"plan\.json"):
        LOCAL.run(folder, Recorder())
    assert not (folder / "runs").exists()


def test_missing_packages_come_with_the_command_that_installs_them(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "r")
    run = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**run, "requirements": ["no-such-package==1.2"]}))
    for python in (None, sys.executable):
        with pytest.raises(AdviseError) as error:
            LOCAL.run(folder, Recorder(), python=python)
        assert error.value.code == "missing-packages"
        assert "pip install no-such-package==1.2" in error.value.hint


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    assert read_state(tmp_path) is None
    (tmp_path / "runs" / "state.json").write_text("{")
    with pytest.raises(InvalidInputError, match=r"state\.json"):
        read_state(tmp_path)
    write_state(tmp_path, RunState(status="finished", started="2026-11-24"))
    assert read_state(tmp_path) == RunState(status="finished", started="2026-11-24")

"""`ftadvise runs` over stand-in trainers: what is listed, shown, watched and stopped, whoever started it."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from advisor.cli.main import run as ftadvise
from advisor.detection import Card
from advisor.launch.lock import is_held
from advisor.launch.metrics import Event
from advisor.launch.monitor import LiveScreen
from advisor.render.runs import print_runs
from advisor.runs import find_run, list_runs, remember_run, run_id
from profiles.errors import UnknownNameError
from profiles.store import Store
from profiles.units import GIB
from tests.advisor.test_launch_local import make_run
from tests.advisor.test_launch_metrics import FORECAST

LAUNCH = [sys.executable, "-m", "advisor.cli", "launch"]


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "home"))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Path]:
    """A run that goes on for a long time; its launcher was killed."""
    folder = make_run(tmp_path / "long run", steps=2000, pause=0.02)
    launcher = subprocess.Popen([*LAUNCH, folder, "--json"], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    while '"step"' not in launcher.stdout.readline():
        pass
    launcher.kill()
    launcher.wait()
    yield folder
    if is_held(folder):
        ftadvise(["runs", "stop", str(folder), "--kill"])


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    assert ftadvise(["runs", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["answer"]


def test_a_run_that_outlives_its_launcher_is_listed_shown_and_stopped(
    running: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (listed,) = answer(capsys)
    assert (listed["status"], listed["method"], listed["folder"]) == ("running", "lora", str(running))
    shown = answer(capsys, "show", listed["id"][:9])
    assert shown["state"]["status"] == "running"
    assert shown["state"]["step"] >= 1
    assert shown["losses"]
    stopped = answer(capsys, "stop", str(running))
    assert stopped["status"] == "stopped"
    assert stopped["step"] >= shown["state"]["step"]
    assert "--resume" in stopped["hint"]
    assert ftadvise(["runs", "stop", str(running)]) == 2
    assert ftadvise(["runs", "attach", str(running)]) == 2
    capsys.readouterr()
    assert ftadvise(["runs", "show", str(running)]) == 0
    page = capsys.readouterr().out
    for part in ("stopped on request", "2.9000 ->", "checkpoint-", "train.log", "tokens/s"):
        assert part in page, part


def ignore_interrupts() -> None:
    """As a shell without job control does for what it starts with `&`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.mark.thorough
@pytest.mark.parametrize("started_by", [None, ignore_interrupts], ids=["a terminal", "a background job"])
def test_a_watcher_sees_it_from_its_first_event_and_leaves_it_going(
    running: Path, started_by: Callable[[], None] | None
) -> None:
    command = [sys.executable, "-m", "advisor.cli", "runs", "attach", str(running), "--json"]
    watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=started_by)
    assert watcher.stdout is not None
    first = json.loads(watcher.stdout.readline())
    assert first["event"] == "start"
    watcher.send_signal(signal.SIGINT)
    rest, _ = watcher.communicate(timeout=20)
    assert watcher.returncode == 0
    assert "the run goes on" in json.loads(rest.splitlines()[-1])["text"]
    assert is_held(running)
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    seen = [json.loads(other.stdout.readline()) for _ in range(3)]
    assert [event.get("step", 0) for event in seen] == [0, 1, 2]
    assert ftadvise(["runs", "stop", str(running), "--kill"]) == 0
    told, _ = other.communicate(timeout=20)
    assert other.returncode == 130
    assert json.loads(told.splitlines()[-1])["status"] == "stopped"


@pytest.mark.thorough
def test_events_come_through_a_pipe_one_by_one(tmp_path: Path) -> None:
    """Two steps are far from the 8 KiB that a pipe's buffer holds back."""
    folder = make_run(tmp_path / "run", steps=2, pause=3.0)
    launcher = subprocess.Popen([*LAUNCH, folder, "--json"], stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    while json.loads(launcher.stdout.readline())["event"] != "start":
        pass
    assert is_held(folder)
    launcher.communicate(timeout=60)


@pytest.mark.thorough
def test_a_launcher_that_lives_hears_of_a_stop_by_another(tmp_path: Path) -> None:
    for kill, message in ((False, "stopped on request"), (True, "killed on request")):
        folder = make_run(tmp_path / f"run {kill}", steps=2000, pause=0.02)
        launcher = subprocess.Popen([*LAUNCH, folder, "--json"], stdout=subprocess.PIPE, text=True)
        assert launcher.stdout is not None
        while '"step"' not in launcher.stdout.readline():
            pass
        assert ftadvise(["runs", "stop", str(folder), *["--kill"] * kill]) == 0
        told, _ = launcher.communicate(timeout=20)
        assert launcher.returncode == 130
        (state,) = (line for line in map(json.loads, told.splitlines()) if line["event"] == "state")
        assert (state["status"], state["message"]) == ("stopped", message)


def test_folders_that_are_gone_damaged_or_not_started_are_listed_as_such(tmp_path: Path) -> None:
    for name in ("gone", "damaged", "new"):
        remember_run(make_run(tmp_path / name))
    shutil.rmtree(tmp_path / "gone")
    (tmp_path / "damaged" / "plan.json").write_text("{")
    assert {Path(r.folder).name: r.status for r in list_runs()} == {
        "gone": "gone", "damaged": "unreadable", "new": "not started",
    }  # fmt: skip
    console = Console(file=io.StringIO(), width=200, record=True)
    print_runs(list_runs(), console)
    assert "not started" in console.export_text()


def test_a_run_is_named_by_its_folder_or_the_beginning_of_its_id(tmp_path: Path, monkeypatch: Any) -> None:
    store = Store(tmp_path / "home")
    one, two = make_run(tmp_path / "a" / "run"), make_run(tmp_path / "b" / "run")
    name = remember_run(one, store)
    assert remember_run(one, store) == name == run_id(one)
    remember_run(two, store)
    assert len(list_runs(store)) == 2
    assert find_run(name, store) == one
    assert find_run(name[:-1], store) == one
    monkeypatch.chdir(tmp_path / "a")
    assert find_run("run", store) == one
    with pytest.raises(UnknownNameError, match="unknown run"):
        find_run("ru", store)
    with pytest.raises(UnknownNameError) as error:
        find_run("run-", store)
    assert len(error.value.suggestions) == 2


def test_a_store_that_cannot_be_written_does_not_keep_a_run_from_starting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FTADVISE_HOME", str(tmp_path / "file"))
    folder = make_run(tmp_path / "r")
    found = subprocess.run([*LAUNCH, folder], capture_output=True, text=True, env=os.environ)
    assert "will not list this run" in found.stderr
    assert "finished after 4 of 4 steps" in found.stderr


def test_the_screen_shows_every_card_beside_the_prediction() -> None:
    reads = iter([(0, 0), (5, 1), (7, 2), (3, 0)])

    def read_cards() -> tuple[Card, ...]:
        return tuple(
            Card("a card", f"GPU-{n}", 24 * GIB, GIB, (23 - used) * GIB, (9, 0)) for n, used in enumerate(next(reads))
        )

    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    screen = LiveScreen(console, FORECAST, read_cards)
    screen.event(Event(event="start", max_steps=4))
    for _ in range(3):
        console.print(screen.render())
    last = console.export_text().splitlines()[-2:]
    assert "3.00 GiB of 24.00 GiB, at most 7.00 GiB, predicted 3.00 GiB" in last[0]
    assert "0 B of 24.00 GiB, at most 2.00 GiB, predicted 3.00 GiB" in last[1]

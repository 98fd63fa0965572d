import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from advisor.emit import Forecast
from advisor.launch.folder import RunState
from advisor.launch.metrics import Course, Event, MetricsReader, read_course
from advisor.launch.monitor import JsonLines, LiveScreen, PlainLog, choose_reporter, sparkline
from estimators.interval import Interval
from profiles.units import GIB

FORECAST = Forecast(
    allocated=Interval.around(1.0 * GIB, 0.1, 0.1),
    reserved=Interval.around(2.0 * GIB, 0.1, 0.1),
    device=Interval.around(3.0 * GIB, 0.1, 0.1),
    step_seconds=Interval.around(2.0, 0.1, 0.1),
    tokens_per_second=Interval.around(1000.0, 0.1, 0.1),
)


def step(n: int, **fields: object) -> dict[str, object]:
    return {"event": "step", "step": n, "max_steps": 10, "loss": 3.0 - n / 10, "seconds": 2.0, "tokens": 400, **fields}


def course(*events: dict[str, object]) -> Course:
    found = Course()
    for event in events:
        found.add(Event.model_validate(event))
    return found


def test_half_a_line_waits_for_its_rest_and_broken_ones_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    reader = MetricsReader(path)
    assert list(reader.read()) == []
    line = json.dumps(step(1)).encode()
    path.write_bytes(line[:20])
    assert list(reader.read()) == []
    with path.open("ab") as file:
        file.write(line[20:] + b'\n{"event": "st\n[1]\n\xff\n' + json.dumps(step(2)).encode() + b"\n")
    assert [e.step for e in reader.read()] == [1, 2]
    assert list(reader.read()) == []


def test_speed_and_time_left_leave_the_first_step_out() -> None:
    found = course(step(1, seconds=60.0), step(2), step(3), step(4, seconds=4.0, steps=2))
    assert found.step_seconds == 2.0
    assert found.tokens_per_second == 1200 / 8
    assert found.seconds_left == 6 * 2.0
    assert course(step(1)).step_seconds == 2.0
    assert Course().seconds_left is None


def test_a_resumed_run_replaces_what_is_done_again() -> None:
    before = [{"event": "start", "step": 0, "max_steps": 10}, step(1), step(2), step(3)]
    found = course(*before, {"event": "start", "step": 2, "max_steps": 10}, step(3, loss=0.5), step(4))
    assert [e.step for e in found.steps] == [1, 2, 3, 4]
    assert found.losses[2] == 0.5


def test_a_loss_that_is_no_number_is_seen_and_json_stays_json(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(step(1)) + "\n" + json.dumps(step(2, loss=float("nan"))) + "\n")
    found = read_course(path)
    assert found.diverged_at == 2
    lines: list[str] = []
    JsonLines(lines.append).event(found.steps[1])
    assert json.loads(lines[0], parse_constant=pytest.fail)["loss"] is None


def test_a_sparkline_runs_from_high_to_low() -> None:
    assert sparkline([8, 7, 6, 5, 4, 3, 2, 1]) == "█▇▆▅▄▃▂▁"
    assert len(sparkline(list(map(float, range(1000))))) == 40
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([float("nan"), float("inf")]) == ""


EVENTS = [
    {"event": "start", "step": 0, "max_steps": 10, "trainable_parameters": 1000, "device": "a card"},
    {"event": "eval", "step": 0, "max_steps": 10, "loss": 3.1},
    *[step(n, reserved=int(2.5 * GIB), allocated=GIB, process=GIB) for n in range(1, 6)],
    {"event": "eval", "step": 5, "max_steps": 10, "loss": 2.4},
]
STATE = RunState(status="failed", started="x", step=5, max_steps=10, message="[red]odd[/red]", hint="do this")


def test_the_screen_shows_memory_and_speed_beside_the_prediction() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100, record=True)
    with LiveScreen(console, FORECAST) as screen:
        for event in EVENTS:
            screen.event(Event.model_validate(event))
        screen.note("a note")
        screen.finish(STATE)
    text = console.export_text()
    for part in ("step 5/10", "2.900 -> 2.500", "3.100 -> 2.400", "200, predicted 1.00K", "2.50 GiB", "2.00 GiB",
                 "10 s", "a note", "[red]odd[/red]", "hint: do this"):  # fmt: skip
        assert part in text, part


def test_plain_lines_say_the_same() -> None:
    out = io.StringIO()
    with PlainLog(FORECAST, out) as log:
        for event in EVENTS:
            log.event(Event.model_validate(event))
        log.finish(STATE)
    lines = out.getvalue().splitlines()
    assert lines[0] == "training 1.00K parameters on a card, 10 steps"
    assert lines[2] == "step 1/10  loss 2.9000  200 tokens/s  18 s left"
    assert "held-out loss 3.1000 -> 2.4000" in lines[-3]
    assert lines[-2] == "memory: 2.50 GiB reserved, predicted 2.00 GiB"
    assert lines[-1] == "hint: do this"


def test_the_reporter_follows_the_output() -> None:
    assert isinstance(choose_reporter(as_json=True), JsonLines)
    terminal = Console(file=io.StringIO(), force_terminal=True)
    assert isinstance(choose_reporter(console=terminal), LiveScreen)
    assert type(choose_reporter(console=Console(file=io.StringIO()))) is PlainLog

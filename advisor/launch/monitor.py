"""Reporters: a live screen for a terminal, plain lines for a log, JSON lines for a program."""

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TextIO

from advisor.emit import Forecast
from advisor.launch.base import Reporter
from advisor.launch.folder import RunState
from advisor.launch.metrics import Course, Event
from profiles.units import format_bytes, format_count, format_duration

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table

    from advisor.detection import Card

BARS = "▁▂▃▄▅▆▇█"
SPARK_WIDTH = 40


def sparkline(values: list[float], width: int = SPARK_WIDTH) -> str:
    """Bars for the means of `width` equal stretches of `values`, from the lowest to the highest of them."""
    finite = [v for v in values if abs(v) < float("inf")]
    if not finite:
        return ""
    n = min(width, len(finite))
    means = [_mean(finite[i * len(finite) // n : (i + 1) * len(finite) // n]) for i in range(n)]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((m - low) * scale)] for m in means)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def describe_memory(course: Course, forecast: Forecast | None) -> str:
    """Measured peak, and the prediction of the same quantity beside it; on a CPU the process's resident memory."""
    reserved, process = course.peak("reserved"), course.peak("process")
    if reserved is not None:
        predicted = f", predicted {format_bytes(forecast.reserved.expected)}" if forecast else ""
        return f"{format_bytes(reserved)} reserved{predicted}"
    return f"{format_bytes(process)} in the process" if process is not None else "-"


def describe_step(event: Event, course: Course) -> str:
    """One step in one line."""
    parts = [f"step {event.step}/{event.max_steps or '?'}"]
    if event.loss is not None:
        parts.append(f"loss {event.loss:.4f}")
    if course.tokens_per_second is not None:
        parts.append(f"{format_count(course.tokens_per_second)} tokens/s")
    if course.seconds_left:
        parts.append(f"{format_duration(course.seconds_left)} left")
    return "  ".join(parts)


def describe_end(state: RunState, course: Course) -> str:
    """How the run ended, in one line."""
    parts = [f"{state.status} after {state.step} of {state.max_steps or '?'} steps"]
    if state.message:
        parts.append(state.message)
    if len(course.eval_losses) > 1:
        parts.append(f"held-out loss {course.eval_losses[0][1]:.4f} -> {course.eval_losses[-1][1]:.4f}")
    return "; ".join(parts)


def _print_at_once(line: str) -> None:
    """A pipe would hold back 8 KiB."""
    print(line, flush=True)


class JsonLines:
    """Every event as it came, as JSON; notes and the end too."""

    def __init__(self, write: Callable[[str], Any] = _print_at_once) -> None:
        self._write = write

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def event(self, event: Event) -> None:
        """The event; a loss that is no number becomes null."""
        self._write(event.model_dump_json(exclude_defaults=True))

    def note(self, text: str) -> None:
        """{"event": "note", "text": ...}."""
        self._write(json.dumps({"event": "note", "text": text}))

    def finish(self, state: RunState) -> None:
        """The final state, with "event": "state"."""
        self._write(json.dumps({"event": "state", **state.model_dump(mode="json")}))


class PlainLog:
    """One line an event, for output that is no terminal."""

    def __init__(self, forecast: Forecast | None = None, out: TextIO | None = None) -> None:
        self.course = Course()
        self.forecast = forecast
        self._out = out or sys.stderr

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def _say(self, text: str) -> None:
        print(text, file=self._out, flush=True)

    def event(self, event: Event) -> None:
        """Steps and evaluations; a start says what is trained."""
        self.course.add(event)
        if event.event == "start":
            trained = format_count(event.trainable_parameters or 0)
            self._say(f"training {trained} parameters on {event.device}, {event.max_steps} steps")
        elif event.event == "step":
            self._say(describe_step(event, self.course))
        elif event.event == "eval":
            self._say(f"step {event.step}  held-out loss {event.loss:.4f}")

    def note(self, text: str) -> None:
        """The text."""
        self._say(f"note: {text}")

    def finish(self, state: RunState) -> None:
        """How it ended, the memory, and what to do next."""
        self._say(describe_end(state, self.course))
        self._say(f"memory: {describe_memory(self.course, self.forecast)}")
        if state.hint:
            self._say(f"hint: {state.hint}")


class LiveScreen(PlainLog):
    """A screen that redraws itself: bar, loss, speed, memory against the prediction, every card's too, time left."""

    def __init__(
        self,
        console: "Console",
        forecast: Forecast | None = None,
        read_cards: Callable[[], "tuple[Card, ...]"] = tuple,
    ) -> None:
        super().__init__(forecast)
        from rich.live import Live

        self.console = console
        self._read_cards = read_cards
        self._card_peaks: dict[int, int] = {}
        self._live = Live(get_renderable=self.render, console=console, refresh_per_second=4, transient=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._live.stop()

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False)

    def event(self, event: Event) -> None:
        """Only remembered: the screen shows it."""
        self.course.add(event)

    def finish(self, state: RunState) -> None:
        """Leave the last screen and the end on the terminal."""
        self._live.stop()
        self.console.print(self.render())
        super().finish(state)

    def render(self) -> "RenderableType":
        """The screen as it stands."""
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        course = self.course
        table = Table.grid(padding=(0, 2))
        if course.start is None:
            table.add_row("loading", Text("the model and the data; details in runs/train.log"))
            self._add_cards(table)
            return table
        total = course.max_steps or 1
        table.add_row(
            f"step {course.step}/{course.max_steps or '?'}", ProgressBar(total, course.step, width=SPARK_WIDTH)
        )
        if course.losses:
            ends = f"{course.losses[0]:.3f} -> {course.losses[-1]:.3f}"
            table.add_row("loss", Text(f"{sparkline(course.losses)}  {ends}"))
        if course.eval_losses:
            table.add_row("held out", Text(" -> ".join(f"{loss:.3f}" for _, loss in course.eval_losses[-4:])))
        speed = course.tokens_per_second
        if speed is not None:
            predicted = self.forecast.tokens_per_second if self.forecast else None
            beside = f", predicted {format_count(predicted.expected)}" if predicted else ""
            table.add_row("tokens/s", Text(f"{format_count(speed)}{beside}"))
        table.add_row("memory", Text(describe_memory(course, self.forecast)))
        self._add_cards(table)
        if course.seconds_left:
            table.add_row("left", Text(format_duration(course.seconds_left)))
        return table

    def _add_cards(self, table: "Table") -> None:
        """What all programs together hold of each card, now and at most since the screen is there."""
        predicted = f", predicted {format_bytes(self.forecast.device.expected)}" if self.forecast else ""
        for index, card in enumerate(self._read_cards()):
            if card.used is None or card.total is None:  # unified memory
                continue
            peak = self._card_peaks[index] = max(card.used, self._card_peaks.get(index, 0))
            held = f"{format_bytes(card.used)} of {format_bytes(card.total)}, at most {format_bytes(peak)}"
            table.add_row(f"card {index}", f"{held}{predicted}")


def choose_reporter(
    *,
    as_json: bool = False,
    forecast: Forecast | None = None,
    console: "Console | None" = None,
    read_cards: Callable[[], "tuple[Card, ...]"] = tuple,
) -> Reporter:
    """JSON lines if asked for, a live screen on a terminal, plain lines elsewhere."""
    if as_json:
        return JsonLines()
    if console is not None and console.is_terminal:
        return LiveScreen(console, forecast, read_cards)
    return PlainLog(forecast)

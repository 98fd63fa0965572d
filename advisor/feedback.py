"""Learn from a run: its folder becomes a Measurement, which is compared with the prediction and stored."""

import math
import platform
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

from advisor.emit import Forecast
from advisor.launch.folder import METRICS, load_run_file
from advisor.launch.metrics import Course, read_course
from advisor.launch.state import read_state
from advisor.retention import describe_retention
from estimators.interval import Interval
from profiles.errors import InvalidInputError
from profiles.measurement import Environment, Measurement
from profiles.record import Record
from profiles.store import Store
from profiles.units import format_bytes, format_count


def measure_run(folder: Path) -> Measurement:
    """What the run in `folder` did.

    Raises:
        InvalidInputError: it is no run folder, has not logged a step, or is still running.
    """
    folder = folder.absolute()
    run, state, course = load_run_file(folder), read_state(folder), read_course(folder / METRICS)
    if state is not None and state.status == "running":
        raise InvalidInputError(str(folder), "is still running", "Wait for its end.")
    if course.start is None or not course.steps:
        raise InvalidInputError(str(folder), "has not logged any step", "`ftadvise launch` runs it.")
    finished = course.end is not None and course.end.status == "finished"
    forecast = run.forecast
    losses = [loss for loss in course.losses if math.isfinite(loss)]
    return Measurement(
        id=_name(run.model, run.plan.method, course),
        date=_date(course),
        plan=run.plan,
        environment=Environment(hardware=_hardware(course), versions=course.start.versions),
        model_parameters=run.model_parameters,
        trainable_parameters=course.start.trainable_parameters or run.trainable_parameters,
        steps=course.step,
        step_seconds_median=course.step_seconds,
        tokens_per_second=course.tokens_per_second,
        first_loss=losses[0] if losses else None,
        last_loss=losses[-1] if losses else None,
        eval_loss_before=_eval_loss(course, first=True),
        eval_loss_after=_eval_loss(course, first=False),
        retention=course.retention,
        peak_allocated=course.peak("allocated"),
        peak_reserved=course.peak("reserved"),
        peak_process=course.peak("process"),
        predicted_device=forecast.device.expected if forecast else None,
        predicted_step_seconds=forecast.step_seconds.expected if forecast and forecast.step_seconds else None,
        finished=finished,
        notes="" if course.diverged_at is None else f"the loss was no finite number at step {course.diverged_at}",
    )


def record_run(folder: Path, store: Store | None = None) -> Measurement:
    """Measure the run and keep the measurement. Raises AdviseError as `measure_run` and the store do."""
    measurement = measure_run(folder)
    (store or Store()).measurements.add(measurement)
    return measurement


class Comparison(Record):
    """A measured figure beside its prediction. inside: within the predicted interval; None where there is none."""

    figure: str
    measured: float
    predicted: Interval | None
    inside: bool | None
    text: str


def compare_figures(measurement: Measurement, forecast: Forecast | None) -> tuple[Comparison, ...]:
    """Memory (bytes), a step (seconds) and speed (tokens/s), as far as they were measured: no memory on a CPU."""
    figures = (
        ("allocated memory", measurement.peak_allocated, "allocated", format_bytes),
        ("reserved memory", measurement.peak_reserved, "reserved", format_bytes),
        ("a step", measurement.step_seconds_median, "step_seconds", _seconds),
        ("tokens/s", measurement.tokens_per_second, "tokens_per_second", format_count),
    )
    return tuple(
        _compare(title, measured, getattr(forecast, name, None), show)
        for title, measured, name, show in figures
        if measured is not None
    )


def compare(measurement: Measurement, forecast: Forecast | None) -> tuple[str, ...]:
    """Predicted against measured, a line each, and what was learned."""
    lines = [comparison.text for comparison in compare_figures(measurement, forecast)]
    if measurement.peak_reserved is None and measurement.peak_process is not None:
        held = format_bytes(measurement.peak_process)
        lines.insert(0, f"memory of the process: measured {held} (no GPU, no prediction)")
    before, after = measurement.eval_loss_before, measurement.eval_loss_after
    if before is not None and after is not None:
        verdict = "better" if after < before else "not better"
        lines.append(f"held-out loss: {before:.4f} before, {after:.4f} after ({verdict})")
    if measurement.retention is not None:
        lines.append(f"general text: {describe_retention(measurement.retention)}")
    return tuple(lines)


def _compare(title: str, measured: float, predicted: Interval | None, show: Callable[[float], str]) -> Comparison:
    text, inside = f"{title}: measured {show(measured)}", None
    if predicted is not None:
        error = (predicted.expected - measured) / measured if measured else math.inf
        inside = predicted.low <= measured <= predicted.high
        text += (
            f", predicted {show(predicted.expected)} ({error:+.1%}), {'inside' if inside else 'outside'} the predicted "
            f"{show(predicted.low)} to {show(predicted.high)}"
        )
    return Comparison(figure=title, measured=measured, predicted=predicted, inside=inside, text=text)


def _seconds(value: float) -> str:
    return f"{value:.3g} s"


def _eval_loss(course: Course, *, first: bool) -> float | None:
    """Before: of step 0. After: the last one, if any came later."""
    at_start = [loss for step, loss in course.eval_losses if step == 0 and math.isfinite(loss)]
    later = [loss for step, loss in course.eval_losses if step > 0 and math.isfinite(loss)]
    chosen = at_start[:1] if first else later[-1:]
    return chosen[0] if chosen else None


def _hardware(course: Course) -> str:
    start = course.start
    if start is None or start.device in (None, "cpu"):
        return f"cpu: {platform.processor() or platform.machine()}"
    return f"{start.processes or 1}x {start.device}"


def _date(course: Course) -> str:
    seconds = course.steps[-1].time
    return (datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)).date().isoformat()


def _name(model: str, method: str, course: Course) -> str:
    """Readable, and the same for the same run: model, method, day, and a hash of when its steps ended."""
    safe = "".join(c if c.isascii() and c.isalnum() else "-" for c in model.rstrip("/").rpartition("/")[2])[:40]
    stamp = sha256(f"{model}|{course.steps[0].time}|{course.steps[-1].time}".encode()).hexdigest()[:8]
    return f"{safe.strip('-') or 'model'}-{method}-{_date(course)}-{stamp}"

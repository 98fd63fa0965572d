"""Calibrations as a page."""

from collections.abc import Sequence

from advisor.calibrate import CalibrationAnswer
from advisor.render.page import Page
from estimators.throughput import TIME_FACTOR
from profiles.calibration import Calibration


def render_answer(answer: CalibrationAnswer, width: int | None = None) -> Page:
    """What was measured now, and what estimates rest on from now on."""
    page = Page(width)
    _add(page, answer.calibration)
    failed = [f"{o.probe} {o.error}" for o in answer.probes if o.error]
    page.bullets("Not complete (what was measured before counts)", failed)
    page.bullets("Careful", answer.warnings)
    page.line()
    page.field("Stored", answer.path)
    return page


def describe_stored(calibrations: Sequence[Calibration], width: int | None = None) -> Page:
    """All stored calibrations with their constants."""
    page = Page(width)
    if not calibrations:
        page.line("No calibration is stored: `ftadvise calibrate` makes one in about a minute.")
    for calibration in calibrations:
        _add(page, calibration)
        page.field("File", f"{calibration.id}.json, {calibration.origin}")
        page.line()
    return page


def _add(page: Page, calibration: Calibration) -> None:
    environment, steps = calibration.environment, calibration.constants.get(TIME_FACTOR)
    page.field("Hardware", environment.hardware)
    versions = [f"{name} {version}" for name, version in environment.versions.items()]
    if environment.driver_version:
        versions.append(f"driver {environment.driver_version}")
    page.field("Versions", ", ".join(versions) or "not known")
    said = f"{len(calibration.steps)} training steps and {len(calibration.kernels)} kernels, {calibration.date}"
    page.field("Measured", said)
    if steps is None:
        few = len(calibration.steps)
        page.field("Steps", f"{few or 'none'} could be timed, which is too few: the interval stays wide")
    else:
        page.field("Steps", f"+-{steps.residual:.0%} (90 % interval, each step predicted without itself), n={steps.n}")
    constants = (f"{name} {fitted.value:.4g}" for name, fitted in calibration.constants.items() if name != TIME_FACTOR)
    page.field("Constants", ", ".join(constants))

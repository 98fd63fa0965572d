"""Measure this machine and fit the speed model to it; keep, show, export and import what came of it."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from advisor.calibration_plans import calibration_plans, default_model
from advisor.calibrations import calibration_id, environment_of
from advisor.facts import model_config
from advisor.hardware import resolve_hardware
from estimators.fit import fit_calibration
from profiles.calibration import Calibration, TimedKernel, TimedStep
from profiles.errors import AdviseError, InvalidInputError, UnsupportedError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.measurement import Measurement
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.probes.job import PROBES, ProbeJob, ProbeName
from profiles.probes.run import ProbeOutcome, run_probe
from profiles.record import Record, parse_record
from profiles.store import Store
from profiles.units import MIB, bytes_from_gib

Device = Literal["cpu", "cuda"]
# Seconds that a probe may measure (quick, full); they end earlier when they are done
KERNEL_SECONDS = {False: 4.0, True: 15.0}
STEP_SECONDS = {"cpu": {False: 45.0, True: 180.0}, "cuda": {False: 25.0, True: 150.0}}
RSS_SHARE = 0.6  # of the machine's free memory, which a probe on a CPU may take
RSS_ON_CARD = bytes_from_gib(16)  # what a probe on a card may take of main memory: CUDA libraries, weights on their way
BUSY_LOAD = 0.5  # processes that want to run, a core
FEWEST_RUN_STEPS = 5  # the first ones warm up
MAX_FILE_BYTES = 16 * MIB  # larger files are no calibrations


class CalibrationOptions(Record):
    """What to calibrate. device None: a card where there is one. model None: one that suits the device."""

    device: Device | None = None
    full: bool = False
    model: str | None = None


class CalibrationAnswer(Record):
    """What was stored, and what each probe did."""

    calibration: Calibration
    probes: tuple[ProbeOutcome, ...]
    path: str
    warnings: tuple[str, ...] = ()


def calibrate(
    options: CalibrationOptions,
    *,
    store: Store | None = None,
    on_start: Callable[[ProbeName], None] = lambda name: None,
    on_end: Callable[[ProbeOutcome], None] = lambda outcome: None,
) -> CalibrationAnswer:
    """Run the probes, fit, and keep the result; a second run on the same machine and versions refines the first.

    Raises:
        AdviseError: torch or the card is missing, nothing could be measured, or the store cannot be written (said
            before anything is measured).
    """
    store = store or Store()
    hardware, device = _device(options.device)
    store.calibrations.check_writable()
    config, _ = model_config(options.model or default_model(device, hardware.gpu.memory_bytes))
    plans = calibration_plans(config, device=device, full=options.full)
    warnings = _busy(hardware) if device == "cpu" else ()
    outcomes = []
    for name in _probes(hardware, device):
        on_start(name)
        job = ProbeJob(
            probe=name, device=device, full=options.full,
            seconds=STEP_SECONDS[device][options.full] if name == "steps" else KERNEL_SECONDS[options.full],
            plans=plans if name == "steps" else (),
        )  # fmt: skip
        outcome = run_probe(job, rss_bytes=_rss_bytes(hardware, device))
        outcomes.append(outcome)
        on_end(outcome)
    kernels, steps = [k for o in outcomes for k in o.kernels], [s for o in outcomes for s in o.steps]
    found = learn(hardware, store, kernels=kernels, steps=steps)
    path = store.calibrations.folder / f"{found.id}.json"
    return CalibrationAnswer(calibration=found, probes=tuple(outcomes), path=str(path), warnings=warnings)


def learn(
    hardware: Hardware,
    store: Store,
    *,
    kernels: Sequence[TimedKernel] = (),
    steps: Sequence[TimedStep] = (),
    versions: Mapping[str, str] | None = None,
) -> Calibration:
    """Fit what was timed, together with what is stored for this hardware and these versions, and store that."""
    environment = environment_of(hardware, versions)
    name = calibration_id(environment)

    def refine(previous: Calibration | None) -> Calibration:
        return fit_calibration(
            calibration_id=name, date=datetime.now(UTC).date().isoformat(), environment=environment, gpu=hardware.gpu,
            kernels=kernels, steps=steps, describe=describe_plan_model, previous=previous,
        )  # fmt: skip

    return store.calibrations.update(name, refine)


def learn_from_run(measurement: Measurement, store: Store | None = None) -> Calibration | None:
    """Let the step time of a finished run on this machine sharpen the calibration of it.

    None where the run says nothing about it: not finished, too short, several cards, another device, unknown model.

    Raises:
        AdviseError: the store cannot be written, or its file of this machine is damaged.
    """
    plan, seconds = measurement.plan, measurement.step_seconds_median
    if not measurement.finished or seconds is None or measurement.steps < FEWEST_RUN_STEPS or plan.n_gpus > 1:
        return None
    on_cpu = measurement.environment.hardware.startswith("cpu")
    hardware = resolve_hardware("cpu" if on_cpu else None)
    if not on_cpu and measurement.environment.hardware != f"1x {hardware.gpu.name}":
        return None
    try:
        config, _ = model_config(plan.model, offline=True)
    except AdviseError:
        return None
    step = TimedStep(plan=plan.replace(model=config), seconds=seconds, origin="launch")
    return learn(hardware, store or Store(), steps=[step], versions=measurement.environment.versions)


def describe_learning(measurement: Measurement, store: Store | None = None) -> tuple[str, ...]:
    """Learn from the run, and say what came of it; a store that cannot be written does not make the run a failure."""
    try:
        found = learn_from_run(measurement, store)
    except AdviseError as error:
        return (f"not learnt from: {error.message}",)
    return () if found is None else (f"learnt from: {len(found.steps)} timed steps of this machine are stored now",)


def describe_plan_model(plan: Plan) -> ModelSpec:
    """The model of a timed plan, whose config is inside it. Raises InvalidInputError where it is only a name."""
    if isinstance(plan.model, str):
        raise InvalidInputError("plan.model", f"{plan.model!r} is a name, not a config")
    return describe_model(plan.model, "model")


def export_calibration(path: Path, store: Store | None = None) -> Calibration:
    """Write this machine's calibration (else the only one) to a new file.

    Raises:
        AdviseError: there is none, several and none of this machine, or the file exists or cannot be written.
    """
    store = store or Store()
    found = store.calibrations.load()
    if not found:
        raise AdviseError("no-calibration", "there is no calibration to export", "`ftadvise calibrate` makes one.")
    name = calibration_id(environment_of(resolve_hardware()))
    own = [c for c in found if c.id == name] or ([*found] if len(found) == 1 else [])
    if not own:
        names = ", ".join(c.id for c in found)
        hint = f"Copy one from {store.calibrations.folder}."
        raise AdviseError("no-calibration", f"none of the calibrations is this machine's: {names}", hint)
    text = own[0].model_dump_json(indent=2) + "\n"
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise InvalidInputError(str(path), "exists already and was left as it is", "Choose another name.") from None
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be written: {error.strerror}") from None
    return own[0]


def import_calibration(path: Path, store: Store | None = None) -> Calibration:
    """Add a calibration that another machine (or person) exported.

    Raises:
        InvalidInputError: the file is damaged, no calibration, implausible, or one of its id is here already.
    """
    found = _read(path)
    (store or Store()).calibrations.add(found)
    return found


def _read(path: Path) -> Calibration:
    hint = "`ftadvise calibrate --export FILE` writes what can be imported. Nothing was changed."
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidInputError(str(path), f"cannot be read: {error.strerror}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise InvalidInputError(str(path), "is too large for a calibration", hint)
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError):
        raise InvalidInputError(str(path), "is damaged, or no JSON", hint) from None
    if not isinstance(data, dict) or "constants" not in data:
        raise InvalidInputError(str(path), "is no calibration", hint)
    if data.get("schema_version") != 1:
        raise InvalidInputError(str(path), f"has the unknown schema {data.get('schema_version')!r}", "Update ftadvise.")
    found = parse_record(Calibration, data, str(path), hint)
    _check_plausible(found, path, hint)
    return found.replace(origin="imported")


def _check_plausible(found: Calibration, path: Path, hint: str) -> None:
    """Its id is that of its environment, and it holds constants that the model knows, within a factor of 100."""
    from estimators.fit import CARD_PRIORS, CPU_PRIORS, LINK_PRIORS, start_constants
    from estimators.throughput import TIME_FACTOR

    if found.id != calibration_id(found.environment):
        raise InvalidInputError(str(path), "its id is not that of its hardware and versions", hint)
    defaults = {**start_constants(), TIME_FACTOR: 1.0}
    for name, fitted in found.constants.items():
        if name not in {*CARD_PRIORS, *CPU_PRIORS, *LINK_PRIORS, TIME_FACTOR}:
            raise InvalidInputError(str(path), f"the speed model has no constant {name!r}", hint)
        if not 0.01 < fitted.value / defaults[name] < 100:
            raise InvalidInputError(str(path), f"{name} = {fitted.value:g} is beyond belief", hint)


def _probes(hardware: Hardware, device: Device) -> tuple[ProbeName, ...]:
    """Those that have something to time here: each costs the start of a process, seconds with CUDA."""
    silent: set[ProbeName] = {"transfer", "collective"} if device == "cpu" else set()
    if hardware.n_gpus == 1:
        silent.add("collective")
    return tuple(name for name in PROBES if name not in silent)


def _device(wanted: Device | None) -> tuple[Hardware, Device]:
    """The hardware to measure. Raises where torch, or the card that was asked for, is not there."""
    if find_spec("torch") is None:
        raise AdviseError("torch-missing", "calibrating needs torch", "pip install 'ftadvise[train]'")
    hardware = resolve_hardware("cpu" if wanted == "cpu" else None)
    if wanted == "cuda" and hardware.origin == "cpu":
        raise UnsupportedError("there is no CUDA card here", "`ftadvise calibrate --device cpu` measures the CPU.")
    if hardware.origin != "cpu" and hardware.gpu.vendor not in ("NVIDIA", "AMD"):
        raise UnsupportedError(f"{hardware.gpu.name} cannot be calibrated", "`--device cpu` measures the CPU.")
    return hardware, "cpu" if hardware.origin == "cpu" else "cuda"


def _busy(hardware: Hardware) -> tuple[str, ...]:
    """What to say where others use the CPU: a thread that has to wait makes all the others wait."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    cores = hardware.gpu.sm_count or 1
    if load < BUSY_LOAD * cores:
        return ()
    return (
        f"the machine was busy when this began (load {load:.1f} on {cores} cores): what was measured holds for a busy "
        "machine; calibrate again when it is idle, three newer timings replace the older ones",
    )


def _rss_bytes(hardware: Hardware, device: Device) -> float:
    free = hardware.free_gib if device == "cpu" else None
    return RSS_ON_CARD if free is None else RSS_SHARE * bytes_from_gib(free)

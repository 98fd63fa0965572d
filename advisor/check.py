"""A training file: does it fit, how fast is it, what is risky, what to change, and what could not be judged."""

import re
from collections.abc import Iterator
from math import ceil

from advisor.api import estimate, resolve_plan
from advisor.explain import example_card
from advisor.facts import find_known
from advisor.file_risks import Case, find_file_risks
from advisor.hardware import parse_gpu, resolve_hardware
from advisor.plans import name_card
from advisor.readers import Finding, KeyNote, Reading, get_reader
from advisor.readers.default_targets import DEFAULT_TARGETS
from advisor.recommendation import Answer, DataFacts, Facts, Risk, Verdict
from advisor.remedies import find_remedies
from advisor.risks import forgetting, maintenance, resource_use
from estimators.answer import Estimate, MemoryEstimate, SpeedEstimate
from estimators.interval import Interval
from estimators.memory import estimate_memory
from estimators.methods import get_method
from profiles.errors import AdviseError, UnsupportedError
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.platform import load_platforms
from profiles.units import gib_from_bytes

# Organisations of the hub that copy others' models under the same name, and what they append to it
MIRRORS = re.compile(r"^(?:unsloth|NousResearch)/(?P<name>.+?)(?:-unsloth)?(?:-bnb-4bit)?$", re.IGNORECASE)
STORED_OTHERWISE = re.compile(r"(?:^|[-_/.])(gptq|awq|aqlm|fp8|nvfp4|mxfp4|gguf|int4|w4a16)(?:$|[-_.])", re.IGNORECASE)
MODEL_UNKNOWN = frozenset({"model-offline", "hub-unreachable", "unknown-model", "model-gated", "invalid-model"})
STAND_IN = "--model names a model to stand in for it: a catalogue name, a folder or a config.json."


class Change(Answer):
    """Keys of the file with other values, after which it fits. device: memory of one card then, bytes."""

    keys: dict[str, str]
    cost: str
    device: Interval
    tokens_per_second: Interval | None


class CheckAnswer(Answer):
    """What was found. `verdict` is None where nothing could be judged; `unjudged` and `hint` then say why."""

    verdict: Verdict | None
    unjudged: str = ""
    hint: str = ""
    format: str
    release: str
    plan: Plan | None = None
    memory: MemoryEstimate | None = None
    speed: SpeedEstimate | None = None
    findings: tuple[Finding, ...] = ()
    risks: tuple[Risk, ...] = ()
    changes: tuple[Change, ...] = ()
    way_out: tuple[str, ...] = ()
    keys: tuple[KeyNote, ...] = ()
    assumptions: tuple[str, ...] = ()


def check(
    reading: Reading,
    *,
    gpu: str | None = None,
    vram_gib: float | None = None,
    n_gpus: int | None = None,
    model: str | None = None,
    offline: bool = False,
) -> CheckAnswer:
    """Judge a file on a card; `model` stands in for the one that it names.

    Raises:
        AdviseError: the hardware that was asked for does not exist.
    """
    if reading.plan is None:
        return _unjudged(reading, reading.unjudged)
    hardware = resolve_hardware(gpu, vram_gib, n_gpus or _count(reading, gpu, vram_gib))
    name, assumption = _model_name(str(reading.plan.model), model)
    plan = _placed(reading, reading.plan.replace(model=name), hardware)
    if not name:
        return _unjudged(reading, "the file names no model that can be read", STAND_IN, plan)
    platform = load_platforms()[plan.platform]
    if platform.needs_gpu and hardware.gpu.vendor == "CPU":
        return _unjudged(reading, f"{platform.name} needs a GPU", "--gpu or --vram names the card that is meant.", plan)
    stored = STORED_OTHERWISE.search(str(reading.plan.model))
    if reading.unjudged or stored:
        kind = stored[1].upper() if stored else ""
        return _unjudged(reading, reading.unjudged or f"the base is stored as {kind}, which is not modelled", plan=plan)
    try:  # the model first: it may decide the targets
        spec, hardware = resolve_plan(plan.replace(target_modules=("all-linear",)), hardware=hardware, offline=offline)
        plan = _with_targets(reading, plan, spec)
        found = estimate(plan, hardware=hardware, offline=offline)
    except AdviseError as error:
        return _unjudged(reading, error.message, STAND_IN if error.code in MODEL_UNKNOWN else "", plan)
    said = tuple(text for text in (assumption, _say_cards(reading, plan.n_gpus, asked=n_gpus)) if text)
    return _judged(reading, plan, spec, hardware, found, said, offline)


def launched(reading: Reading, launch: Reading) -> Reading:
    """The file, placed as accelerate's own file says."""
    fields = ("n_gpus", "sharding", "offload_optimizer", "offload_parameters")
    return reading.replace(**{field: getattr(launch, field) for field in fields})


def _judged(
    reading: Reading,
    plan: Plan,
    model: ModelSpec,
    hardware: Hardware,
    found: Estimate,
    said: tuple[str, ...],
    offline: bool,
) -> CheckAnswer:
    memory, speed = found.memory, found.speed
    facts = Facts.model_construct(
        model=model,
        hardware=hardware,
        data=DataFacts.model_construct(basis="as the file says"),
        task=plan.task,
        seq_len=plan.seq_len,
    )
    fits = memory.verdict == "fits"
    changes = () if fits else tuple(_changes(reading, plan, model, hardware, offline))
    return CheckAnswer.model_construct(
        verdict=memory.verdict,
        format=reading.format,
        release=reading.release,
        plan=plan,
        memory=memory,
        speed=speed,
        findings=(*reading.findings, *find_file_risks(Case(reading, plan, model, hardware))),
        risks=(*forgetting(plan, memory), *(resource_use(plan, memory, facts) if fits else ()), *maintenance(plan)),
        changes=changes,
        way_out=() if fits else (_larger_card(memory),),
        keys=reading.keys,
        assumptions=tuple(
            dict.fromkeys((*said, *hardware.assumptions, *memory.assumptions, *(speed.assumptions if speed else ())))
        ),
    )


def _unjudged(reading: Reading, reason: str, hint: str = "", plan: Plan | None = None) -> CheckAnswer:
    return CheckAnswer.model_construct(
        verdict=None,
        unjudged=reason,
        hint=hint,
        format=reading.format,
        release=reading.release,
        plan=plan,
        findings=reading.findings,
        keys=reading.keys,
    )


def _count(reading: Reading, gpu: str | None, vram_gib: float | None) -> int | None:
    """Cards as the file says, where a card was named without a count."""
    named = gpu is not None and gpu.strip().casefold() != "cpu" and parse_gpu(gpu)[0] is None
    return reading.n_gpus if named or (gpu is None and vram_gib is not None) else None


def _say_cards(reading: Reading, n_gpus: int, *, asked: int | None) -> str:
    """Where the number of cards comes from, if the file has one."""
    if reading.n_gpus is None or asked is not None:
        return ""
    if reading.n_gpus != n_gpus:
        return f"the file means {reading.n_gpus} cards; it is judged on {n_gpus}"
    return f"{n_gpus} cards, as the file says (--n-gpus sets another number)" if n_gpus > 1 else ""


def _model_name(written: str, stand_in: str | None) -> tuple[str, str]:
    """What to look up, and what has to be said of it: a copy under another organisation is the model of its name."""
    if stand_in is not None:
        return stand_in, f"{stand_in} stands in for {written}" if stand_in != written else ""
    mirror = MIRRORS.match(written)
    if mirror is None or find_known(written) is not None:
        return written, ""
    row = find_known(mirror["name"])
    return (written, "") if row is None else (row.id, f"{written} is taken for {row.id}, by its name")


def _placed(reading: Reading, plan: Plan, hardware: Hardware) -> Plan:
    """The plan on this many of these cards."""
    n_gpus = hardware.n_gpus
    changes: dict[str, object] = {"n_gpus": n_gpus, "gpu": name_card(hardware)}
    if n_gpus > 1 or (reading.offload_optimizer and reading.sharding in ("zero2", "zero3")):
        sharding = reading.sharding if reading.sharding not in (None, "none") else "ddp"
        changes |= {
            "sharding": sharding,
            "offload_optimizer": reading.offload_optimizer,
            "offload_parameters": reading.offload_parameters,
        }
    if reading.float_by_card and plan.quantization == "bf16" and hardware.gpu.bf16 is False:
        changes["quantization"] = "fp16"
    return plan.replace(**changes)


def _with_targets(reading: Reading, plan: Plan, model: ModelSpec) -> Plan:
    """PEFT's own modules for this model, where the file leaves them to it."""
    if not reading.targets_by_model or model.model_type not in DEFAULT_TARGETS:
        return plan
    return plan.replace(target_modules=DEFAULT_TARGETS[model.model_type])


def _changes(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware, offline: bool) -> Iterator[Change]:
    """The smallest changes that make it fit, in the file's own words."""
    reader = get_reader(reading.format)

    def judge(changed: Plan) -> Estimate:
        """In full only where the formulas alone leave a chance."""
        refusal = get_method(changed.method).refusal(model, changed)
        if refusal is not None:
            raise UnsupportedError(refusal)
        quick = estimate_memory(changed, model, hardware)
        if quick.verdict == "does not fit":
            return Estimate(memory=quick, speed=None)
        return estimate(changed, hardware=hardware, offline=offline)

    for remedy in find_remedies(plan, judge):
        speed = remedy.estimate.speed
        yield Change.model_construct(
            keys=reader.write(plan, remedy.plan),
            cost=remedy.cost,
            device=remedy.estimate.memory.device,
            tokens_per_second=speed.tokens_per_second if speed is not None else None,
        )


def _larger_card(memory: MemoryEstimate) -> str:
    needs = gib_from_bytes(memory.device.high)
    return f"as it is, a card that offers {ceil(needs * 10) / 10:.1f} GiB{example_card(needs)}"

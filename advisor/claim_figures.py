"""Our numbers for the claims that can be reckoned, by the claim's id."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from advisor.facts import resolve_model
from advisor.hardware import resolve_hardware
from estimators.answer import Estimate
from estimators.memory import estimate_memory
from estimators.methods import get_method
from estimators.throughput import estimate_speed
from profiles.catalog import find_model_row
from profiles.plan import Plan

# R: three sizes of one family that has biases, so that all eight methods exist; whatever fits the card: shares of full
# fine-tuning of the same model with the same batch, weights in bf16, AdamW, with checkpointing and without.
SIZES = ("qwen2.5-1.5b", "qwen2.5-7b", "qwen2.5-72b")
R_CARD, R_BATCH, R_LENGTH = "h100-sxm", 4, 512

# P4, P5, H1: (model, card, method, micro-batch, length), from everyday runs to those that suit Unsloth best.
PLATFORM_CASES = (
    ("llama-8b", "a100-80-sxm", "lora", 4, 1024),
    ("llama-8b", "rtx4090", "qlora", 2, 2048),
    ("llama-8b", "a100-80-sxm", "qlora", 1, 32768),
    ("llama-70b", "h100-sxm", "qlora", 2, 2048),
    ("llama-1b", "t4", "qlora", 2, 512),
    ("gemma2-9b", "rtx4090", "qlora", 1, 2048),
)
CARD_24_GB = "rtx4090"
SHORT_EXAMPLES, LONG_PROMPT = 210, 200  # tokens: PEFT's method comparison


class Measured(NamedTuple):
    """A number of ours for one column of a claim, in one case."""

    column: str
    case: str
    value: float
    unit: str


def measure_claim(claim_id: str) -> Iterator[Measured]:
    """Our numbers for the claim; none for those that are read, not reckoned."""
    if claim_id.startswith("R-"):
        return method_shares(claim_id.removeprefix("R-"))
    measure = _BY_CLAIM.get(claim_id)
    return measure() if measure is not None else iter(())


def method_shares(method: str) -> Iterator[Measured]:
    """Trained parameters, step time and memory of a method, in per cent of full fine-tuning."""
    for name in SIZES:
        model = resolve_model(name, offline=True)
        plan = _plan(name, R_CARD, method, R_BATCH, R_LENGTH)
        trained = get_method(method).trainable_parameters(model, plan)
        yield Measured("trainable", name, 100 * (trained / model.parameters), "%")
        for checkpointing in ("full", "none"):
            if get_method(method).refusal(model, plan.replace(gradient_checkpointing=checkpointing)) is not None:
                continue
            case = f"{name}, {'with' if checkpointing == 'full' else 'without'} checkpointing"
            mine = _estimate(plan.replace(gradient_checkpointing=checkpointing))
            full = _estimate(_plan(name, R_CARD, "full", R_BATCH, R_LENGTH, gradient_checkpointing=checkpointing))
            yield Measured("time", case, 100 * (_seconds(mine) / _seconds(full)), "%")
            memory = 100 * (mine.memory.device.expected / full.memory.device.expected)
            yield Measured("memory", case, memory, "%")


def unsloth_speed(column: str) -> Iterator[Measured]:
    """Step time of Hugging Face over Unsloth's."""
    for case, hugging_face, unsloth in _platform_pairs():
        yield Measured(column, case, _seconds(hugging_face) / _seconds(unsloth), "x")


def unsloth_memory(column: str) -> Iterator[Measured]:
    """Device memory that Unsloth saves of what Hugging Face takes."""
    for case, hugging_face, unsloth in _platform_pairs():
        share = unsloth.memory.device.expected / hugging_face.memory.device.expected
        yield Measured(column, case, 100 * (1 - share), "% less")


def headline() -> Iterator[Measured]:
    """H1: both at once."""
    yield from unsloth_speed("speed")
    yield from unsloth_memory("memory")


def translation_runs() -> Iterator[Measured]:
    """H2: the same plan on both platforms."""
    plans = [
        _plan("qwen2.5-7b", CARD_24_GB, "qlora", 2, R_LENGTH, platform=platform, gradient_checkpointing=checkpointing)
        for platform, checkpointing in (("llamafactory", "full"), ("unsloth", "unsloth"))
    ]
    factory, unsloth = (_estimate(plan) for plan in plans)
    yield Measured("the ratio", "QLoRA of Qwen2.5-7B, 2 x 512 on rtx4090", _seconds(factory) / _seconds(unsloth), "x")


def need_on_24_gb(model: str, platform: str, *lengths: int) -> Iterator[Measured]:
    """High end of the device memory as a share of the card's."""
    checkpointing = "unsloth" if platform == "unsloth" else "full"
    for length in lengths:
        plan = _plan(model, CARD_24_GB, "qlora", 1, length, platform=platform, gradient_checkpointing=checkpointing)
        memory = _estimate(plan).memory
        name = find_model_row(model).id
        yield Measured("need", f"{name}, {length} tokens, {platform}", 100 * memory.device.high / memory.budget, "%")


def prompt_tuning() -> Iterator[Measured]:
    """H6: size of the trained table, and its step against LoRA's, with few virtual tokens and with many."""
    for name in SIZES:
        model = resolve_model(name, offline=True)
        plan = _plan(name, R_CARD, "prompt", R_BATCH, R_LENGTH)
        trained = get_method("prompt").trainable_parameters(model, plan)
        yield Measured("storage", name, 100 * trained / model.parameters, "%")
        for length, virtual in ((R_LENGTH, 20), (SHORT_EXAMPLES, LONG_PROMPT)):
            prompt, lora = (
                _estimate(_plan(name, R_CARD, method, R_BATCH, length, num_virtual_tokens=virtual))
                for method in ("prompt", "lora")
            )
            case = f"{name}, {virtual} virtual tokens before {length}"
            yield Measured("time", case, 100 * _seconds(prompt) / _seconds(lora), "%")


_BY_CLAIM: dict[str, Callable[[], Iterator[Measured]]] = {
    "P4": lambda: unsloth_speed("unsloth"),
    "P5": lambda: unsloth_memory("unsloth"),
    "H1": headline,
    "H2": translation_runs,
    "H3": lambda: need_on_24_gb("llama-33b", "hf", 512, 2048),
    "H4": lambda: need_on_24_gb("gemma2-9b", "unsloth", 512, 2048, 8192),
    "H6": prompt_tuning,
}


def _platform_pairs() -> Iterator[tuple[str, Estimate, Estimate]]:
    for model, card, method, batch, length in PLATFORM_CASES:
        case = f"{model}, {method}, {batch} x {length} on {card}"
        hugging_face = _plan(model, card, method, batch, length, gradient_checkpointing="full")
        unsloth = hugging_face.replace(platform="unsloth", gradient_checkpointing="unsloth")
        yield case, _estimate(hugging_face), _estimate(unsloth)


def _plan(model: str, card: str, method: str, batch: int, length: int, **more: object) -> Plan:
    fields = {"model": model, "gpu": card, "method": method, "micro_batch_size": batch, "seq_len": length, **more}
    return Plan.model_validate({"gradient_checkpointing": "none", **fields})


def _estimate(plan: Plan) -> Estimate:
    model, hardware = resolve_model(plan.model, offline=True), resolve_hardware(plan.gpu, None, 1)
    return Estimate(memory=estimate_memory(plan, model, hardware), speed=estimate_speed(plan, model, hardware))


def _seconds(estimate: Estimate) -> float:
    assert estimate.speed is not None  # the cards above are all in the catalogue, with their rates
    return estimate.speed.step_seconds.expected

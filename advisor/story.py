"""A plan told in plain sentences: what is trained, whether it fits and why, how fast, how good, what may go wrong."""

from collections.abc import Iterator
from typing import Any

from advisor.assess import resolve_task
from advisor.calibrations import find_calibration
from advisor.evaluate import evaluate_plan
from advisor.explain import describe_run, explain_choice
from advisor.facts import fingerprint, resolve_model
from advisor.hardware import resolve_hardware
from advisor.recommendation import Answer, Candidate, DataFacts, Facts, Risk, Verdict
from advisor.risks import find_risks
from estimators.methods import get_method
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.platform import load_platforms
from profiles.units import MILLION, format_bytes, format_count, format_duration

CHECKPOINTING = {
    "none": "Every layer's activations are kept for the backward pass.",
    "full": "Only each layer's input is kept; the rest is computed again in the backward pass, a third more work.",
    "unsloth": "Each layer's input is moved to the machine's memory and the rest computed again in the backward pass.",
}
TASKS = {
    "sft": "supervised fine-tuning on answers",
    "pretrain": "continued pre-training on text",
    "classification": "classification",
    "dpo": "preferences (DPO)",
    "orpo": "preferences (ORPO)",
    "kto": "preferences (KTO)",
    "reward": "a reward model",
    "grpo": "reinforcement learning (GRPO)",
}
SHARDING = {
    "ddp": "Every card holds the whole model and sees its own examples; gradients are averaged.",
    "fsdp2": "Weights, gradients and optimizer states are split over the cards and gathered layer by layer.",
    "zero1": "Optimizer states are split over the cards.",
    "zero2": "Gradients and optimizer states are split over the cards.",
    "zero3": "Weights, gradients and optimizer states are split over the cards and gathered layer by layer.",
}


class Story(Answer):
    """The sentences by chapter, with the plan, the verdict and the risks as data."""

    verdict: Verdict
    plan: Plan
    chapters: dict[str, tuple[str, ...]]
    risks: tuple[Risk, ...]


def find_plan(content: dict[str, Any]) -> dict[str, Any]:
    """The fields of the plan in a plan, an emitted plan.json, or the JSON answer of advise or estimate."""
    for path in (("answer", "best", "plan"), ("answer", "plan"), ("best", "plan"), ("plan",)):
        inner: Any = content
        for key in path:
            inner = inner.get(key) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            return inner
    return content


def tell(plan: Plan, *, offline: bool = False) -> Story:
    """The story of a plan on the hardware that it names (None: this machine's).

    Raises:
        AdviseError: the model, the card or the combination does not exist.
    """
    facts = _facts_of(plan, offline=offline)
    candidate = evaluate_plan(plan, facts)
    risks = find_risks(candidate, facts)
    chapters = {
        "What": tuple(_what(plan, facts.model, candidate)),
        "Memory": tuple(_memory(plan, candidate)),
        "Speed": (*_speed(candidate), *map(_sentence, facts.assumptions)),
        "Why": tuple(_sentence(reason) for reason in explain_choice(candidate, facts)),
        "Risks": tuple(_sentence(f"{r.id}, {r.title}: {r.finding}. Guard: {r.guard}") for r in risks),
    }
    return Story.model_construct(verdict=candidate.memory.verdict, plan=plan, chapters=chapters, risks=risks)


def _facts_of(plan: Plan, *, offline: bool) -> Facts:
    model = resolve_model(plan.model, offline=offline)
    hardware = resolve_hardware(plan.gpu, None, plan.n_gpus)
    calibration, said = find_calibration(hardware)
    return Facts.model_construct(
        model=model,
        hardware=hardware,
        data=DataFacts.model_construct(mean_len=plan.mean_len, basis="as the plan says"),
        task=resolve_task(plan.task, model),
        seq_len=plan.seq_len,
        price=hardware.gpu.price_usd_per_hour,
        calibration=calibration,
        assumptions=said,
        fingerprints={"model": fingerprint(model), "hardware": fingerprint(hardware)},
    )


def _what(plan: Plan, model: ModelSpec, candidate: Candidate) -> Iterator[str]:
    method, platform = get_method(plan.method), load_platforms()[plan.platform]
    trained = candidate.memory.trainable_parameters
    share = trained / model.parameters
    changed = f"{format_count(trained)} parameters ({100 * share:.2g} %)" if share < 1 else "all of them"
    yield (
        f"{_sentence(method.title)[:-1]} on {platform.name} trains {model.name} ({format_count(model.parameters)} "
        f"parameters) for {TASKS[plan.task]}, by changing {changed}."
    )
    if plan.quantization in QUANTIZED:
        yield f"The base stays frozen and is stored as {plan.quantization}; every pass turns it back block by block."
    else:
        yield f"The base model is stored as {plan.quantization}" + (", and stays frozen." if share < 1 else ".")
    cards = f" on each of {plan.n_gpus} cards" if plan.n_gpus > 1 else ""
    yield (
        f"A step sees {plan.global_batch_size} sequences of up to {plan.seq_len} tokens: {plan.micro_batch_size} at a "
        f"time{cards}, {plan.gradient_accumulation_steps} times before the weights change."
    )
    yield CHECKPOINTING[plan.gradient_checkpointing]
    if plan.sharding in SHARDING:
        yield SHARDING[plan.sharding]
    if plan.learning_rate is not None:
        yield f"The optimizer is {plan.optimizer}, at a learning rate of {plan.learning_rate:g} ({plan.lr_scheduler})."
    kept = [f"{plan.eval_fraction:.0%} of the examples are held back to judge it"] if plan.eval_fraction else []
    if plan.early_stopping_patience:
        kept.append(f"it stops early after {plan.early_stopping_patience} evaluations without gain")
    if kept:
        yield _sentence(", and ".join(kept))


def _memory(plan: Plan, candidate: Candidate) -> Iterator[str]:
    memory = candidate.memory
    device = memory.device
    said = {"fits": "It fits", "tight": "It may fit or not", "does not fit": "It does not fit"}[memory.verdict]
    yield (
        f"{said}: one card needs {format_bytes(device.expected)} ({format_bytes(device.low)} to "
        f"{format_bytes(device.high)}, 9 times out of 10) of {format_bytes(memory.budget)}."
    )
    for part in sorted(memory.peak.components, key=lambda c: -c.n_bytes)[:4]:
        yield f"{format_bytes(part.n_bytes)} at the peak are {part.name.replace('_', ' ')}."
    outside = device.expected - memory.peak.n_bytes
    yield f"{format_bytes(outside)} more are the allocator's slack and the CUDA context."
    if memory.verdict != "fits":
        yield "`ftadvise fit --what seq_len` or `--what gpu` with the same options says what would."


def _speed(candidate: Candidate) -> Iterator[str]:
    speed = candidate.speed
    if speed is None:
        yield "Its speed is not known on this hardware."
        return
    step, rate = speed.step_seconds, speed.tokens_per_second
    yield (
        f"A step takes about {step.expected:.3g} s ({step.low:.3g} to {step.high:.3g}): {format_count(rate.expected)} "
        f"tokens a second, a million in {format_duration(MILLION / rate.expected)}."
    )
    most = max(speed.items, key=lambda item: item.seconds, default=None)
    if most is not None:
        share = most.seconds / sum(item.seconds for item in speed.items)
        yield f"Most of it ({share:.0%}) goes to {most.name.replace('_', ' ')}, which is bound by the {most.bound}."
    if candidate.run is not None:
        yield _sentence(f"the whole run: {describe_run(candidate)}")


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."

"""Risks K1-K4 of the framework: each raised by numbers, each with the setting of the plan that guards against it."""

from collections.abc import Iterator
from typing import Any

from advisor.assess import TOLERATED_LOSS
from advisor.evaluate import LOW_HEADROOM
from advisor.plans import LEARNING_RATE, MANY_EPOCHS, is_small
from advisor.recommendation import Candidate, Facts, Risk, headroom_of
from advisor.request import Request
from estimators.answer import MemoryEstimate
from estimators.methods import get_method
from profiles.plan import FOUR_BIT, Plan
from profiles.platform import load_platforms
from profiles.units import format_bytes, format_count

WASTED = 0.5  # share of the budget that stays free
REPEATED = 0.05  # share of examples that are copies of others
COMMON_METHODS = frozenset({"full", "lora", "qlora"})


def find_risks(candidate: Candidate, facts: Facts, request: Request | None = None) -> tuple[Risk, ...]:
    """All risks that the numbers raise, in the framework's order."""
    return (
        *overfitting(candidate, facts),
        *forgetting(candidate.plan, candidate.memory),
        *(special_field(candidate, request) if request is not None else ()),
        *resource_use(candidate.plan, candidate.memory, facts),
        *maintenance(candidate.plan),
    )


def overfitting(candidate: Candidate, facts: Facts) -> Iterator[Risk]:
    """K1: few examples, or many passes over them."""
    plan, data = candidate.plan, facts.data
    guards = ["eval_fraction", "early_stopping_patience"]
    if data.examples is not None and is_small(facts):
        trained = candidate.memory.trainable_parameters
        tokens = ""
        if data.mean_len is not None:
            total = data.examples * data.mean_len
            tokens = f" ({format_count(total)} tokens, {total / trained:.2g} for each)"
        adapter = ["lora_rank", *(["lora_dropout"] if plan.lora_dropout else [])]
        adapter = adapter if get_method(plan.method).uses_rank else []
        own = "".join(f", {field} {getattr(plan, field)}" for field in adapter)
        yield Risk.model_construct(
            id="K1",
            title="overfitting on small data",
            finding=f"{data.examples} examples{tokens} for {format_count(trained)} trained parameters",
            guard=(
                f"{plan.eval_fraction:.0%} held back, early stopping after {plan.early_stopping_patience} evaluations "
                f"without gain, weight decay {plan.weight_decay}{own}"
            ),
            settings=_settings(plan, *guards, "weight_decay", *adapter),
        )
    if data.examples is not None and data.duplicates > REPEATED * data.examples:
        yield Risk.model_construct(
            id="K1",
            title="overfitting on copies",
            finding=f"{data.duplicates} of {data.examples} examples are copies of others, which are seen more often",
            guard=f"{plan.eval_fraction:.0%} held back, with all copies of an example on the same side",
            settings=_settings(plan, "eval_fraction"),
        )
    if plan.num_epochs > MANY_EPOCHS:
        yield Risk.model_construct(
            id="K1",
            title="overfitting by repetition",
            finding=f"{plan.num_epochs:g} epochs; 1 to {MANY_EPOCHS} are usual for instruction data",
            guard=(
                f"{plan.eval_fraction:.0%} of the data held back, early stopping after "
                f"{plan.early_stopping_patience} evaluations without gain"
            ),
            settings=_settings(plan, *guards, "num_epochs"),
        )


def forgetting(plan: Plan, memory: MemoryEstimate) -> Iterator[Risk]:
    """K2: full fine-tuning and soft prompts change behaviour outside the task most."""
    if plan.method == "full":
        rate = plan.learning_rate or LEARNING_RATE["full"]
        yield Risk.model_construct(
            id="K2",
            title="forgetting",
            finding=(
                f"all {format_count(memory.trainable_parameters)} parameters change; in one published run "
                "GSM8K fell from .517 to .343 after unrelated full fine-tuning, to .462 after LoRA (ms-swift, Qwen-7B)"
            ),
            guard=f"learning rate {rate:g}; {_replayed(plan)}; evaluate general tasks before and after",
            settings={"learning_rate": rate, **_settings(plan, *(["replay_share"] if plan.replay_share else []))},
        )
    elif plan.method in ("prompt", "prefix", "ptuning"):
        yield Risk.model_construct(
            id="K2",
            title="forgetting",
            finding="soft prompts shift general behaviour more than LoRA (PEFT's table: .13 to 1.8 against .05)",
            guard="the base stays untouched: leave the prompt out for other tasks",
            settings=_settings(plan, "method"),
        )


def _replayed(plan: Plan) -> str:
    """Rehearsal, where there is something to rehearse with."""
    if plan.replay_share:
        return f"{plan.replay_share:.0%} of what is trained are general examples"
    return "general examples mixed in help (`--replay FILE`)"


def special_field(candidate: Candidate, request: Request) -> Iterator[Risk]:
    """K2 of a special field: general benchmarks say nothing of it, and held-out rows come from the same source."""
    if request.field is not None:
        plan = candidate.plan
        yield Risk.model_construct(
            id="K2",
            title=f"a special field ({request.field})",
            finding="no platform or method is known to suit it better; a falling loss does not show right answers",
            guard=f"{plan.eval_fraction:.0%} held back for the loss; a test of the field's own, before and after",
            settings=_settings(plan, "eval_fraction"),
        )


def resource_use(plan: Plan, memory: MemoryEstimate, facts: Facts) -> Iterator[Risk]:
    """K3: too close to the edge, too far from it, or numerically on thin ice."""
    free, headroom = memory.budget - memory.device.high, headroom_of(memory)
    if 0 <= headroom < LOW_HEADROOM:
        segments = "expandable segments are on; " if plan.expandable_segments else ""
        yield Risk.model_construct(
            id="K3",
            title="little headroom",
            finding=f"the high end of the estimate leaves {format_bytes(free)} of {format_bytes(memory.budget)}",
            guard=f"{segments}if it runs out, {_way_out(plan)}",
            settings=_settings(plan, "expandable_segments", "micro_batch_size", "gradient_accumulation_steps"),
        )
    if facts.data.tokens_lost > TOLERATED_LOSS:
        yield Risk.model_construct(
            id="K3",
            title="examples are cut",
            finding=f"{facts.data.tokens_lost:.1%} of all tokens lie beyond {plan.seq_len} and are never seen",
            guard=f"a longer seq_len, up to {facts.data.max_len} (`ftadvise fit --what seq_len` says what fits)",
            settings=_settings(plan, "seq_len"),
        )
    if headroom > WASTED and plan.method != "full":
        yield Risk.model_construct(
            id="K3",
            title="card largely unused",
            finding=f"{format_bytes(free)} of {format_bytes(memory.budget)} stay free",
            guard="a longer seq_len, a larger model or a smaller card would do (`ftadvise fit`)",
            settings=_settings(plan, "seq_len"),
        )
    if plan.method == "full" and plan.quantization == "bf16" and plan.platform != "llamafactory":
        yield Risk.model_construct(
            id="K3",
            title="pure bf16 training",
            finding="weights and optimizer states in bf16: updates below 1/256 of a weight vanish",
            guard="fp32 weights under bf16 autocast (--quantization fp32), at twice the memory",
            settings=_settings(plan, "quantization"),
        )
    if plan.quantization in FOUR_BIT and (facts.hardware.gpu.bf16 is False or plan.compute_dtype == "fp16"):
        yield Risk.model_construct(
            id="K3",
            title="4-bit with fp16 compute",
            finding="fp16 overflows in some models; artidoro/qlora reports 80 % of 7B runs ending without an error",
            guard=f"max_grad_norm {plan.max_grad_norm}; resume from the last checkpoint, or use a card with bf16",
            settings=_settings(plan, "max_grad_norm"),
        )


def _way_out(plan: Plan) -> str:
    """What needs less memory and trains the same."""
    if plan.micro_batch_size > 1:
        return "half micro_batch_size and twice gradient_accumulation_steps are the same"
    if plan.gradient_checkpointing == "none":
        return "gradient checkpointing trains the same with less memory and more time"
    return "a shorter seq_len needs less"


def maintenance(plan: Plan) -> Iterator[Risk]:
    """K4: platforms and methods with few users or fast changes."""
    platform = load_platforms()[plan.platform]
    pinned: dict[str, Any] = {"requirements": platform.version.replace(" ", "==")}
    if platform.maturity > 1:
        yield Risk.model_construct(
            id="K4",
            title="maintenance of the platform",
            finding=f"{platform.name}: {platform.maturity_reason}; licence: {platform.licence}",
            guard=f"pin the versions, as emitted projects do: {platform.version}",
            settings=pinned,
        )
    if plan.method not in COMMON_METHODS:
        support = platform.methods.get(plan.method)
        evidence = support.evidence if support else "in no comparison of the platforms"
        yield Risk.model_construct(
            id="K4",
            title="a method that few use",
            finding=f"{get_method(plan.method).title}: {evidence}",
            guard="pin the versions, and keep a LoRA run to compare with",
            settings=pinned,
        )


def _settings(plan: Plan, *fields: str) -> dict[str, Any]:
    return {field: getattr(plan, field) for field in fields}

"""The outer space of plans: cells (platform x method x quantization), the rules that drop one, and a first draft.

One small function a rule. No cell vanishes: it is drafted, or a rule names its reason. `axes.py` has the axes inside.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple, get_args

from advisor.recommendation import Dropped, Facts
from advisor.request import Request
from estimators.methods import get_method
from estimators.methods.base import target_linears
from estimators.regime import default_compute_dtype
from profiles.catalog import load_gpus
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Attention, Plan, Quantization, Task
from profiles.platform import load_platforms
from profiles.units import BILLION

QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)
DEFAULT_RANK = 16  # Unsloth documentation and QLoRA: 16 to 32 on all linear layers
SMALL_DATA_RANK = 8  # LoRA paper (2106.09685, 7.2): enough for small tasks, with half as much to overfit with
MERGEABLE = frozenset({"full", "lora", "qlora", "adalora", "bitfit"})  # PEFT's soft prompts have no merge_and_unload

# Learning rates with their sources: TRL documentation (full), Unsloth and TRL documentation (LoRA), artidoro/qlora
# (QLoRA; half of it above 13B), QingruZhang/AdaLoRA scripts, TRL peft_integration.md (prompt), and the PEFT
# method_comparison table for what is left (there untuned for P-tuning and biases).
LEARNING_RATE = {
    "full": 1e-5,
    "lora": 2e-4,
    "qlora": 2e-4,
    "adalora": 5e-4,
    "bitfit": 1e-4,
    "prompt": 1e-2,
    "prefix": 5e-3,
    "ptuning": 1e-4,
}
# Of preference training and what else starts from a tuned model: (whole weights, LoRA); other methods in proportion.
# TRL 1.16 scripts/dpo.py; LLaMA-Factory 0.9.5 examples (KTO and ORPO with LoRA); the defaults of TRL's ORPOConfig,
# RewardConfig (its LoRA's) and GRPOConfig, and ten times or a tenth of them, as its documentation advises for LoRA.
TASK_RATES: dict[Task, tuple[float, float]] = {
    "dpo": (5e-7, 5e-6),
    "kto": (5e-7, 5e-6),
    "orpo": (1e-6, 5e-6),
    "reward": (1e-5, 1e-4),
    "grpo": (1e-6, 1e-5),
}
QLORA_LARGE_MODEL = 13 * BILLION
QLORA_LARGE_MODEL_RATE = 1e-4
# One of these stands in the path before a linear's name (unsloth_zoo 2026.10.7 peft_utils.py get_peft_regex)
UNSLOTH_PARTS = ("self_attn", "attention", "attn", "mixer", "mlp", "feed_forward", "ffn", "dense")
EAGER_ONLY = frozenset({"bloom", "mpt"})  # transformers 5.23: their attention has no SDPA path
LORA_DROPOUT_SMALL = 0.05  # QLoRA paper: 0.05 to 0.1 helps models up to 13B
SMALL_DATA = 1000  # examples; below it the guards against overfitting are on
MANY_EPOCHS = 3  # Unsloth documentation: 1 to 3 epochs; above it early stopping is on
EARLY_STOPPING_EVALUATIONS = 3


class Cell(NamedTuple):
    """One combination of the three outer axes."""

    platform: str
    method: str
    quantization: Quantization


def enumerate_cells() -> Iterator[Cell]:
    """Every combination, in a fixed order."""
    for platform in load_platforms().values():
        yield from (Cell(*x) for x in product((platform.id,), platform.methods, QUANTIZATIONS))


Rule = Callable[[Cell, Request, Facts], str | None]


def not_asked_for(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The request restricts platforms, methods or quantizations to others."""
    for name, value, allowed in (
        ("platform", cell.platform, request.platforms),
        ("method", cell.method, request.methods),
        ("quantization", cell.quantization, request.quantizations),
    ):
        if allowed and value not in allowed:
            return f"only {name} {', '.join(allowed)} was asked for"
    return None


def skill_wanted(cell: Cell, request: Request, facts: Facts) -> str | None:
    """A team that does not write code gets platforms that need none."""
    platform = load_platforms()[cell.platform]
    if request.skill == "low-code" and platform.interface != "low-code":
        return f"{platform.name} is used through code ({platform.ease_reason}), and low-code was asked for"
    return None


def platform_method(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform's sources do not have the method."""
    platform = load_platforms()[cell.platform]
    support = platform.methods[cell.method]
    if support.verified != "no":
        return None
    claim = f"; published as {support.claim!r}" if support.claim else ""
    return f"{platform.version} has no {get_method(cell.method).title}: {support.evidence}{claim}"


def platform_quantization(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform cannot load the base so."""
    platform = load_platforms()[cell.platform]
    support = platform.quantizations[cell.quantization]
    return f"{platform.version} has no {cell.quantization}: {support.evidence}" if support.verified == "no" else None


def platform_task(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform does not train for the task."""
    platform = load_platforms()[cell.platform]
    support = platform.tasks[facts.task]
    return f"{platform.version} has no {facts.task}: {support.evidence}" if support.verified == "no" else None


def platform_hardware(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform does not run on this kind of device."""
    platform, vendor = load_platforms()[cell.platform], facts.hardware.gpu.vendor
    if platform.needs_gpu and vendor == "CPU":
        return f"{platform.name} needs a GPU"
    if vendor not in platform.vendors:
        return f"{platform.name} on {vendor} is not verified (verified: {', '.join(platform.vendors)})"
    return None


def platform_layers(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform does not find the layers that adapters go to."""
    if cell.platform != "unsloth" or get_method(cell.method).peft_type is None:
        return None
    return unsloth_layers_refusal(draft_plan(cell, request, facts), facts.model)


def unsloth_layers_refusal(plan: Plan, model: ModelSpec) -> str | None:
    """Say which target Unsloth would pass over, some of them without a word; None where it finds all."""
    for x in target_linears(model, plan):
        path = x.linear.name.rpartition(".")[0]
        if x.linear.kind == "conv1d" or not any(part in path for part in UNSLOTH_PARTS):
            return f"Unsloth finds no {x.linear.name} in {model.name}: it adapts linears of attention and MLPs"
    return None


def card_dtype(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The card has no fast bf16."""
    gpu = facts.hardware.gpu
    if cell.quantization == "bf16" and gpu.bf16 is False and gpu.vendor != "CPU":
        return f"{gpu.name} has no bf16 units; fp16 takes its place"
    return None


def as_stored(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The platform cannot convert the weights as it loads them."""
    if cell.platform != "llamafactory":
        return None
    compute = default_compute_dtype(facts.hardware.gpu)
    return storage_refusal(cell.method, cell.quantization, compute, facts.model)


def storage_refusal(method: str, quantization: str, compute: str, model: ModelSpec) -> str | None:
    """LLaMA-Factory 0.9.5 (model/loader.py, torch_dtype="auto") loads weights in the dtype that they are stored in.

    Full fine-tuning is free of that: what it trains becomes fp32. Over a quantised base of bf16 weights fp16's autocast
    fails (in the rotary embedding: torch's autocast does not mix the two), and fp32 leftovers take more memory than
    estimated. A config.json that names no dtype means bf16 here.
    """
    chosen, stored = get_method(method), model.stored_dtype or "bf16"
    if chosen.trains_base and not chosen.in_half:
        return None
    if quantization in QUANTIZED:
        if compute in ("fp32", stored):
            return None
        return f"what LLaMA-Factory does not quantise stays as it is stored, in {stored}, which {compute} cannot use"
    if quantization == stored:
        return None
    return f"LLaMA-Factory loads weights as they are stored, in {stored}, and has no key to load them as {quantization}"


def fp16_gradients(cell: Cell, request: Request, facts: Facts) -> str | None:
    """Loss scaling refuses fp16 gradients; LLaMA-Factory keeps trained weights in fp32 and is free of that."""
    trains_base = cell.method in ("full", "bitfit")
    if cell.quantization == "fp16" and trains_base and cell.platform != "llamafactory":
        return "fp16 weights cannot be trained: torch's GradScaler refuses to unscale fp16 gradients; use bf16 or fp32"
    return None


def method_refusal(cell: Cell, request: Request, facts: Facts) -> str | None:
    """The method cannot be used on this model, or over a base stored so."""
    return get_method(cell.method).refusal(facts.model, draft_plan(cell, request, facts))


def deployment(cell: Cell, request: Request, facts: Facts) -> str | None:
    """What comes out has to be deployable as wanted."""
    if request.deployment == "adapter" or cell.method in MERGEABLE:
        return None
    return f"{get_method(cell.method).title} cannot be merged into the weights, which {request.deployment} needs"


RULES: dict[str, Rule] = {
    "not-asked-for": not_asked_for,
    "low-code": skill_wanted,
    "platform-method": platform_method,
    "platform-quantization": platform_quantization,
    "platform-task": platform_task,
    "platform-hardware": platform_hardware,
    "platform-layers": platform_layers,
    "card-dtype": card_dtype,
    "platform-storage": as_stored,
    "fp16-gradients": fp16_gradients,
    "deployment": deployment,
    "method": method_refusal,
}


def screen_cell(cell: Cell, request: Request, facts: Facts) -> Dropped | None:
    """Apply the rules in order; the first that speaks names the reason."""
    for rule_id, rule in RULES.items():
        reason = rule(cell, request, facts)
        if reason is not None:
            return drop(cell, rule_id, reason)
    return None


def drop(
    cell: Cell, rule: str, reason: str, *, needs_gib: float | None = None, times_limit: float | None = None
) -> Dropped:
    """The record of a dropped cell."""
    platform, method, quantization = cell
    return Dropped.model_construct(
        platform=platform,
        method=method,
        quantization=quantization,
        rule=rule,
        reason=reason,
        needs_gib=needs_gib,
        times_limit=times_limit,
    )


def draft_plan(cell: Cell, request: Request, facts: Facts) -> Plan:
    """The cell as a plan with micro-batch 1 and no checkpointing; the inner axes come on top."""
    hardware, data = facts.hardware, facts.data
    small, rank = is_small(facts), default_rank(request, facts)
    early = small or request.num_epochs > MANY_EPOCHS
    adapter = get_method(cell.method).uses_rank
    return Plan.model_validate(
        {
            "model": request.model,
            "gpu": name_card(hardware),
            "n_gpus": hardware.n_gpus,
            "platform": cell.platform,
            "task": facts.task,
            "method": cell.method,
            "quantization": cell.quantization,
            "mixed_precision": True if cell.quantization == "fp32" and hardware.gpu.vendor != "CPU" else None,
            "lora_rank": rank,
            "lora_alpha": 2.0 * rank if adapter else None,
            "lora_dropout": LORA_DROPOUT_SMALL if small and adapter and cell.platform != "unsloth" else 0.0,
            "seq_len": facts.seq_len,
            "mean_len": data.mean_len,
            "gradient_checkpointing": "none",
            "attention": attention(cell, facts),
            "sharding": "none" if hardware.n_gpus == 1 else "ddp",
            "learning_rate": request.learning_rate or learning_rate(cell, facts),
            "num_epochs": request.num_epochs,
            "max_steps": request.max_steps,
            "early_stopping_patience": EARLY_STOPPING_EVALUATIONS if early else 0,
            "replay_share": request.replay_share if request.replay is not None else 0.0,
            "eval_fraction": 0.1 if small else 0.05,
            "weight_decay": 0.01 if small else 0.0,
        }
    )


def is_small(facts: Facts) -> bool:
    """Whether the examples are so few that the guards against overfitting are on."""
    return facts.data.examples is not None and facts.data.examples < SMALL_DATA


def default_rank(request: Request, facts: Facts) -> int:
    """The rank as asked for, else a usual one."""
    return request.lora_rank or (SMALL_DATA_RANK if is_small(facts) else DEFAULT_RANK)


def name_card(hardware: Hardware) -> str | dict[str, Any]:
    """The card as a plan names it: by its id where the catalogue's row is meant, else by its figures."""
    gpu = hardware.gpu
    if hardware.origin == "cpu":
        return "cpu"
    if gpu.id in load_gpus() and gpu == load_gpus()[gpu.id]:
        return gpu.id
    return gpu.model_dump(mode="json", exclude_defaults=True, exclude={"sources", "price_usd_per_hour"})


def learning_rate(cell: Cell, facts: Facts) -> float:
    """A published starting point for the method and the task."""
    return published_rate(cell.method, facts.task, facts.model)


def published_rate(method: str, task: Task, model: ModelSpec) -> float:
    """The method's own where one is published, else that of adapters or of whole weights; less for some tasks."""
    adapter = get_method(method).peft_type is not None
    usual = "lora" if adapter else "full"
    rate = LEARNING_RATE.get(method, LEARNING_RATE[usual])
    if method == "qlora" and model.parameters > QLORA_LARGE_MODEL:
        rate = QLORA_LARGE_MODEL_RATE
    return rate * TASK_RATES[task][adapter] / LEARNING_RATE[usual] if task in TASK_RATES else rate


def attention(cell: Cell, facts: Facts) -> Attention:
    """SDPA comes with torch; soft caps and sinks exist only in the eager code; Unsloth chooses by itself."""
    if cell.platform == "unsloth":
        return "auto"
    kinds = [g.block.attention for g in facts.model.layers]
    eager = facts.model.model_type in EAGER_ONLY or any(a.logit_softcap or a.sinks for a in kinds)
    return "eager" if eager else "sdpa"

"""Plan -> the arguments of the method's PEFT config class (0.21.2), under their own names."""

from typing import Any, NamedTuple

from estimators.methods import get_method
from estimators.methods.adalora import initial_rank
from estimators.methods.base import SAVED_WITH_CLASSIFIER, matches
from estimators.methods.scalar_head import SCALAR_TASKS
from profiles.model import ModelSpec
from profiles.plan import Plan


class Words(NamedTuple):
    """What a config class calls the rank, the alpha and the dropout of a plan; None: it has no such thing."""

    rank: str | None = None
    alpha: str | None = None
    dropout: str | None = None


WORDS = {
    "LORA": Words("r", "lora_alpha", "lora_dropout"),
    "ADALORA": Words("target_r", "lora_alpha", "lora_dropout"),
    "LOHA": Words("r", "alpha"),
    "LOKR": Words("r", "alpha"),
    "VERA": Words("r", dropout="vera_dropout"),
    "MISS": Words("r", dropout="miss_dropout"),
    "OFT": Words(),
    "IA3": Words(),
    "FOURIERFT": Words(),
    "LN_TUNING": Words(),
}
OWN_TARGETS = frozenset({"IA3", "LN_TUNING"})  # left at all-linear, PEFT takes its own choice for the model type

# LoRA's variants are options of its config class.
LORA_VARIANTS: dict[str, dict[str, Any]] = {
    "lora": {},
    "qlora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "pissa": {"init_lora_weights": "pissa"},
    "loraplus": {},
}

# Options that only one method knows, in PEFT's own names.
LORA_OPTIONS = frozenset({"use_dora", "use_rslora", "init_lora_weights"})
PEFT_OPTIONS: dict[str, frozenset[str]] = {
    "lora": LORA_OPTIONS,
    "qlora": LORA_OPTIONS,
    "loraplus": LORA_OPTIONS,
    "adalora": frozenset({"init_r", "deltaT", "beta1", "beta2", "orth_reg_weight"}),
    "prompt": frozenset({"prompt_tuning_init", "prompt_tuning_init_text"}),
    "ptuning": frozenset({"encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout"}),
    "oft": frozenset({"r", "oft_block_size", "block_share"}),
    "lokr": frozenset({"decompose_both", "decompose_factor"}),
    "vera": frozenset({"d_initial", "projection_prng_key"}),
    "fourierft": frozenset({"n_frequency", "scaling"}),
}


def adapter_refusal(plan: Plan) -> str | None:
    """What of the plan the config class has no word for."""
    words = WORDS.get(get_method(plan.method).peft_type or "")
    if words is None:
        return None
    if plan.lora_alpha is not None and words.alpha is None:
        return f"PEFT's {plan.method} has no alpha"
    if plan.lora_dropout and words.dropout is None:
        return f"PEFT's {plan.method} has no dropout of its own"
    return None


def peft_config(plan: Plan, model: ModelSpec) -> dict[str, Any] | None:
    """Arguments of the config class; None where the base itself is trained."""
    kind = get_method(plan.method).peft_type
    if kind is None:
        return None
    own = _adapter(plan, model, kind, WORDS[kind]) if kind in WORDS else _soft_prompt(plan, model)
    known = PEFT_OPTIONS.get(plan.method, frozenset())
    options = {key: value for key, value in plan.method_options.items() if key in known}
    task = "SEQ_CLS" if plan.task in SCALAR_TASKS else "CAUSAL_LM"
    return {"peft_type": kind, "task_type": task, **own, **options}


def _adapter(plan: Plan, model: ModelSpec, kind: str, words: Words) -> dict[str, Any]:
    whole = plan.target_modules == ("all-linear",)
    found: dict[str, Any] = {}
    if not (whole and kind in OWN_TARGETS):
        found["target_modules"] = "all-linear" if whole else list(plan.target_modules)
    if whole and plan.task in SCALAR_TASKS and model.model_type in SAVED_WITH_CLASSIFIER:
        found["exclude_modules"] = [SAVED_WITH_CLASSIFIER[model.model_type]]
    if kind == "IA3" and not whole:
        down = [x.name for group in model.layers for x in group.block.linears if x.role == "down"]
        found["feedforward_modules"] = [t for t in plan.target_modules if any(matches(t, name) for name in down)]
    if words.alpha is not None:
        alpha = plan.lora_alpha or _alpha(plan, kind)
        found[words.alpha] = int(alpha) if float(alpha).is_integer() else alpha
    if words.dropout is not None:
        found[words.dropout] = plan.lora_dropout
    if kind == "ADALORA":
        found["init_r"] = initial_rank(plan)
        found["total_step"] = 1  # PEFT wants a number; the run sets the true one when it knows it
    if words.rank is not None:
        found[words.rank] = plan.lora_rank
    return found | LORA_VARIANTS.get(plan.method, {})


def _alpha(plan: Plan, kind: str) -> int:
    """alpha = 2 r is LoRA's usual choice; rsLoRA divides by sqrt(r) only, so there r is ample; PEFT's LoHa and LoKr
    start from r too."""
    options = LORA_VARIANTS.get(plan.method, {}) | plan.method_options
    plain = kind in ("LOHA", "LOKR") or options.get("use_rslora")
    return plan.lora_rank * (1 if plain else 2)


def _soft_prompt(plan: Plan, model: ModelSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"num_virtual_tokens": plan.num_virtual_tokens}
    if plan.method == "prompt":  # from real tokens: 11 points better than random on GSM8K (PEFT method_comparison)
        found["prompt_tuning_init"] = "SAMPLE_VOCAB"
    if plan.method == "prefix":
        found["prefix_projection"] = plan.prefix_projection
        if plan.prefix_projection:
            found["encoder_hidden_size"] = plan.encoder_hidden_size or model.hidden_size
    if plan.method == "ptuning":
        found["encoder_hidden_size"] = plan.encoder_hidden_size or model.embeddings[0].width
    return found

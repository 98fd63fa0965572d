"""The training steps that a calibration times: two and three layers of a real architecture, at three lengths.

Most have a small vocabulary: otherwise head and loss are most of so short a model, and say little about its layers.
Some are a fraction as wide, so that fixed costs and costs by width come apart.
"""

from math import gcd
from typing import Any

from profiles.errors import InvalidInputError
from profiles.plan import Plan, Quantization
from profiles.units import GIB

LAYERS = (2, 3)  # their difference is a layer, what is left is embedding, head and loss
SMALL_VOCABULARY = 2048
LENGTHS = {"cpu": (64, 128, 256), "cuda": (512, 1024, 2048)}
DEFAULT_MODELS = {"cpu": "HuggingFaceTB/SmolLM2-135M", "cuda": "meta-llama/Llama-3.1-8B"}
SMALL_CARD_MODEL = "Qwen/Qwen2.5-0.5B"
ROOM_FOR_8B = 20 * GIB  # three layers of it, embedding and head, fully trained in bf16: 1.7e9 parameters, 8 bytes each
LAYER_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers")
WIDTHS = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads")


def default_model(device: str, memory_bytes: int) -> str:
    """The model to probe with where none is named."""
    if device == "cuda" and memory_bytes < ROOM_FOR_8B:
        return SMALL_CARD_MODEL
    return DEFAULT_MODELS[device]


def truncated(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config with that many layers.

    Raises:
        InvalidInputError: it does not say how many it has.
    """
    names = [name for name in LAYER_COUNTS if name in config]
    if not names:
        raise InvalidInputError("--model", "its config.json does not say how many layers it has", "Name another model.")
    short = {name: config[name][:layers] for name in PER_LAYER if isinstance(config.get(name), list)}
    return {**config, **short, **dict.fromkeys(names, layers)}


def narrowed(config: dict[str, Any]) -> dict[str, Any] | None:
    """The config with all widths divided by the smallest number that divides its heads; None where none does."""
    widths = [config.get(name) for name in WIDTHS]
    if not all(isinstance(w, int) for w in widths):
        return None
    common = gcd(config["num_attention_heads"], config["num_key_value_heads"])
    divisor = next((n for n in range(2, common + 1) if all(config[name] % n == 0 for name in WIDTHS)), None)
    return None if divisor is None else {**config, **{name: config[name] // divisor for name in WIDTHS}}


def calibration_plans(config: dict[str, Any], *, device: str, full: bool) -> tuple[Plan, ...]:
    """The plans; a calibration may run out of time, so the first dozen holds some of every kind: depth, length, width,
    vocabulary, LoRA, QLoRA (on a card), full fine-tuning, with checkpoints and without."""
    quantization: Quantization = "fp32" if device == "cpu" else "bf16"
    few, more = LAYERS
    short, middle, long = LENGTHS[device]
    vocabulary = min(SMALL_VOCABULARY, config.get("vocab_size", SMALL_VOCABULARY))
    small = {**config, "vocab_size": vocabulary}

    def plan(layers: int, length: int, method: str = "lora", base: dict[str, Any] = small, **changes: Any) -> Plan:
        fields = {
            "model": truncated(base, layers), "method": method, "quantization": quantization, "seq_len": length,
            "gradient_checkpointing": "none", "loss_kernel": "full", "padding_mask": False, "attention": "sdpa",
        }  # fmt: skip
        return Plan.model_validate({**fields, **changes})

    narrow = narrowed(small)
    plans = [plan(layers, length) for length in (short, long) for layers in LAYERS]
    if device == "cuda":
        plans.append(plan(more, long, "qlora", quantization="nf4-dq"))
    plans += [
        plan(more, short, gradient_checkpointing="full"),
        plan(more, long, "full"),
        plan(more, long, base=config),
        plan(more, middle, "full", base=config),
    ]
    if narrow is not None:
        plans += [plan(more, short, base=narrow), plan(more, middle, "full", narrow)]
    plans += [
        plan(more, middle, "full", gradient_checkpointing="full"),
        plan(few, short, "full"),
        plan(more, middle, "adalora"),
        plan(more, middle, micro_batch_size=4),
        plan(more, middle, "prompt"),
        plan(more, short, "full"),
        *(plan(layers, middle) for layers in LAYERS),
        plan(more, short, base=config),
    ]
    if narrow is not None:
        plans.append(plan(more, long, base=narrow))
    plans += [
        plan(more, middle, gradient_checkpointing="full"),
        plan(more, middle, "prefix"),
        plan(more, middle, "ptuning"),
        plan(more, short, "adalora"),
    ]
    if device == "cuda":
        plans.append(plan(more, middle, "qlora", quantization="nf4-dq"))
    if full:
        plans += [plan(few, length, "full") for length in (middle, long)]
        plans += [plan(more, length, micro_batch_size=batch) for length in (short, middle, long) for batch in (2, 8)]
        plans += [plan(more, length, lora_rank=64, lora_dropout=0.05) for length in (short, middle, long)]
    return tuple({p.model_dump_json(): p for p in plans}.values())  # a small vocabulary may be the model's own

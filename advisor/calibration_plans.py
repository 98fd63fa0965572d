"""The training steps that a calibration times: two and three layers of a real architecture, at three lengths."""

from typing import Any

from profiles.errors import InvalidInputError
from profiles.plan import Plan, Quantization
from profiles.units import GIB

LAYERS = (2, 3)  # their difference is a layer, what is left is embedding, head and loss
LENGTHS = {"cpu": (64, 128, 256), "cuda": (512, 1024, 2048)}
DEFAULT_MODELS = {"cpu": "HuggingFaceTB/SmolLM2-135M", "cuda": "meta-llama/Llama-3.1-8B"}
SMALL_CARD_MODEL = "Qwen/Qwen2.5-0.5B"
ROOM_FOR_8B = 20 * GIB  # three layers of it, embedding and head, fully trained in bf16: 1.7e9 parameters, 8 bytes each
PER_LAYER = ("layer_types", "mlp_layer_types", "attention_layers", "no_rope_layers")


def default_model(device: str, memory_bytes: int) -> str:
    """The model to probe with where none is named."""
    if device == "cuda" and memory_bytes < ROOM_FOR_8B:
        return SMALL_CARD_MODEL
    return DEFAULT_MODELS[device]


def truncated(config: dict[str, Any], layers: int) -> dict[str, Any]:
    """The config with that many layers.

    Raises:
        InvalidInputError: the architecture does not call them num_hidden_layers or n_layer.
    """
    names = [name for name in ("num_hidden_layers", "n_layer", "num_layers", "n_layers") if name in config]
    if not names:
        raise InvalidInputError("--model", "its config.json does not say how many layers it has", "Name another model.")
    short = {name: config[name][:layers] for name in PER_LAYER if isinstance(config.get(name), list)}
    return {**config, **short, **dict.fromkeys(names, layers)}


def calibration_plans(config: dict[str, Any], *, device: str, full: bool) -> tuple[Plan, ...]:
    """The plans, the weightiest first: a calibration may run out of time."""
    quantization: Quantization = "fp32" if device == "cpu" else "bf16"
    lengths = LENGTHS[device]

    def plan(layers: int, length: int, method: str = "lora", **changes: Any) -> Plan:
        fields = {
            "model": truncated(config, layers), "method": method, "quantization": quantization, "seq_len": length,
            "gradient_checkpointing": "none", "loss_kernel": "full", "padding_mask": False, "attention": "sdpa",
        }  # fmt: skip
        return Plan.model_validate({**fields, **changes})

    short, middle, long = lengths
    few, more = LAYERS
    plans = [plan(layers, length) for length in lengths for layers in LAYERS]
    plans += [plan(few, short, "full"), plan(more, short, "full"), plan(more, long, "full")]
    plans += [plan(more, middle, "prompt"), plan(more, middle, "ptuning"), plan(more, middle, "adalora")]
    plans += [
        plan(more, middle, gradient_checkpointing="full"),
        plan(more, middle, "full", gradient_checkpointing="full"),
        plan(more, middle, micro_batch_size=4),
        plan(more, short, "prefix"),
        plan(more, short, "prompt"),
        plan(more, short, "adalora"),
    ]
    if device == "cuda":
        plans += [plan(more, length, "qlora", quantization="nf4-dq") for length in (middle, long)]
    if full:
        plans += [plan(few, length, "full") for length in (middle, long)]
        plans += [plan(more, length, micro_batch_size=batch) for length in lengths for batch in (2, 8)]
        plans += [plan(more, length, lora_rank=64, lora_dropout=0.05) for length in lengths]
    return tuple(plans)

"""A plan in a few lines of words."""

from collections.abc import Iterator

from estimators.methods import get_method
from profiles.plan import Plan


def describe_plan(plan: Plan) -> Iterator[tuple[str, str]]:
    """(label, text) of what a person would set by hand."""
    method = get_method(plan.method)
    details = [f"{plan.quantization} base"]
    if method.uses_rank:
        alpha = f", alpha {plan.lora_alpha:g}" if plan.lora_alpha is not None else ""
        details.append(f"rank {plan.lora_rank}{alpha} on {', '.join(plan.target_modules)}")
    if method.adds_tokens or method.adds_keys:
        details.append(f"{plan.num_virtual_tokens} virtual tokens")
    if plan.learning_rate is not None:
        details.append(f"learning rate {plan.learning_rate:g}")
    yield "Method", ", ".join((method.title, *details))
    cards = f" x {plan.n_gpus} cards" if plan.n_gpus > 1 else ""
    yield (
        "Batch",
        f"micro-batch {plan.micro_batch_size} x {plan.gradient_accumulation_steps} accumulation{cards} = "
        f"{plan.global_batch_size} {'packed row' if plan.packing else 'sequence'}{'s' * (plan.global_batch_size > 1)} "
        f"of {plan.seq_len} tokens",
    )
    settings = [
        f"gradient checkpointing {plan.gradient_checkpointing}",
        f"attention {plan.attention}",
        f"optimizer {plan.optimizer}",
    ]
    if plan.sharding != "none":
        settings.append(f"sharding {plan.sharding}" + (" with offload to main memory" * plan.offload_optimizer))
    if plan.packing:
        settings.append("packing")
    yield "Settings", ", ".join(settings)

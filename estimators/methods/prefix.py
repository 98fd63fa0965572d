"""Prefix tuning: learned keys and values in front of each layer's own (Li and Liang 2021, arXiv 2101.00190)."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors
from profiles.model import ModelSpec
from profiles.plan import Plan


def prefix_width(model: ModelSpec) -> int:
    """Elements of one virtual token: a key and a value in each layer (GQA's widths, as PEFT sizes them)."""
    return sum(2 * g.count * g.block.attention.kv_width for g in model.layers)


class PrefixTuning(Method):
    """A table of num_virtual_tokens x 2 L kv_width, or (prefix_projection) an MLP that makes it."""

    id = "prefix"
    title = "prefix tuning"
    peft_type = "PREFIX_TUNING"
    adds_keys = True

    def has_encoder(self, plan: Plan) -> bool:
        """The projection, where there is one."""
        return plan.prefix_projection

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """The prefix encoder (PEFT tuners/prefix_tuning/model.py)."""
        tokens, width = plan.num_virtual_tokens, prefix_width(model)
        if not plan.prefix_projection:
            yield TrainedTensors(elements=tokens * width, tensors=1)
            return
        token_dim = model.layers[0].block.attention.kv_width
        hidden = plan.encoder_hidden_size or model.hidden_size
        yield TrainedTensors(elements=tokens * token_dim, tensors=1)
        yield TrainedTensors(elements=token_dim * hidden + hidden, tensors=1)
        yield TrainedTensors(elements=hidden * width + width, tensors=1)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT (peft_model.py) raises on checkpointing: the prefix lives in the KV cache, which that disables."""
        if plan.gradient_checkpointing != "none":
            return "prefix tuning cannot be combined with gradient checkpointing (PEFT refuses: it needs the KV cache)"
        if plan.packing:
            return "prefix tuning with packing: PEFT ignores position ids, so packed documents would see each other"
        if model.kind == "encoder":
            return f"prefix tuning is offered for generative models here, and {model.name} is an encoder"
        if any(g.block.attention.kind == "mla" for g in model.layers):
            return f"{model.name} caches compressed keys and values (MLA), which PEFT's prefix does not fit"
        return None


METHOD = PrefixTuning()

"""Full fine-tuning: every parameter of the model."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from estimators.methods.base import Method, TrainedTensors
from profiles.model import Block, ModelSpec
from profiles.plan import QUANTIZED, Plan

NO_RANKS: Mapping[str, int] = MappingProxyType({})


def block_tensors(block: Block, ranks: Mapping[str, int] = NO_RANKS) -> Iterator[TrainedTensors]:
    """Every parameter of one layer. `ranks`: what the gradients of some weights are projected to, by name."""
    for linear in block.linears:
        fused = linear.kind == "parameter"  # all experts in one tensor
        copies = linear.copies
        size = linear.in_features * linear.out_features
        yield TrainedTensors(
            elements=size * (copies if fused else 1),
            tensors=1 if fused else copies,
            in_base=True,
            columns=0 if fused else linear.in_features,
            rank=ranks.get(linear.name, 0),
        )
        if linear.bias:
            bias = linear.out_features
            yield TrainedTensors(elements=bias * (copies if fused else 1), tensors=1 if fused else copies, in_base=True)
    for norm in block.norms:
        yield TrainedTensors(elements=norm.size, tensors=2 if norm.bias else 1, in_base=True)
    if block.other_parameters:
        yield TrainedTensors(elements=block.other_parameters, tensors=1, in_base=True)


class Full(Method):
    """All weights, gradients and states of the whole model."""

    id = "full"
    title = "full fine-tuning"
    trains_base = True

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """Every parameter once; a tied head is the embedding."""
        ranks = self.projected(model, plan)
        for embedding in model.embeddings:
            yield TrainedTensors(elements=embedding.parameters, tensors=1, in_base=True, embedding=True)
        for group in model.layers:
            for t in block_tensors(group.block, ranks):
                yield replace(t, tensors=t.tensors * group.count)
        for linear in model.extra_linears:
            yield TrainedTensors(elements=linear.weight_parameters, tensors=1, in_base=True)
            if linear.bias:
                yield TrainedTensors(elements=linear.bias_parameters, tensors=1, in_base=True)
        for norm in model.extra_norms:
            yield TrainedTensors(elements=norm.size, tensors=2 if norm.bias else 1, in_base=True)
        if model.head is not None:
            if not model.tie_word_embeddings:
                yield TrainedTensors(
                    elements=model.head.weight_parameters,
                    tensors=1,
                    in_base=True,
                    columns=model.head.in_features if model.head.name in ranks else 0,
                    rank=ranks.get(model.head.name, 0),
                )
            if model.head.bias:
                yield TrainedTensors(elements=model.head.bias_parameters, tensors=1, in_base=True)
        if model.other_parameters:
            yield TrainedTensors(elements=model.other_parameters, tensors=1, in_base=True)

    def projected(self, model: ModelSpec, plan: Plan) -> Mapping[str, int]:
        """Ranks that gradients are projected to, by the linear's name: none here."""
        return NO_RANKS

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """Quantised weights cannot be trained: transformers' Trainer refuses them."""
        if plan.quantization in QUANTIZED:
            return f"full fine-tuning trains the weights themselves, and {plan.quantization} weights cannot be trained"
        return None


METHOD = Full()

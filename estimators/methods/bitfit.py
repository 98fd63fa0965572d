"""BitFit: only the bias terms are trained (Ben Zaken et al. 2021, arXiv 2106.10199)."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors
from profiles.model import Block, ModelSpec
from profiles.plan import QUANTIZED, Plan


def block_biases(block: Block) -> Iterator[TrainedTensors]:
    """Every `*.bias` of one layer."""
    for linear in block.linears:
        if linear.bias:
            fused = linear.kind == "parameter"
            yield TrainedTensors(
                elements=linear.bias_parameters if fused else linear.out_features,
                tensors=1 if fused else linear.copies,
                in_base=True,
            )
    for norm in block.norms:
        if norm.bias:
            yield TrainedTensors(elements=norm.size, tensors=1, in_base=True)


class BitFit(Method):
    """All parameters named `*.bias`, nothing else."""

    id = "bitfit"
    title = "BitFit"

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """Biases of linears and of LayerNorms."""
        for group in model.layers:
            for t in block_biases(group.block):
                yield TrainedTensors(elements=t.elements, tensors=t.tensors * group.count, in_base=True)
        for linear in model.extra_linears:
            if linear.bias:
                yield TrainedTensors(elements=linear.bias_parameters, tensors=1, in_base=True)
        for norm in model.extra_norms:
            if norm.bias:
                yield TrainedTensors(elements=norm.size, tensors=1, in_base=True)
        if model.head is not None and model.head.bias:
            yield TrainedTensors(elements=model.head.bias_parameters, tensors=1, in_base=True)

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """A model without biases has nothing to train; a quantised base takes no gradient at its own parameters."""
        if model.bias_parameters == 0:
            return f"{model.name} has no bias terms (like most Llama-type models): BitFit would train nothing"
        if plan.quantization in QUANTIZED:
            return f"transformers' Trainer refuses to train a {plan.quantization} base without adapters"
        return None


METHOD = BitFit()

"""Prompt tuning: learned embeddings in front of the input (Lester et al. 2021, arXiv 2104.08691)."""

from collections.abc import Iterator

from estimators.methods.base import Method, TrainedTensors
from profiles.model import ModelSpec
from profiles.plan import Plan


class SoftPrompt(Method):
    """What prompt tuning and P-tuning share: virtual tokens that run through every layer."""

    adds_tokens = True

    def refusal(self, model: ModelSpec, plan: Plan) -> str | None:
        """PEFT ignores position ids here, so packed documents would attend to each other."""
        if plan.packing:
            return f"{self.title} with packing: PEFT ignores position ids, so packed documents would see each other"
        if model.kind == "encoder":
            return f"{self.title} is offered for generative models here, and {model.name} is an encoder"
        if plan.num_virtual_tokens >= model.max_position_embeddings:
            return (
                f"num_virtual_tokens {plan.num_virtual_tokens} leaves no room in the "
                f"{model.max_position_embeddings} positions of {model.name}"
            )
        return None


class PromptTuning(SoftPrompt):
    """A table of num_virtual_tokens x hidden_size."""

    id = "prompt"
    title = "prompt tuning"
    peft_type = "PROMPT_TUNING"

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """The prompt table (PEFT tuners/prompt_tuning/model.py)."""
        yield TrainedTensors(elements=plan.num_virtual_tokens * model.embeddings[0].width, tensors=1)


METHOD = PromptTuning()

"""PEFT's modules_to_save: full copies of the embedding or the head, trained beside an adapter.

`method_options: {"modules_to_save": ["lm_head", "embed_tokens"]}`. The original stays on the card, frozen (peft
utils/other.py ModulesToSaveWrapper); a copy of a tied head is a tensor of its own.
"""

from collections.abc import Iterator

from estimators.methods.base import TrainedTensors, matches
from profiles.errors import InvalidInputError
from profiles.model import ModelSpec
from profiles.plan import Plan


def saved_names(plan: Plan) -> tuple[str, ...]:
    """The names under modules_to_save, none by default."""
    given = plan.method_options.get("modules_to_save") or ()
    return (given,) if isinstance(given, str) else tuple(given)


def saves_head(model: ModelSpec, plan: Plan) -> bool:
    """Whether the head is among them."""
    return model.head is not None and any(matches(name, model.head.name) for name in saved_names(plan))


def saves_embedding(model: ModelSpec, plan: Plan) -> bool:
    """Whether an embedding is among them."""
    return any(matches(name, e.name) for name in saved_names(plan) for e in model.embeddings)


def saved_modules(model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
    """The copies' tensors.

    Raises:
        InvalidInputError: a name is neither the head's nor an embedding's.
    """
    for name in saved_names(plan):
        head, embeddings = model.head, [e for e in model.embeddings if matches(name, e.name)]
        if head is not None and matches(name, head.name):
            yield TrainedTensors(elements=head.weight_parameters, tensors=1, in_base=True, is_copy=True)
            if head.bias:
                yield TrainedTensors(elements=head.bias_parameters, tensors=1, in_base=True, is_copy=True)
        elif embeddings:
            for e in embeddings:
                yield TrainedTensors(elements=e.parameters, tensors=1, in_base=True, is_copy=True, embedding=True)
        else:
            known = [e.name for e in model.embeddings] + ([head.name] if head is not None else [])
            raise InvalidInputError(
                "method_options.modules_to_save",
                f"{name} is neither an embedding nor the head of {model.name}",
                f"it can name {', '.join(known)}",
            )

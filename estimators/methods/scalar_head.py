"""A score or a few classes in place of the vocabulary: AutoModelForSequenceClassification of transformers 5.23.

PEFT trains a full copy of every module whose name ends in "classifier" or "score", beside any adapter and any prompt
(tuners/tuners_utils.py, TaskType.SEQ_CLS). LLaMA-Factory's reward model keeps the vocabulary's head, and adds a value.
"""

from profiles.model import Linear, ModelSpec
from profiles.plan import Plan

SCALAR_TASKS = ("classification", "reward")
# The heads' names: transformers quantises one whose last parameter is a bias, and no codes can be trained
SCALAR_HEADS = ("classifier", "pre_classifier", "score")
LABELS = 2  # transformers' default: a plan does not say how many classes there are
KEEPS_HEAD_NORM = "modernbert"


def is_scalar(plan: Plan) -> bool:
    """Whether the head over the vocabulary goes."""
    return plan.task in SCALAR_TASKS and plan.platform != "llamafactory"


def task_model(plan: Plan, model: ModelSpec) -> ModelSpec:
    """The model that is loaded, without its few rows of scores. An encoder's dense layer before the vocabulary stands
    for the pooler or pre-classifier of the same size, which has no norm."""
    if not is_scalar(plan) or model.head is None:
        return model
    norms = model.extra_norms
    if model.kind == "encoder" and model.model_type != KEEPS_HEAD_NORM:
        norms = tuple(n for n in norms if n.place != "final")
    return model.replace(head=None, tie_word_embeddings=False, extra_norms=norms)


def scalar_head(model: ModelSpec, plan: Plan) -> Linear:
    """The classifier, or a decoder's score, which has no bias."""
    return Linear(
        name="classifier" if model.kind == "encoder" else "score",
        role="head",
        in_features=model.hidden_size,
        out_features=1 if plan.task == "reward" else LABELS,
        bias=model.kind == "encoder",
    )


def copied_dense(model: ModelSpec) -> Linear | None:
    """What PEFT copies beside the scores: DistilBERT's "pre_classifier", the dense layer of RoBERTa's classifier."""
    if model.model_type in ("distilbert", "roberta", "xlm-roberta") and model.extra_linears:
        return model.extra_linears[0]
    return None

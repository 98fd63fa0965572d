"""The keys that TRL, LLaMA-Factory and Unsloth scripts share: transformers' TrainingArguments."""

from typing import Any, Literal, NamedTuple

from advisor.readers.document import Document
from profiles.plan import Plan

KEYS = {  # fields of a plan, as these platforms call them
    "micro_batch_size": "per_device_train_batch_size",
    "gradient_accumulation_steps": "gradient_accumulation_steps",
    "learning_rate": "learning_rate",
    "num_epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "weight_decay": "weight_decay",
    "optimizer": "optim",
    "max_grad_norm": "max_grad_norm",
    "warmup_ratio": "warmup_steps",
    "seed": "seed",
}


class Defaults(NamedTuple):
    """What a release takes for a key that is left out (transformers 5.23 training_args.py, where not said)."""

    micro_batch_size: int = 8
    gradient_accumulation_steps: int = 1
    learning_rate: float = 5e-5
    num_epochs: float = 3.0
    optimizer: str = "adamw_torch_fused"
    weight_decay: float = 0.0
    warmup_steps: float = 0.0
    eval_batch_size: int = 8
    seed: int = 42


def read_training_arguments(doc: Document, defaults: Defaults) -> dict[str, Any]:
    """Fields of a plan: batch, schedule, optimizer.

    Raises:
        InvalidInputError: a value that cannot be.
    """
    max_steps = doc.integer("max_steps", -1)
    doc.strategy("save_strategy")
    doc.strategy("logging_strategy")
    return {
        "micro_batch_size": doc.integer("per_device_train_batch_size", defaults.micro_batch_size),
        "gradient_accumulation_steps": doc.integer("gradient_accumulation_steps", defaults.gradient_accumulation_steps),
        "learning_rate": doc.number("learning_rate", defaults.learning_rate),
        "num_epochs": doc.number("num_train_epochs", defaults.num_epochs),
        "max_steps": max_steps if max_steps > 0 else None,
        "warmup_ratio": _warmup(doc, defaults.warmup_steps, max_steps),
        "weight_decay": doc.number("weight_decay", defaults.weight_decay),
        "lr_scheduler": scheduler_of(doc.text("lr_scheduler_type", "linear")),
        "optimizer": doc.text("optim", defaults.optimizer),
        "max_grad_norm": doc.number("max_grad_norm", 1.0),
        "seed": doc.integer("seed", defaults.seed),
        "eval_fraction": 0.0,
    }


def read_eval_batch(doc: Document, default: int) -> int | None:
    """Sequences in an evaluation's batch, None where there is no evaluation."""
    size = doc.integer("per_device_eval_batch_size", default)
    return size if doc.strategy("eval_strategy") not in ("", "no") else None


def scheduler_of(name: str) -> Literal["linear", "cosine", "constant"]:
    """The nearest of a plan's three; which one changes neither memory nor speed."""
    if name.startswith("cosine"):
        return "cosine"
    return "constant" if name.startswith("constant") else "linear"


def _warmup(doc: Document, default: float, max_steps: int) -> float:
    """As a share of the run: below 1 it is one, a number of steps is one where the run's length is known."""
    share, steps = doc.number("warmup_ratio", -1.0), doc.number("warmup_steps", default)
    if share >= 0:
        steps = share
    if 0 <= steps < 1:
        return steps
    return steps / max_steps if 0 < steps < max_steps else 0.0


def words_of_training_arguments(plan: Plan) -> dict[str, str]:
    """The batch in these keys."""
    return {
        "per_device_train_batch_size": str(plan.micro_batch_size),
        "gradient_accumulation_steps": str(plan.gradient_accumulation_steps),
    }

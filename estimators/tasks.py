"""What a task makes of a micro-batch: sequences of an example, passes without gradients, a second model.

Sources: TRL 1.16 trainer/{dpo,kto,reward,grpo}_trainer.py and experimental/orpo; LLaMA-Factory 0.9.5 train/{dpo,kto,rm}
and trainer_utils.py create_ref_model. Unsloth patches TRL's trainers (its sources were read for SFT only).
"""

from estimators.methods import get_method
from profiles.plan import Plan, Task

PAIRS = 2  # a chosen and a rejected sequence, in one batch
SEQUENCES: dict[Task, int] = {"dpo": PAIRS, "orpo": PAIRS, "reward": PAIRS}
# DPO: the reference policy. KTO: the policy and the reference on mismatched pairs (its KL term), the reference.
PASSES_WITHOUT_GRADIENT: dict[Task, int] = {"dpo": 1, "kto": 3}
# GRPO: no field of a plan divides a sequence between prompt and completion; the emitted settings halve it too
COMPLETION_SHARE = 2


def sequences(plan: Plan) -> int:
    """Sequences of one forward pass with gradients on one card."""
    return plan.micro_batch_size * sequences_per_example(plan)


def sequences_per_example(plan: Plan) -> int:
    """Sequences that an example becomes."""
    return SEQUENCES.get(plan.task, 1)


def passes_without_gradient(plan: Plan) -> int:
    """Forward passes of a whole micro-batch beside the one that is trained."""
    return PASSES_WITHOUT_GRADIENT.get(plan.task, 0)


def holds_reference(plan: Plan) -> bool:
    """Whether a second model stays on the card: where no adapter can be switched off, and in LLaMA-Factory for every
    adapter but LoRA's kind."""
    if not passes_without_gradient(plan):
        return False
    kind = get_method(plan.method).peft_type
    return kind != "LORA" if plan.platform == "llamafactory" else kind is None


def completion_tokens(plan: Plan) -> int:
    """Tokens that GRPO samples for a prompt, at most."""
    return max(1, plan.seq_len // COMPLETION_SHARE)

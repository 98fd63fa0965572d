"""Losses of preference training over all logits, on a tape: LLaMA-Factory's log probabilities, TRL's ORPO.

TRL's DPO and KTO take the fused LM head that its SFT takes (logits.py).
"""

from estimators.layer_ops import FP32, Scope
from estimators.tape import Tensor

INDEX_BYTES = 8
STATISTICS = 2 * FP32  # TRL's logprob kernel keeps a maximum and a sum of each row


def log_probs(scope: Scope, logits: Tensor, *, copies: int) -> Tensor:
    """LLaMA-Factory 0.9.5 (trainer_utils.py get_batch_logps): logits in fp32, all of their log_softmax, one gathered.

    The logits are held for the metrics while the passes without gradient make `copies` of their size beside them: of
    DPO's reference its logits and their log_softmax; KTO (train/kto/trainer.py) holds the logits of the matched pairs,
    too, when it makes those of the mismatched ones, and divides them into copies by their label.
    """
    tape = scope.tape
    wide = _to_fp32(scope, logits)
    probs = tape.op(wide, width=wide.width, itemsize=FP32)
    tape.save_output(probs)
    index = tape.alloc(INDEX_BYTES)
    loss = tape.op(probs, width=1.0, itemsize=FP32, saved=[index])
    tape.release(index)
    tape.drop(probs)
    tape.scratch(*[(wide.width * FP32, 0.0)] * copies)
    tape.drop(wide)
    return loss


def odds_ratio(scope: Scope, logits: Tensor) -> Tensor:
    """TRL 1.16 experimental/orpo: cross-entropy of the chosen half over a copy of its logits, and the log probability
    of all answers by TRL's kernel, which keeps the logits and makes their gradient at once."""
    tape = scope.tape
    if scope.regime.autocast:  # accelerate converts the outputs
        logits = _to_fp32(scope, logits)
    half = logits.width / 2
    copy = tape.op(logits, width=half, itemsize=logits.itemsize)
    chosen = tape.op(copy, width=half, itemsize=logits.itemsize)
    tape.save_output(chosen)
    loss = tape.op(chosen, width=0.0, itemsize=logits.itemsize)
    tape.drop(chosen, copy)
    statistics = tape.alloc(STATISTICS + INDEX_BYTES)
    answers = tape.op(logits, width=1.0, itemsize=FP32, saved=[logits.buffer, statistics])
    tape.release(statistics)
    tape.drop(logits)
    total = tape.op(loss, answers, width=0.0, itemsize=FP32)
    tape.drop(loss, answers)
    return total


def _to_fp32(scope: Scope, logits: Tensor) -> Tensor:
    wide = scope.tape.cast(logits, FP32)
    scope.tape.drop(logits)
    return wide

"""What a training made the model forget: the same general text before and after it, and a verdict."""

import math
from collections.abc import Sequence
from statistics import fmean, stdev

from profiles.retention import Retention, RetentionVerdict
from profiles.units import format_count

# Nats a token on general text. In PEFT's comparison (method_comparison/MetaMathQA, huggingface/peft@5d602fd,
# Llama-3.2-3B: the change of the loss on Wikipedia) LoRA, DoRA, AdaLoRA and full fine-tuning lie at .022 to .111, soft
# prompts and (IA)3, which shift the model's behaviour elsewhere too, at .129 to 1.785.
FORGOTTEN = 0.12
STANDARD_ERRORS = 2  # a difference of so many is no chance (95 % of a normal distribution)


def judge_retention(before: Sequence[float], after: Sequence[float]) -> Retention | None:
    """Compare the losses of the same passages. None: fewer than two, not the same ones, or no finite numbers. Pure."""
    if len(before) != len(after) or len(before) < 2 or not all(map(math.isfinite, (*before, *after))):
        return None
    differences = [b - a for a, b in zip(before, after, strict=True)]
    rise, noise = fmean(differences), stdev(differences) / math.sqrt(len(differences))
    verdict: RetentionVerdict = "kept"
    if rise > STANDARD_ERRORS * noise:
        verdict = "forgotten" if rise > FORGOTTEN else "slightly worse"
    return Retention(
        passages=len(before), loss_before=fmean(before), loss_after=fmean(after), noise=noise, verdict=verdict
    )


def describe_retention(found: Retention) -> str:
    """In one line, as perplexities."""
    rise = found.loss_after - found.loss_before
    meaning = {
        "kept": f"no rise beyond the noise of {STANDARD_ERRORS * found.noise:.3f}",
        "slightly worse": f"less than the {FORGOTTEN} nats of a model that forgets",
        "forgotten": f"more than {FORGOTTEN} nats: a lower learning rate, fewer steps or a lower rank forget less",
    }[found.verdict]
    return (
        f"perplexity {show_perplexity(found.loss_before)} before, {show_perplexity(found.loss_after)} after "
        f"({found.verdict}: {rise:+.3f} nats a token, {meaning})"
    )


def show_perplexity(loss: float) -> str:
    """'17.73', '192K'."""
    perplexity = math.exp(loss)
    return f"{perplexity:.4g}" if perplexity < 1e4 else format_count(perplexity)

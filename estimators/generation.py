"""GRPO's sampling, as TRL 1.16 does it without vLLM (grpo_trainer.py: `unwrapped_model.generate`): memory and time.

All completions of an optimizer step are sampled together (steps_per_generation is gradient_accumulation_steps): a
prefill of the prompts, then a token at a time over a cache of keys and values. Each is taken to be as long as it may.
"""

from estimators.answer import ComponentName
from estimators.efficiency import Rates, smooth_max
from estimators.layer_ops import FP32
from estimators.methods import Method
from estimators.regime import Regime
from estimators.step_time import forward_pass
from estimators.tasks import completion_tokens
from estimators.work import Batch
from profiles.model import Attention, ModelSpec
from profiles.plan import Plan

# fp32 copies of the last position's logits: of generate's loop, their softmax, and what multinomial reads (transformers
# 5.23 generation/utils.py _sample)
SAMPLED_COPIES = 3
SAMPLING_LAUNCHES = 40  # of generate's own loop a token: logits, softmax, multinomial, stopping criteria
CACHE_LAUNCHES = 2  # a concatenation of keys and one of values in each layer (DynamicCache)


def cache_bytes(model: ModelSpec, regime: Regime, *, sequences: int, length: int) -> float:
    """Keys and values of all layers: 2 n_kv d s each, in the dtype they are computed in."""
    itemsize = regime.compute if regime.autocast else regime.residual
    widths = sum(g.count * _width(g.block.attention) for g in model.layers)
    return float(widths * itemsize * sequences * length)


def generation_parts(
    model: ModelSpec, regime: Regime, *, sequences: int, prompt: int, length: int, prefill: float
) -> list[tuple[ComponentName, float]]:
    """What is alive beside the standing bytes while `sequences` of `length` tokens are sampled, `prompt` of them given.

    `prefill`: a layer's working set for all prompts. A concatenation holds one layer's keys twice.
    """
    cache = cache_bytes(model, regime, sequences=sequences, length=length)
    grown = cache / (2 * model.num_hidden_layers)
    logits = float(sequences * model.vocab_size * (regime.compute + SAMPLED_COPIES * FP32))
    at_first = cache * prompt / length
    if at_first + prefill > cache + grown + logits:
        return [("kv_cache", at_first), ("layer_working_set", prefill)]
    return [("kv_cache", cache), ("layer_working_set", grown), ("logits", logits)]


def generation_seconds(
    plan: Plan, model: ModelSpec, method: Method, regime: Regime, rates: Rates, *, sequences: int
) -> float:
    """Seconds to sample `sequences` completions on one card.

    t = prefill + n smoothmax(kernels + cache / bandwidth, launches). The cache is on average as long as prompt and half
    a completion.
    """
    new = completion_tokens(plan)
    prompt = plan.seq_len - new
    before = forward_pass(plan, model, method, regime, rates, _batch(sequences, prompt, prompt))
    token = forward_pass(plan, model, method, regime, rates, _batch(sequences, 1, 1))
    read = cache_bytes(model, regime, sequences=sequences, length=prompt + new // 2) / rates.bandwidth
    launches = token.launches + SAMPLING_LAUNCHES + CACHE_LAUNCHES * model.num_hidden_layers
    once = smooth_max(token.seconds + read, launches * rates.launch, rates.host_norm)
    return (before.seconds + new * once) * rates.step_time_factor


def _batch(sequences: int, length: int, attended: int) -> Batch:
    return Batch(sequences=sequences, length=max(1, length), attended=max(1, attended))


def _width(attention: Attention) -> int:
    """Of a position's keys and values."""
    return attention.num_key_value_heads * (attention.head_dim + attention.v_head_dim)

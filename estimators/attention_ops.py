"""softmax(q k^T) v in each kernel, on a tape.

Sources: torch 2.13 (aten/native/transformers: attention.cpp, cuda/flash_attn/flash_api.cpp, cuda/attention_backward.cu;
cuda/SoftMax.cu), transformers 5.23 (integrations/sdpa_attention.py, eager_attention_forward of each model).
"""

from estimators.layer_ops import FP32, Scope, cast_for_matmul, dropout, narrow
from estimators.tape import Tensor
from profiles.model import Attention

FLASH_ROW_BLOCK = 128  # flash backward rounds rows to 128 and head_dim to 32 (64 above 128)


def attention_core(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
    """softmax(q k^T) v in the regime's kernel. The inputs stay with the caller."""
    tape, regime = scope.tape, scope.regime
    name = regime.kernel
    if name == "flash" and not (regime.autocast or regime.own_flash) and q.itemsize == FP32:
        name = "efficient" if spec.num_heads == spec.num_key_value_heads else "math"  # flash is for half precision
    if name == "flash" or (regime.autocast and name != "eager"):
        qc, kc, vc = (tape.cast(t, regime.compute) for t in (q, k, v))
    else:
        qc, kc, vc = tape.hold(q), tape.hold(k), tape.hold(v)
    kernel = {"flash": _flash, "efficient": _efficient, "math": _math, "eager": _eager}[name]
    out = kernel(scope, qc, kc, vc, spec)
    tape.drop(qc, kc, vc)
    return out


def _out_width(spec: Attention) -> int:
    return spec.num_heads * spec.v_head_dim


def _flash(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
    """Saves q, k, v, out and the log-sum-exp. Backward accumulates dq in fp32, and dk, dv per query head under GQA."""
    tape = scope.tape
    lse = tape.alloc(FP32 * spec.num_heads)
    rows = -(-scope.seq_len // FLASH_ROW_BLOCK) * FLASH_ROW_BLOCK / scope.seq_len
    step = 32 if spec.head_dim <= 128 else 64
    rounded_dim = -(-spec.head_dim // step) * step
    statistic = FP32 * spec.num_heads * rows
    pieces = [(statistic, 0.0), (statistic * rounded_dim, 0.0)]
    if spec.num_key_value_heads != spec.num_heads:
        pieces += [(float(q.itemsize * spec.q_width), 0.0)] * 2
    out = tape.op(
        q, k, v, width=_out_width(spec), itemsize=q.itemsize,
        saved=[q.buffer, k.buffer, v.buffer, lse], pieces=pieces,
    )  # fmt: skip
    tape.save_output(out)
    tape.release(lse)
    # The output is laid out as q is: torch.cat of a rotated and a plain part puts heads before positions
    return _contiguous(scope, out) if spec.partial_rotary_factor < 1 and spec.form != "gptj" else out


def _repeat(scope: Scope, t: Tensor, groups: float) -> Tensor:
    """repeat_kv: expand and copy to one key head a query head."""
    if groups == 1:
        return scope.tape.hold(t)
    return scope.tape.op(t, width=t.width * groups, itemsize=t.itemsize)


def _efficient(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
    """Memory-efficient kernel: repeated keys and values, a float copy of the boolean mask per layer."""
    tape = scope.tape
    groups = spec.num_heads / spec.num_key_value_heads
    kr, vr = _repeat(scope, k, groups), _repeat(scope, v, groups)
    lse = tape.alloc(FP32 * spec.num_heads)
    saved = [q.buffer, kr.buffer, vr.buffer, lse]
    mask = tape.alloc(q.itemsize * -(-scope.keys // 8) * 8.0) if scope.regime.masked else None
    if mask is not None:
        saved.append(mask)
    accumulator = 0.0
    if q.itemsize < FP32:  # 64 x 128 fp32 tiles and a counter each (attention_backward.cu)
        accumulator = spec.num_heads * (-(-spec.head_dim // 128)) * (64 * 128 * FP32 + 128) / 64
    out = tape.op(
        q, kr, vr, width=_out_width(spec), itemsize=q.itemsize,
        saved=saved, pieces=[(float(FP32 * spec.num_heads), 0.0), (accumulator, 0.0)],
    )  # fmt: skip
    tape.save_output(out)
    tape.release(lse)
    if mask is not None:
        tape.release(mask)
    tape.drop(kr, vr)
    return out


def _math(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
    """_scaled_dot_product_attention_math: fp32 throughout, scaled copies of q and k, safe softmax. Falcon's one key
    head is not repeated: the products expand it, as a copy where there are several sequences."""
    tape = scope.tape
    groups = spec.num_heads / spec.num_key_value_heads
    expanded = spec.form == "falcon" and groups > 1
    q32, k32, v32 = (tape.cast(t, FP32) for t in (q, k, v))
    kr = _repeat(scope, k32, 1 if expanded else groups)
    vr = _repeat(scope, v32, 1 if expanded and not scope.regime.several else groups)
    qs = tape.op(q32, width=q.width, itemsize=FP32)
    ks = tape.op(kr, width=kr.width, itemsize=FP32)
    if expanded and scope.regime.several:
        small, ks = ks, _repeat(scope, ks, groups)
        tape.drop(small)
    scores_width = spec.num_heads * scope.keys
    scores = tape.op(qs, ks, width=scores_width, itemsize=FP32, saved=[qs.buffer, ks.buffer])
    tape.drop(qs, ks, q32, k32, v32, kr)
    causal = tape.alloc(0.0, 0.0 if scope.regime.masked else FP32 * scope.seq_len**2)
    masked = tape.op(scores, width=scores_width, itemsize=FP32, passes=[scores])
    tape.drop(scores)
    probabilities = _softmax(scope, masked, FP32)
    tape.scratch((float(scores_width), 0.0))  # _safe_softmax: isneginf; rows without a key are written over in place
    tape.drop(masked)
    tape.release(causal)
    probabilities = _dropped_out(scope, probabilities, spec)
    out32 = tape.op(probabilities, vr, width=_out_width(spec), itemsize=FP32, saved=[probabilities.buffer, vr.buffer])
    tape.drop(probabilities, vr)
    out = tape.cast(out32, q.itemsize)
    tape.drop(out32)
    return _contiguous(scope, out)


def _dropped_out(scope: Scope, probabilities: Tensor, spec: Attention) -> Tensor:
    """The model's own dropout over the probabilities, which are dropped."""
    if not spec.dropout:
        return probabilities
    out = dropout(scope, probabilities)
    scope.tape.drop(probabilities)
    return out


def _softmax(scope: Scope, scores: Tensor, itemsize: int) -> Tensor:
    """Saves its output; backward takes grad * output beside the result (SoftMax.cu)."""
    tape = scope.tape
    out = tape.op(scores, width=scores.width, itemsize=itemsize, scratch=(scores.width * itemsize, 0.0))
    tape.save_output(out)
    return out


def _contiguous(scope: Scope, x: Tensor) -> Tensor:
    """transpose(1, 2).contiguous() of a (batch, heads, ...) result: a copy."""
    out = scope.tape.op(x, width=x.width, itemsize=x.itemsize)
    scope.tape.drop(x)
    return out


def _eager(scope: Scope, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
    """eager_attention_forward: scores, scaling, mask, fp32 softmax, cast back. GPT-J and GPT-Neo multiply q and k in
    fp32 outside autocast; Bloom's product scales by itself, and Falcon scales in place."""
    tape, regime = scope.tape, scope.regime
    groups = spec.num_heads / spec.num_key_value_heads
    wide = spec.form in ("gptj", "gpt_neo")
    kr, vr = _repeat(scope, k, groups), _repeat(scope, v, groups)
    qw, kw = (tape.cast(t, FP32) if wide else tape.hold(t) for t in (q, kr))
    qc, kc, vc = (cast_for_matmul(scope, t) for t in (qw, kw, vr))
    tape.drop(qw, kw)
    if regime.several and groups == 1:  # a batched product copies a view that is not in the order of its heads
        view, vc = vc, tape.op(vc, width=vc.width, itemsize=vc.itemsize)
        tape.drop(view)
    if regime.several and spec.form == "bloom":
        views, qc, kc = (qc, kc), *(tape.op(t, width=t.width, itemsize=t.itemsize) for t in (qc, kc))
        tape.drop(*views)
    width, itemsize = spec.num_heads * scope.keys, qc.itemsize
    scores = tape.op(qc, kc, width=width, itemsize=itemsize, saved=[qc.buffer, kc.buffer])
    tape.drop(qc, kc)
    named = [tape.hold(scores)] if spec.form == "bloom" else []  # to the end of its function
    if spec.form not in ("bloom", "falcon"):
        unscaled, scores = scores, tape.op(scores, width=width, itemsize=itemsize)
        tape.drop(unscaled)
    if spec.logit_softcap:  # / cap, tanh (saves its output), * cap
        divided = tape.op(scores, width=width, itemsize=itemsize)
        tape.drop(scores)
        capped = tape.op(divided, width=width, itemsize=itemsize)
        tape.save_output(capped)
        tape.drop(divided)
        scores = tape.op(capped, width=width, itemsize=itemsize)
        tape.drop(capped)
    masked = tape.op(scores, width=width, itemsize=max(itemsize, regime.mask), passes=[scores])
    tape.drop(scores)
    if named:
        named.append(tape.hold(masked))
    # One statement, softmax(scores).to(dtype), takes their name
    renamed = [tape.hold(masked)] if spec.form == "usual" and spec.softmax == "fp32" else []
    if spec.sinks:
        probabilities = _with_sinks(scope, masked, spec)
    elif spec.softmax == "fp32" or regime.autocast:  # which widens it
        probabilities = _fp32_softmax(scope, masked)
    else:
        probabilities = _softmax(scope, masked, masked.itemsize)
        tape.drop(masked)
    weights = tape.hold(probabilities) if spec.softmax == "own" else tape.cast(probabilities, q.itemsize)
    tape.drop(probabilities, *renamed)
    weights = _dropped_out(scope, weights, spec)
    (tape.named if spec.form == "usual" else tape.returned).append(tape.hold(weights))
    wc = cast_for_matmul(scope, weights)
    out = tape.op(wc, vc, width=_out_width(spec), itemsize=wc.itemsize, saved=[wc.buffer, vc.buffer])
    tape.drop(wc, weights, vc, kr, vr, *named)
    return _contiguous(scope, out)


def _fp32_softmax(scope: Scope, scores: Tensor) -> Tensor:
    """Drops the scores, which the caller names to the end. Only Half has a kernel that gives floats (SoftMax.cpp): bf16
    is cast first."""
    tape = scope.tape
    wide = tape.cast(scores, FP32) if scope.regime.compute_dtype != "fp16" else tape.hold(scores)
    out = _softmax(scope, wide, FP32)
    tape.drop(wide, scores)
    return out


def _with_sinks(scope: Scope, scores: Tensor, spec: Attention) -> Tensor:
    """gpt-oss: a column of sinks behind the scores, the row's maximum taken off, softmax in the scores' own dtype; the
    column is left out by a view. Drops the scores."""
    tape, width, itemsize = scope.tape, spec.num_heads * (scope.keys + 1.0), scores.itemsize
    combined = tape.op(scores, width=width, itemsize=itemsize, passes=[scores])
    tape.drop(scores)
    highest = tape.op(combined, width=spec.num_heads, itemsize=itemsize)
    shifted = tape.op(
        combined, highest, width=width, itemsize=itemsize, passes=[combined], scratch=(width * itemsize, 0.0)
    )
    tape.drop(combined, highest)
    probabilities = _softmax(scope, shifted, itemsize)
    tape.drop(shifted)
    kept = narrow(scope, probabilities, spec.num_heads * scope.keys)
    tape.drop(probabilities)
    return kept

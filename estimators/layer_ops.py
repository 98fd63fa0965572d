"""The operations of a transformer layer as Hugging Face's eager code runs them, on a tape.

Each function mirrors one module's forward: what it allocates, what its autograd nodes save, what their backward takes.
Sources: torch 2.13 (derivatives.yaml, native kernels), transformers 5.23 (models/llama, integrations/sdpa_attention),
bitsandbytes 0.50.2 (nn/modules.py, autograd/_functions.py). PEFT's layers are in adapters.py.
"""

from dataclasses import dataclass, field
from typing import TypedDict

from estimators.regime import Regime
from estimators.tape import NO_BYTES, Buffer, Line, Summed, Tape, Tensor
from estimators.weights import is_quantized
from profiles.model import Linear, Norm

FP32 = 4
INT8 = 1
FP16 = 2
BNB_BLOCK = 64  # bitsandbytes' blocksize of 4-bit weights: one absmax (fp32) each
PARAMETER = Buffer(0.0, 0.0)  # a frozen weight that a product saves: no bytes of its own, but backward reads it


@dataclass(slots=True)
class Scope:
    """What the operations of one layer need to know. `ranks`: adapters' sizes by linear name; `seq_len` for s x s
    tensors; `trained_norms` by name."""

    tape: Tape
    regime: Regime
    seq_len: int
    ranks: dict[str, int] = field(default_factory=dict)
    dropout: bool = False
    adapter: str = "lora"  # a key of estimators/adapters.py
    trains_weights: bool = False
    trains_biases: bool = False
    trained_norms: frozenset[str] = frozenset()
    prefix_tokens: int = 0
    accumulates: bool = False

    @property
    def keys(self) -> int:
        """Keys that a query meets: a prefix stands in front of the sequence's own."""
        return self.seq_len + self.prefix_tokens

    @property
    def matmul(self) -> int:
        """Bytes of a matmul's output when its input is of `residual` size."""
        return self.regime.compute if self.regime.autocast else self.regime.residual


def _read_at_once(lin: Linear) -> int:
    """Weights of one product: fused experts are one tensor, and all of them take part."""
    return lin.weight_parameters if lin.kind == "parameter" else lin.in_features * lin.out_features


def base_linear(scope: Scope, x: Tensor, lin: Linear, tokens: float = 1.0) -> Tensor:
    """A (possibly quantised) linear without what a method puts around it."""
    return (_linear_bnb if is_quantized(lin, scope.regime) else _linear_plain)(scope, x, lin, tokens)


class _WeightGradient(TypedDict):
    weight_grad: float
    scratch: Line


NO_GRADIENT: _WeightGradient = {"weight_grad": 0.0, "scratch": NO_BYTES}


def weight_gradient(scope: Scope, n_bytes: float, half_copy: float) -> _WeightGradient:
    """A parameter's gradient stays; under accumulation it is added to the one that is there, and freed."""
    if scope.accumulates:
        n_bytes, half_copy = 0.0, n_bytes + half_copy
    return {"weight_grad": n_bytes, "scratch": (0.0, half_copy) if half_copy else NO_BYTES}


def cast_for_matmul(scope: Scope, x: Tensor) -> Tensor:
    """Autocast casts an input that is not of the compute dtype; each call makes its own copy."""
    return scope.tape.cast(x, scope.regime.compute) if scope.regime.autocast else scope.tape.hold(x)


def _bias_sum(scope: Scope, lin: Linear, tokens: float) -> Summed | None:
    return (tokens, lin.out_features) if lin.bias and (scope.trains_weights or scope.trains_biases) else None


def _linear_plain(scope: Scope, x: Tensor, lin: Linear, tokens: float) -> Tensor:
    tape, regime = scope.tape, scope.regime
    weight = _read_at_once(lin)
    stored = regime.base
    gradient = weight_gradient(scope, stored * weight if scope.trains_weights else 0.0, 0.0)
    xc = cast_for_matmul(scope, x)
    inputs, saved = [xc], [xc.buffer] if scope.trains_weights else [PARAMETER]
    if regime.autocast and stored > regime.compute:  # an fp32 weight: its half copy is what mm reads and saves
        own = gradient if scope.trains_weights else NO_GRADIENT
        copy = tape.op(width=0.0, fixed=weight, itemsize=regime.compute, trains=scope.trains_weights, **own)
        gradient = NO_GRADIENT
        inputs.append(copy)
        saved.append(copy.buffer)
    y = tape.op(
        *inputs,
        width=lin.out_features * tokens,
        itemsize=regime.compute if regime.autocast else xc.itemsize,
        saved=saved,
        trains=scope.trains_weights or (scope.trains_biases and lin.bias),
        summed=_bias_sum(scope, lin, tokens),
        **gradient,
    )
    tape.drop(*inputs)
    return y


def dequantized(scope: Scope, weight: float) -> list[Line]:
    """A 4-bit weight in the compute dtype, and its absmax in fp32 where that is quantised too."""
    absmax = [(0.0, FP32 * weight / BNB_BLOCK)] if scope.regime.nested else []
    return [*absmax, (0.0, scope.regime.compute * weight)]


def _linear_bnb(scope: Scope, x: Tensor, lin: Linear, tokens: float) -> Tensor:
    """Linear4bit / Linear8bitLt: dequantise (or quantise the input), multiply, return in the input's dtype."""
    tape, regime = scope.tape, scope.regime
    weight = _read_at_once(lin)
    if regime.quantized == 4:
        xc = tape.cast(x, regime.compute)
        dense = dequantized(scope, weight)
        tape.scratch(*dense)
        y = tape.op(
            xc,
            width=lin.out_features * tokens,
            itemsize=regime.compute,
            pieces=dense,
            summed=_bias_sum(scope, lin, tokens),
        )
        tape.drop(xc)
        out = tape.cast(y, x.itemsize)
        tape.drop(y)
        return out
    # int8_vectorwise_quant (backends/cuda/ops.py) makes |x| in fp16, and what of it is above the threshold; the input
    # is kept as it came; backward dequantises CB into the input's dtype (copy, then in place)
    half = 0 if regime.compute_dtype == "fp16" and x.itemsize == regime.compute else FP16
    codes = tape.alloc(x.width * INT8)
    tape.scratch((x.width * half, 0.0), (x.width * FP16, 0.0), (x.width * INT8, 0.0))  # what is quantised, outliers
    y = tape.op(
        x,
        width=lin.out_features * tokens,
        itemsize=x.itemsize,
        saved=[x.buffer],
        scratch=(0.0, x.itemsize * weight),
        summed=_bias_sum(scope, lin, tokens),
    )
    tape.release(codes)
    if y.requires_grad and (not regime.checkpointing or tape.records == regime.reentrant):  # ctx.tensors: of the run
        tape.keep(x.buffer)  # that leaves a graph
    return y


def add(scope: Scope, x: Tensor, y: Tensor) -> Tensor:
    """x + y: promoted to the wider dtype; a gradient passes as it is to inputs of that dtype."""
    itemsize = max(x.itemsize, y.itemsize)
    return scope.tape.op(x, y, width=x.width, itemsize=itemsize, passes=[t for t in (x, y) if t.itemsize == itemsize])


def residual_add(scope: Scope, x: Tensor, y: Tensor) -> Tensor:
    """residual + y, both dropped."""
    out = add(scope, x, y)
    scope.tape.drop(x, y)
    return out


def norm(scope: Scope, x: Tensor, spec: Norm, *, trained: bool) -> Tensor:
    """RMSNorm as transformers writes it in Python, or LayerNorm. `x` stays with the caller."""
    if spec.kind == "layernorm" and not spec.wide:
        return _layer_norm(scope, x, spec, trained)
    if "norm" in scope.regime.fused_ops and spec.kind == "rmsnorm":
        kept = scope.regime.base * spec.size if trained and not scope.accumulates else 0.0
        return fused_norm(scope, x, in_place=scope.regime.norms_in_place, weight_grad=kept, trains=trained)
    x32 = scope.tape.cast(x, FP32)
    scaled = (_centered if spec.kind == "layernorm" else _normalized)(scope, x32, spec)
    if spec.wide:  # weight * x, then .to(x.dtype)
        out = _weighted(scope, scaled, spec, trained)
        scope.tape.drop(scaled)
        y = scope.tape.cast(out, x.itemsize)
        scope.tape.drop(out)
        return y
    y = scope.tape.cast(scaled, x.itemsize)
    scope.tape.drop(scaled)
    out = _weighted(scope, y, spec, trained)
    scope.tape.drop(y)
    return out


def fused_norm(scope: Scope, x: Tensor, *, in_place: bool, weight_grad: float = 0.0, trains: bool = False) -> Tensor:
    """One kernel, of Liger or Unsloth: keeps x and a statistic a row; `in_place`: writes its gradient over the incoming
    one. x stays with the caller."""
    statistic = scope.tape.alloc(FP32)
    y = scope.tape.op(
        x,
        width=x.width,
        itemsize=x.itemsize,
        saved=[x.buffer, statistic],
        passes=[x] if in_place else [],
        weight_grad=weight_grad,
        trains=trains,
    )
    scope.tape.release(statistic)
    return y


def _weighted(scope: Scope, x: Tensor, spec: Norm, trained: bool) -> Tensor:
    return scope.tape.op(
        x,
        width=x.width,
        itemsize=max(x.itemsize, scope.regime.base),
        saved=[x.buffer] if trained else [PARAMETER],
        trains=trained,
        scratch=(x.itemsize * x.width if trained else 0.0, 0.0),
        weight_grad=scope.regime.base * spec.size if trained and not scope.accumulates else 0.0,
        summed=(x.width / spec.size, spec.size) if trained else None,
    )


def _normalized(scope: Scope, x32: Tensor, spec: Norm) -> Tensor:
    """x * rsqrt(mean(x ** 2) + eps), x dropped."""
    tape = scope.tape
    inverse = _inverse_root_mean_square(scope, x32, spec)
    scaled = tape.op(
        x32,
        inverse,
        width=x32.width,
        itemsize=FP32,
        saved=[x32.buffer, inverse.buffer],
        scratch=(FP32 * x32.width, 0.0),
    )
    tape.drop(x32, inverse)
    return scaled


def _centered(scope: Scope, x32: Tensor, spec: Norm) -> Tensor:
    """Cohere's LayerNorm: (x - mean) * rsqrt(mean((x - mean) ** 2) + eps), each difference a tensor of its own."""
    tape = scope.tape
    mean = tape.op(x32, width=1.0, itemsize=FP32)

    def difference() -> Tensor:
        return tape.op(x32, mean, width=x32.width, itemsize=FP32, passes=[x32], scratch=(FP32 * x32.width, 0.0))

    first = difference()
    inverse = _inverse_root_mean_square(scope, first, spec)
    tape.drop(first)
    second = difference()
    tape.drop(x32, mean)
    scaled = tape.op(
        second,
        inverse,
        width=second.width,
        itemsize=FP32,
        saved=[second.buffer, inverse.buffer],
        scratch=(FP32 * second.width, 0.0),
    )
    tape.drop(second, inverse)
    return scaled


def _inverse_root_mean_square(scope: Scope, x32: Tensor, spec: Norm) -> Tensor:
    tape = scope.tape
    heads = x32.width / spec.size if spec.per_head else 1.0
    wide = (FP32 * x32.width, 0.0)
    squared = tape.op(x32, width=x32.width, itemsize=FP32, saved=[x32.buffer], pieces=[wide, wide])
    mean = tape.op(squared, width=heads, itemsize=FP32)
    tape.drop(squared)
    inverse = tape.op(mean, width=heads, itemsize=FP32)
    tape.drop(mean)
    return inverse


def _layer_norm(scope: Scope, x: Tensor, spec: Norm, trained: bool) -> Tensor:
    """native_layer_norm; autocast runs it in fp32, output included."""
    tape = scope.tape
    xin = tape.cast(x, FP32) if scope.regime.autocast else tape.hold(x)
    stats = tape.alloc(2.0 * FP32)
    y = tape.op(
        xin,
        width=x.width,
        itemsize=xin.itemsize,
        saved=[xin.buffer, stats],
        trains=trained,
        weight_grad=2.0 * scope.regime.base * spec.size if trained and not scope.accumulates else 0.0,
    )
    tape.release(stats)
    tape.drop(xin)
    return y


def dropout(scope: Scope, x: Tensor) -> Tensor:
    """native_dropout: a new tensor and a mask of one byte an element, which is all it saves. `x` stays."""
    mask = scope.tape.alloc(x.width)
    y = scope.tape.op(x, width=x.width, itemsize=x.itemsize, saved=[mask])
    scope.tape.release(mask)
    return y


def narrow(scope: Scope, x: Tensor, width: float) -> Tensor:
    """A view of some of x's columns; its gradient is written into a zeroed tensor of x's width."""
    part = Tensor(scope.tape.hold(x).buffer, width, x.itemsize, False)
    if not x.requires_grad:
        return part
    view = scope.tape.op(x, width=0.0, itemsize=x.itemsize)
    view.width, view.buffer = width, part.buffer
    return view


def rotary(scope: Scope, x: Tensor, share: float = 1.0) -> Tensor:
    """x * cos + rotate_half(x) * sin; cos and sin are shared by all layers and have the residual's dtype. Of a part of
    each head (`share`) the rest is put back behind it."""
    tape = scope.tape
    if "rotary" in scope.regime.fused_ops:
        return tape.hold(x)  # one kernel turns it where it lies, and its gradient
    if share < 1:
        part, rest = narrow(scope, x, share * x.width), narrow(scope, x, (1 - share) * x.width)
        turned = rotary(scope, part)
        tape.drop(part)
        whole = tape.op(turned, rest, width=x.width, itemsize=turned.itemsize, passes=[turned, rest])
        tape.drop(turned, rest)
        return whole
    itemsize = max(x.itemsize, scope.regime.residual)
    first = tape.op(x, width=x.width, itemsize=itemsize)
    half = tape.op(x, width=x.width, itemsize=x.itemsize, scratch=(x.width * x.itemsize, 0.0))
    second = tape.op(half, width=x.width, itemsize=itemsize)
    tape.drop(half)
    out = add(scope, first, second)
    tape.drop(first, second)
    return out


def activation(scope: Scope, x: Tensor, name: str) -> Tensor:
    """A pointwise activation: one kernel that saves its input (relu its output), or a GELU written out in Python."""
    written_out = {"gelu_new": _gelu_new, "gelu_fast": _gelu_fast, "quick_gelu": _quick_gelu, "bloom_gelu": _bloom_gelu}
    if name in written_out:
        return written_out[name](scope, x)
    out = scope.tape.op(x, width=x.width, itemsize=x.itemsize, saved=() if name == "relu" else [x.buffer])
    if name == "relu":
        scope.tape.save_output(out)
    return out


def fused_gate(scope: Scope, gate: Tensor, up: Tensor) -> Tensor:
    """Liger's act(gate) * up: keeps both, writes both gradients over them. Drops both."""
    saved = [gate.buffer, up.buffer]
    out = scope.tape.op(gate, up, width=up.width, itemsize=up.itemsize, saved=saved, over_inputs=True)
    scope.tape.drop(gate, up)
    return out


def contiguous(scope: Scope, x: Tensor) -> Tensor:
    """A copy of a slice that a kernel's wrapper makes outside of the graph. Drops x."""
    y = scope.tape.op(x, width=x.width, itemsize=x.itemsize, passes=[x])
    scope.tape.drop(x)
    return y


def _scaled(scope: Scope, x: Tensor) -> Tensor:
    """x times a number: a new tensor that saves nothing."""
    return scope.tape.op(x, width=x.width, itemsize=x.itemsize)


def _gelu_new(scope: Scope, x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(c (x + 0.044715 x^3))) (transformers activations.py). Autocast takes powers in fp32, and what
    follows stays so; backward of a power makes the smaller power and its multiple."""
    tape = scope.tape
    half = _scaled(scope, x)
    base = tape.cast(x, FP32) if scope.regime.autocast else tape.hold(x)
    power = (base.itemsize * x.width, 0.0)
    cube = tape.op(base, width=x.width, itemsize=base.itemsize, saved=[base.buffer], pieces=[power, power])
    tape.drop(base)
    scaled = _scaled(scope, cube)
    tape.drop(cube)
    total = add(scope, x, scaled)
    tape.drop(scaled)
    return _times_one_plus_tanh(scope, half, total)


def _gelu_fast(scope: Scope, x: Tensor) -> Tensor:
    """0.5 x (1 + tanh(c x (1 + 0.044715 x x)))."""
    tape = scope.tape
    half, left, scaled = _scaled(scope, x), _scaled(scope, x), _scaled(scope, x)
    square = multiply(scope, scaled, tape.hold(x))
    raised = tape.op(square, width=x.width, itemsize=x.itemsize, passes=[square])
    tape.drop(square)
    return _times_one_plus_tanh(scope, half, multiply(scope, left, raised), scaled=False)


def _times_one_plus_tanh(scope: Scope, half: Tensor, x: Tensor, *, scaled: bool = True) -> Tensor:
    """half (1 + tanh(c x)); both dropped."""
    tape = scope.tape
    inner = _scaled(scope, x) if scaled else tape.hold(x)
    tape.drop(x)
    tanh = tape.op(inner, width=inner.width, itemsize=inner.itemsize)
    tape.save_output(tanh)
    tape.drop(inner)
    raised = tape.op(tanh, width=tanh.width, itemsize=tanh.itemsize, passes=[tanh])
    tape.drop(tanh)
    return multiply(scope, half, raised)


def _quick_gelu(scope: Scope, x: Tensor) -> Tensor:
    """x sigmoid(1.702 x)."""
    tape = scope.tape
    scaled = _scaled(scope, x)
    gate = tape.op(scaled, width=x.width, itemsize=x.itemsize)
    tape.save_output(gate)
    tape.drop(scaled)
    return multiply(scope, tape.hold(x), gate)


def _bloom_gelu(scope: Scope, x: Tensor) -> Tensor:
    """Bloom's own function (models/bloom): keeps x alone; its expressions take three tensors beside the result in
    forward, and five beside the incoming gradient on the way back."""
    size = x.itemsize * x.width
    made = [(size, 0.0)] * 4
    scope.tape.scratch(*made)
    return scope.tape.op(x, width=x.width, itemsize=x.itemsize, saved=[x.buffer], pieces=made)


def multiply(scope: Scope, x: Tensor, y: Tensor, width: float | None = None) -> Tensor:
    """x * y, both saved; both dropped. `width`: the wider one's, where they differ. The narrower factor's gradient is
    made in the product's dtype, then cast."""
    itemsize = max(x.itemsize, y.itemsize)
    out = scope.tape.op(
        x,
        y,
        width=x.width if width is None else width,
        itemsize=itemsize,
        saved=[x.buffer, y.buffer],
        pieces=[(t.width * (itemsize - t.itemsize), 0.0) for t in (x, y) if t.requires_grad and itemsize > t.itemsize],
    )
    scope.tape.drop(x, y)
    return out

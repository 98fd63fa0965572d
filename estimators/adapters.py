"""PEFT's layers around a linear, on a tape: what each adapter's forward allocates, saves and casts.

Sources: peft 0.21.2, tuners/<name>/layer.py (and lora/bnb.py, lora/dora.py, adalora/bnb.py), read line by line. Every
function takes the linear's input, which stays with the caller, and returns what the wrapped module returns.
"""

from collections.abc import Callable

from estimators.layer_ops import (
    FP32,
    PARAMETER,
    Scope,
    add,
    base_linear,
    cast_for_matmul,
    dequantized,
    dropout,
    weight_gradient,
)
from estimators.tape import Buffer, Tensor
from estimators.weights import is_quantized
from profiles.model import Linear

Adapter = Callable[[Scope, Tensor, Linear, int, float], Tensor]


def linear(scope: Scope, x: Tensor, lin: Linear, *, tokens: float = 1.0) -> Tensor:
    """A (possibly quantised, possibly adapted) linear. `tokens`: rows per token (experts see a token several times)."""
    size = scope.ranks.get(lin.name, 0)
    if not size:
        return base_linear(scope, x, lin, tokens)
    return ADAPTERS[scope.adapter](scope, x, lin, size, tokens)


def _lora(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """result + B(A(dropout(x))) * scaling, with PEFT's casts."""
    tape, regime = scope.tape, scope.regime
    base = base_linear(scope, x, lin, tokens)
    result_itemsize = base.itemsize
    bnb = is_quantized(lin, regime)
    base = _cloned(scope, base, lin)
    xa = tape.hold(x) if bnb and regime.autocast else tape.cast(x, regime.adapter)
    s = _low_rank(scope, xa, lin, rank, tokens)
    if bnb and not regime.autocast:
        s = _cast_away(scope, s, result_itemsize)
    total = add(scope, base, s)
    tape.drop(base, s)
    tape.drop(xa)
    return total if bnb else _cast_away(scope, total, result_itemsize)


def _low_rank(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """B(A(dropout(x))) * scaling."""
    tape = scope.tape
    d = _dropout(scope, x)
    a = _small_linear(scope, d, lin.in_features, rank, tokens)
    tape.drop(d)
    b = _small_linear(scope, a, rank, lin.out_features, tokens)
    tape.drop(a)
    s = tape.op(b, width=b.width, itemsize=b.itemsize)
    tape.drop(b)
    return s


def _cloned(scope: Scope, base: Tensor, lin: Linear) -> Tensor:
    """A defensive copy of a 4-bit base's result (tuners/lora/bnb.py)."""
    if not is_quantized(lin, scope.regime) or scope.regime.quantized != 4:
        return base
    clone = scope.tape.op(base, width=base.width, itemsize=base.itemsize, passes=[base])
    scope.tape.drop(base)
    return clone


def _cast_away(scope: Scope, x: Tensor, itemsize: int) -> Tensor:
    """x.to(dtype), x dropped."""
    y = scope.tape.cast(x, itemsize)
    scope.tape.drop(x)
    return y


def _dropout(scope: Scope, x: Tensor) -> Tensor:
    """The adapter's dropout, where it has one."""
    return dropout(scope, x) if scope.dropout else scope.tape.hold(x)


def _half_copy(scope: Scope, weight: float) -> Buffer | None:
    """Autocast's copy of an adapter's weight, where that is wider than the compute dtype."""
    regime = scope.regime
    if regime.autocast and regime.adapter > regime.compute:
        return scope.tape.alloc(0.0, regime.compute * weight)
    return None


def _small_linear(scope: Scope, x: Tensor, n_in: int, n_out: int, tokens: float) -> Tensor:
    """lora_A or lora_B: trained, so its input is saved; under autocast in the compute dtype, weight copy included."""
    tape, regime = scope.tape, scope.regime
    xc = cast_for_matmul(scope, x)
    saved = [xc.buffer]
    weight = n_in * n_out
    copy = _half_copy(scope, weight)
    if copy is not None:
        saved.append(copy)
    y = tape.op(
        xc,
        width=n_out * tokens,
        itemsize=xc.itemsize,
        saved=saved,
        trains=True,
        **weight_gradient(scope, regime.adapter * weight, xc.itemsize * weight if regime.autocast else 0.0),
    )
    tape.drop(xc)
    if copy is not None:
        tape.release(copy)
    return y


def _times_vector(scope: Scope, x: Tensor, length: float, itemsize: int | None = None, *, kept: bool = True) -> Tensor:
    """x * v for a trained vector v of `length` (of `itemsize` bytes, else the adapter's): the wider dtype; x is saved
    for v. kept: its gradient is the parameter's own.

    Backward makes both products in full; then v's is summed, and x's is cast to x's dtype.
    """
    itemsize = itemsize or scope.regime.adapter
    wide = max(x.itemsize, itemsize)
    own = x.itemsize if x.requires_grad else 0
    return scope.tape.op(
        x,
        width=x.width,
        itemsize=wide,
        saved=[x.buffer],
        trains=True,
        pieces=[((wide - own) * x.width, 0.0), *([(float(wide * x.width), 0.0)] if own else [])],
        weight_grad=itemsize * length if kept and not scope.accumulates else 0.0,
        summed=(x.width / length, length),
    )


def _svd(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """AdaLoRA: result += (dropout(x) @ (A * E).T @ B.T) * scaling / ranknum. A * E, or autocast's copy of it, is kept
    where x needs a gradient.

    ranknum has one element and a dimension: dividing promotes to its dtype. PEFT makes it trainable by accident when it
    moves it to the card (ParameterDict wraps what `.to` returns), so that the product is saved.
    """
    tape, regime = scope.tape, scope.regime
    base = base_linear(scope, x, lin, tokens)
    bnb = is_quantized(lin, regime)
    eight_bit = bnb and regime.quantized == 8
    base = _cloned(scope, base, lin)
    xa = tape.hold(x) if bnb and regime.autocast else tape.cast(x, FP32 if eight_bit else regime.adapter)
    copied = regime.autocast and regime.adapter > regime.compute  # counted with A's
    product = tape.alloc(0.0, 0.0 if copied else float(regime.adapter * rank * lin.in_features))
    s = _low_rank(scope, xa, lin, rank, tokens)
    if bnb and not regime.autocast:
        s = _cast_away(scope, s, base.itemsize)
    wide = max(s.itemsize, regime.adapter)
    scaled = tape.op(s, width=s.width, itemsize=s.itemsize, saved=[product] if x.requires_grad else ())
    tape.release(product)
    scratch = (s.width * (4 * wide - s.itemsize), 0.0)
    q = tape.op(scaled, width=s.width, itemsize=wide, saved=[scaled.buffer], scratch=scratch)
    tape.drop(s, scaled)
    if eight_bit:
        out = add(scope, base, q)
    else:  # in place: no new storage
        same = [t for t in (base, q) if t.itemsize == base.itemsize]
        out = tape.op(base, q, width=0.0, itemsize=base.itemsize, passes=same)
        out.width, out.buffer = base.width, tape.hold(base).buffer
    tape.drop(q, base, xa)
    return out


def _dora(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """result + (m/|W + BA| - 1) * result + m/|W + BA| * B(A(x)) * scaling; |W + BA| is made anew in each forward.

    With dropout the base's product is made once more from the dropped-out input, with a copy of the weight.
    """
    tape, regime = scope.tape, scope.regime
    base = base_linear(scope, x, lin, tokens)
    result_itemsize = base.itemsize
    bnb = is_quantized(lin, regime)
    base = _cloned(scope, base, lin)
    xa = tape.hold(x) if bnb and regime.autocast else tape.cast(x, regime.adapter)
    d = _dropout(scope, xa)
    weight = _weight_norm(scope, d, lin, rank)
    a = _small_linear(scope, d, lin.in_features, rank, tokens)
    b = _small_linear(scope, a, rank, lin.out_features, tokens)
    tape.drop(a)
    product = tape.hold(base)
    if scope.dropout:
        tape.drop(product)
        product = _second_product(scope, d, lin, weight[0], tokens)
    elif lin.bias:
        unbiased = tape.op(product, width=product.width, itemsize=product.itemsize, passes=[product])
        tape.drop(product)
        product = unbiased
    magnitude = FP32 if bnb else regime.adapter  # TRL leaves it when it casts the adapters of a quantised base
    first = _times_vector(scope, product, lin.out_features, magnitude, kept=False)
    second = _times_vector(scope, b, lin.out_features, magnitude)
    scaled = tape.op(second, width=second.width, itemsize=second.itemsize)
    tape.drop(second, product, b)
    extra = add(scope, first, scaled)
    tape.drop(first, scaled)
    for buffer in weight:
        tape.release(buffer)
    tape.drop(d)
    total = add(scope, base, extra)
    tape.drop(base, extra, xa)
    return total if bnb and regime.autocast else _cast_away(scope, total, result_itemsize)


def _weight_norm(scope: Scope, x: Tensor, lin: Linear, rank: int) -> list[Buffer]:
    """DoraLinearLayer: B(A(eye)).T, the weight in x's dtype, their sum and its norm. Returns what lives until the
    adapter's end: the weight, the product with the graph that it drags along (the identity it was made from)."""
    tape, regime = scope.tape, scope.regime
    n_in, n_out = lin.in_features, lin.out_features
    weight = n_in * n_out
    made = regime.compute if regime.autocast else regime.adapter
    eye = tape.alloc(0.0, regime.adapter * n_in * n_in)
    held = eye
    if made != regime.adapter:
        held = tape.alloc(0.0, made * n_in * n_in)
    low = tape.alloc(0.0, made * n_in * rank)
    delta = tape.alloc(0.0, made * weight)
    if held is not eye:
        tape.release(eye)
    if made != x.itemsize:
        cast = tape.alloc(0.0, x.itemsize * weight)
        tape.release(delta)
        delta = cast
    kept = [held, low, delta]
    if is_quantized(lin, regime):
        tape.scratch(*dequantized(scope, weight))
        kept.insert(0, tape.alloc(0.0, x.itemsize * weight))
    elif regime.base != x.itemsize:
        kept.insert(0, tape.alloc(0.0, x.itemsize * weight))
    else:
        kept.insert(0, tape.alloc(0.0))
    tape.scratch(*[(0.0, float(x.itemsize * weight))] * 2)  # scaling * delta, and the sum
    return kept


def _second_product(scope: Scope, x: Tensor, lin: Linear, weight: Buffer, tokens: float) -> Tensor:
    """F.linear(dropout(x), weight): the weight's copy (autocast: a half copy of that) is kept for backward."""
    tape = scope.tape
    xc = cast_for_matmul(scope, x)
    copy = weight
    if xc.itemsize != x.itemsize:
        copy = tape.alloc(0.0, xc.itemsize * lin.in_features * lin.out_features)
    y = tape.op(xc, width=lin.out_features * tokens, itemsize=xc.itemsize, saved=[copy])
    if copy is not weight:
        tape.release(copy)
    tape.drop(xc)
    return y


def _ia3(scope: Scope, x: Tensor, lin: Linear, size: int, tokens: float) -> Tensor:
    """(IA)3: a trained vector on the output, of the MLP's last linear on the input; fp32 within, cast back."""
    tape, regime = scope.tape, scope.regime
    bnb = is_quantized(lin, regime)
    xa = tape.cast(x, FP32) if bnb and not regime.autocast else tape.hold(x)
    if lin.role == "down":
        wide = _cast_away(scope, xa, xa.itemsize if bnb else regime.adapter)
        scaled = _times_vector(scope, wide, lin.in_features)
        tape.drop(wide)
        if not bnb:
            scaled = _cast_away(scope, scaled, x.itemsize)
        out = base_linear(scope, scaled, lin, tokens)
        tape.drop(scaled)
        return out
    base = base_linear(scope, xa, lin, tokens)
    tape.drop(xa)
    scaled = _times_vector(scope, base, lin.out_features)
    result_itemsize = base.itemsize
    tape.drop(base)
    return scaled if bnb and regime.autocast else _cast_away(scope, scaled, result_itemsize)


COMPLEX = 8  # bytes of a complex64
NEUMANN_TERMS = 5  # tuners/oft/config.py num_cayley_neumann_terms


def _oft(scope: Scope, x: Tensor, lin: Linear, block: int, tokens: float) -> Tensor:
    """OFT: the input, in blocks, times orthogonal matrices; then the base. All steps' inputs live until it returns."""
    tape, regime = scope.tape, scope.regime
    xa = tape.cast(x, regime.adapter)
    rotation = _cayley(scope, lin, block)
    xc, rc = cast_for_matmul(scope, xa), cast_for_matmul(scope, rotation)
    turned = tape.op(xc, rc, width=xc.width, itemsize=xc.itemsize, saved=[xc.buffer, rc.buffer])
    tape.drop(xc, rc)
    flat = tape.op(turned, width=turned.width, itemsize=turned.itemsize, passes=[turned])
    wide = tape.cast(flat, regime.adapter)
    tape.drop(turned, flat, rotation, xa)
    back = tape.cast(wide, x.itemsize)
    out = base_linear(scope, back, lin, tokens)
    tape.drop(back, wide)
    return _cast_away(scope, out, x.itemsize)


def _cayley(scope: Scope, lin: Linear, block: int) -> Tensor:
    """1 + 2 Q + 2 Q^2 ... of the blocks' skew matrices Q: products keep their factors, autocast a copy of each."""
    tape, regime = scope.tape, scope.regime
    matrices = float(lin.in_features * block)
    elements = lin.in_features * (block - 1) / 2
    filled = tape.op(
        width=0.0, fixed=matrices, itemsize=regime.adapter, trains=True,
        **weight_gradient(scope, regime.adapter * elements, 0.0),
    )  # fmt: skip
    skew = tape.op(filled, width=0.0, fixed=matrices, itemsize=regime.adapter)
    tape.drop(filled)
    terms = [tape.hold(skew)]
    power = tape.hold(skew)
    for _ in range(NEUMANN_TERMS - 2):
        left, right = cast_for_matmul(scope, power), cast_for_matmul(scope, skew)
        tape.drop(power)
        power = tape.op(
            left, right, width=0.0, fixed=matrices, itemsize=left.itemsize, saved=[left.buffer, right.buffer]
        )
        tape.drop(left, right)
        terms.append(tape.hold(power))
    tape.drop(power)
    rotation = tape.op(*terms, width=0.0, fixed=matrices, itemsize=regime.adapter, passes=terms)
    tape.drop(skew, *terms)
    return rotation


def _add_dense(scope: Scope, x: Tensor, lin: Linear, tokens: float, delta: Callable[[], Tensor]) -> Tensor:
    """base(x) + F.linear(x, delta W), delta W made in each forward and kept for backward."""
    tape = scope.tape
    base = base_linear(scope, x, lin, tokens)
    update = delta()
    xa = tape.cast(x, update.itemsize)
    xc, wc = cast_for_matmul(scope, xa), cast_for_matmul(scope, update)
    y = tape.op(
        xc, wc, width=lin.out_features * tokens, itemsize=xc.itemsize, saved=[xc.buffer, wc.buffer],
    )  # fmt: skip
    tape.drop(xc, wc, xa, update)
    total = add(scope, base, y)
    tape.drop(base, y)
    return _cast_away(scope, total, x.itemsize)


def _loha(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """LoHa: delta W = (A1 B1) * (A2 B2) * scale, by a function that keeps only the factors."""
    tape, regime = scope.tape, scope.regime
    made = regime.compute if regime.autocast else regime.adapter
    weight = float(lin.in_features * lin.out_features)
    left = 2.0 * regime.adapter * rank * (lin.in_features + lin.out_features)

    def delta() -> Tensor:
        tape.scratch(*[(0.0, made * weight)] * 3)
        return tape.op(
            width=0.0, fixed=weight, itemsize=made, trains=True,
            **weight_gradient(scope, left, (made + 3 * regime.adapter) * weight - left),
        )  # fmt: skip

    return _add_dense(scope, x, lin, tokens, delta)


def _lokr(scope: Scope, x: Tensor, lin: Linear, size: int, tokens: float) -> Tensor:
    """LoKr: delta W = kron(W1, W2) * scale. Of the product's gradient both factors' are made in full, then summed."""
    tape, regime = scope.tape, scope.regime
    weight = float(lin.in_features * lin.out_features)

    def delta() -> Tensor:
        product = tape.op(
            width=0.0, fixed=weight, itemsize=regime.adapter, trains=True, saved=[PARAMETER],
            **weight_gradient(scope, 0.0, 2.0 * regime.adapter * weight),
        )  # fmt: skip
        scaled = tape.op(product, width=0.0, fixed=weight, itemsize=regime.adapter)
        tape.drop(product)
        return scaled

    return _add_dense(scope, x, lin, tokens, delta)


def _fourierft(scope: Scope, x: Tensor, lin: Linear, size: int, tokens: float) -> Tensor:
    """FourierFT: delta W = Re(ifft2(spectrum)) * scaling in fp32, then as the spectrum; the transform takes and gives
    complex numbers."""
    tape, regime = scope.tape, scope.regime
    weight = float(lin.in_features * lin.out_features)

    def delta() -> Tensor:
        spectrum = tape.alloc(0.0, FP32 * weight)
        tape.scratch(*[(0.0, COMPLEX * weight)] * 2)
        waves = tape.op(
            width=0.0, fixed=weight, itemsize=COMPLEX, trains=True,
            **weight_gradient(scope, float(regime.adapter * size), (COMPLEX + FP32) * weight),
        )  # fmt: skip
        scaled = tape.op(waves, width=0.0, fixed=weight, itemsize=FP32)
        tape.drop(waves)
        tape.release(spectrum)
        update = tape.cast(scaled, regime.adapter)
        tape.drop(scaled)
        return update

    return _add_dense(scope, x, lin, tokens, delta)


def _vera(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """VeRA: result + b * (B (d * (A dropout(x)))), A and B frozen and shared by all layers."""
    tape, regime = scope.tape, scope.regime
    base = base_linear(scope, x, lin, tokens)
    result_itemsize = base.itemsize
    base = _cloned(scope, base, lin)
    xa = tape.cast(x, regime.adapter)
    d = _dropout(scope, xa)
    low = _frozen_linear(scope, d, lin.in_features, rank, tokens)
    tape.drop(d)
    turned = _times_vector(scope, low, rank)
    tape.drop(low)
    high = _frozen_linear(scope, turned, rank, lin.out_features, tokens)
    tape.drop(turned)
    scaled = _times_vector(scope, high, lin.out_features)
    tape.drop(high)
    total = add(scope, base, scaled)
    tape.drop(base, scaled, xa)
    return _cast_away(scope, _cast_away(scope, total, result_itemsize), x.itemsize)


def _frozen_linear(scope: Scope, x: Tensor, n_in: int, n_out: int, tokens: float) -> Tensor:
    """A product with a frozen matrix of the adapter's dtype; autocast keeps its half copy."""
    tape = scope.tape
    xc = cast_for_matmul(scope, x)
    copy = _half_copy(scope, n_in * n_out)
    y = tape.op(xc, width=n_out * tokens, itemsize=xc.itemsize, saved=[copy or PARAMETER])
    if copy is not None:
        tape.release(copy)
    tape.drop(xc)
    return y


def _miss(scope: Scope, x: Tensor, lin: Linear, rank: int, tokens: float) -> Tensor:
    """MiSS: result + (sum of x's parts of width r) @ M, M (r, out)."""
    tape, regime = scope.tape, scope.regime
    base = base_linear(scope, x, lin, tokens)
    base = _cloned(scope, base, lin)
    padded = tape.hold(x)
    if lin.in_features % rank:
        tape.drop(padded)
        padded = tape.op(x, width=x.width + (-lin.in_features % rank) * tokens, itemsize=x.itemsize, passes=[x])
    xa = _cast_away(scope, padded, regime.adapter)
    d = _dropout(scope, xa)
    parts = tape.op(d, width=rank * tokens, itemsize=FP32 if regime.autocast else d.itemsize)
    y = _small_linear(scope, parts, rank, lin.out_features, tokens)
    tape.drop(parts, d)
    total = add(scope, base, y)
    tape.drop(base, y, xa)
    return _cast_away(scope, total, x.itemsize)


ADAPTERS: dict[str, Adapter] = {
    "lora": _lora,
    "svd": _svd,
    "dora": _dora,
    "ia3": _ia3,
    "oft": _oft,
    "loha": _loha,
    "lokr": _lokr,
    "fourierft": _fourierft,
    "vera": _vera,
    "miss": _miss,
}

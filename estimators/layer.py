"""One transformer layer, and the head with the loss, run forward and back on a tape.

The result is a profile: what the layer leaves behind for backward, and the highest points on the way, as lines in the
number of tokens. `estimators/memory.py` puts layers together; nothing here knows how many there are.
"""

from dataclasses import dataclass

from estimators import layer_ops as ops
from estimators.adapters import linear
from estimators.attention_ops import FLASH_ROW_BLOCK, attention_core
from estimators.expert_ops import mixture
from estimators.fused_layer import fused_layer_forward, is_fused
from estimators.layer_ops import Scope
from estimators.regime import Regime
from estimators.tape import Line, Sums, Tape, Tensor, upper_envelope
from profiles.model import Attention, Block, Linear, Norm, Outputs


@dataclass(frozen=True, slots=True)
class LayerSetup:
    """What a method does to a layer: adapters' kind (a key of adapters.py) and size by linear name, dropout, and which
    of the base's tensors it trains. `input_requires_grad` False: nothing below is trained."""

    ranks: tuple[tuple[str, int], ...] = ()
    adapter: str = "lora"
    dropout: bool = False
    trains_weights: bool = False
    trains_biases: bool = False
    trained_norms: frozenset[str] = frozenset()
    trains_head: bool = False
    prefix_tokens: int = 0
    input_requires_grad: bool = True
    accumulates: bool = False  # gradients exist already: a new one is added and freed


@dataclass(frozen=True, slots=True)
class LayerProfile:
    """Lines (bytes per token, constant bytes), relative to before the layer.

    saved: alive after forward because of backward; under gradient checkpointing what escapes it: the layer's input is
    held and counted by whoever stacks the layers. forward: highest points of the (first) forward. backward: highest
    points from the incoming gradient on, with what this layer saved, or under checkpointing with the forward run again.
    sums: what is summed over tokens on that way, with the lines beside it. left: constant bytes that stay for good
    (parameter gradients). pinned: bytes a token that functions keep by themselves for as long as the graph lives, or
    the outputs; let_go: of it what goes as backward begins.
    """

    saved: Line
    forward: tuple[Line, ...]
    backward: tuple[Line, ...]
    sums: Sums
    left: float
    pinned: float
    let_go: float = 0.0
    checkpointed: bool = False


def profile_layer(block: Block, regime: Regime, setup: LayerSetup, seq_len: int) -> LayerProfile:
    """Run one layer forward and back, plainly or as gradient checkpointing does."""
    return (_checkpointed if regime.checkpointing else _plain)(block, regime, setup, seq_len)


def _plain(block: Block, regime: Regime, setup: LayerSetup, seq_len: int) -> LayerProfile:
    tape = Tape()
    x = tape.tensor(input_width(block), regime.stream, setup.input_requires_grad)
    out = run_layer(tape, x, block, regime, setup, seq_len)
    forward = _beside_returned(tape)
    tape.drop(out)
    tape.drop_returned()
    saved = (tape.per_token, tape.constant)
    pinned = tape.pinned()
    if forgets_cache(regime, setup):
        tape.drop_graph()
        pinned = 0.0
    let_go = saved[0] - tape.per_token
    out.grad = tape.alloc(out.width * out.itemsize)
    tape.mark()
    tape.backward()
    return LayerProfile(
        saved=saved,
        forward=forward,
        backward=tape.envelope(),
        sums=tape.sums(),
        left=tape.constant,
        pinned=pinned,
        let_go=let_go,
    )


def forgets_cache(regime: Regime, setup: LayerSetup) -> bool:
    """Whether a prefix's cache goes as backward begins: TRL's fused outputs have none."""
    return bool(setup.prefix_tokens) and not (regime.keep_outputs and regime.loss == "full") and regime.quantized != 8


def _beside_returned(tape: Tape) -> tuple[Line, ...]:
    """The highest points of a forward while the loop over layers still names what the last one returned."""
    held = sum(t.buffer.per_token for t in tape.returned if t.buffer.refs == 1)
    return tuple((a + held, b) for a, b in tape.envelope())


def _checkpointed(block: Block, regime: Regime, setup: LayerSetup, seq_len: int) -> LayerProfile:
    """Non-reentrant (torch.utils.checkpoint): nodes that read no saved tensor run first; the forward runs again when
    one does, and stops as its last tensor is saved. Reentrant: the whole forward runs first, and its output is held
    until the backward is over.
    """
    tape = Tape()
    tape.recomputed = not regime.reentrant
    x = tape.tensor(input_width(block), regime.stream, True)
    tape.hold(x)
    tape.per_token = 0.0
    out = run_layer(tape, x, block, regime, setup, seq_len)
    again = tape.envelope() if regime.reentrant else tape.envelope_until_last_save()
    if not regime.reentrant:
        tape.drop(out)
        tape.drop_returned()
    before = (tape.per_token, tape.constant)
    out.grad = tape.alloc(out.width * out.itemsize)
    for other in tape.returned:  # what has no gradient gets one of zeros
        other.grad = tape.alloc(other.width * other.itemsize)
    given = [t.grad for t in (out, *tape.returned) if t.grad is not None]
    if regime.reentrant:
        for gradient in given:  # the arguments of its backward, to the end
            gradient.refs += 1
    else:
        tape.backward(until_saved=True)
    pending = (tape.per_token - before[0], tape.constant - before[1])
    tape.mark()
    tape.backward()
    if regime.reentrant:
        for gradient in given:
            tape.release(gradient)
    lines = [*((a + pending[0], b + pending[1]) for a, b in again), *tape.envelope()]
    first = Tape(records=False)
    x = first.tensor(input_width(block), regime.stream, True)
    first.hold(x)
    first.per_token = 0.0
    out = run_layer(first, x, block, regime, setup, seq_len)
    forward = _beside_returned(first)
    first.drop(out)
    first.drop_returned()
    return LayerProfile(
        saved=(first.per_token, first.constant),
        forward=forward,
        backward=upper_envelope(lines),
        sums=tape.sums(),
        left=tape.constant,
        pinned=first.pinned(),
        checkpointed=True,
    )


def stream_itemsize(block: Block, regime: Regime, setup: LayerSetup) -> int:
    """Bytes of a layer's output. A quantised linear, or a dense update, gives back the dtype that it was given, which
    may be the fp32 of autocast's LayerNorm, and PEFT leaves what fp32 vectors make of it under autocast (DoRA's
    magnitude, (IA)3, AdaLoRA's rank count over int8): the residual sum follows.
    """
    if not (regime.quantized or (regime.autocast and setup.ranks)):
        return regime.entry
    tape = Tape()
    x = tape.tensor(input_width(block), regime.entry, True)
    return run_layer(tape, x, block, regime, setup, FLASH_ROW_BLOCK).itemsize


def run_layer(tape: Tape, x: Tensor, block: Block, regime: Regime, setup: LayerSetup, seq_len: int) -> Tensor:
    """One layer's forward on `tape`; takes over the hold on x. `seq_len` is for tensors that grow with its square."""
    scope = Scope(
        tape=tape,
        regime=regime,
        seq_len=seq_len,
        ranks=dict(setup.ranks),
        dropout=setup.dropout,
        adapter=setup.adapter,
        trains_weights=setup.trains_weights,
        trains_biases=setup.trains_biases,
        trained_norms=setup.trained_norms,
        prefix_tokens=setup.prefix_tokens,
        accumulates=setup.accumulates,
    )
    tape.mark()
    if regime.fused_layers and is_fused(block):
        return fused_layer_forward(scope, block, x)
    out = layer_forward(scope, block, x)
    tape.drop_named()
    return out


def input_width(block: Block) -> int:
    """Width of the hidden states that enter and leave a layer."""
    return next(lin.out_features for lin in block.linears if lin.role in ("o", "down"))


def layer_forward(scope: Scope, block: Block, x: Tensor) -> Tensor:
    """A decoder or encoder layer: attention, MLP, norms where the architecture has them. Drops its hold on x."""
    tape = scope.tape
    norms = {n.place: n for n in block.norms}
    after_add = "pre_mlp" not in norms and any(n.kind == "layernorm" for n in block.norms)  # BERT's order
    z = _normed(scope, x, norms.get("pre_attention"))
    attended = _dropped_out(scope, attention(scope, block, z), block, "attention")
    if not after_add:
        attended = _normed_away(scope, attended, norms.get("post_attention"))
    if block.parallel:
        z2 = _normed(scope, x, norms["pre_mlp"]) if "pre_mlp" in norms else tape.hold(z)
        tape.drop(z)
        fed = _dropped_out(scope, mlp(scope, block, z2), block, "mlp")
        tape.drop(z2)
        return ops.residual_add(scope, x, ops.residual_add(scope, attended, fed))
    tape.drop(z)
    h = ops.residual_add(scope, x, attended)
    if after_add:
        h = _normed_away(scope, h, norms.get("post_attention"))
    z = _normed(scope, h, norms.get("pre_mlp"))
    fed = _dropped_out(scope, mlp(scope, block, z), block, "mlp")
    tape.drop(z)
    if not after_add:
        fed = _normed_away(scope, fed, norms.get("post_mlp"))
    out = ops.residual_add(scope, h, fed)
    return _normed_away(scope, out, norms.get("post_mlp")) if after_add else out


def _dropped_out(scope: Scope, x: Tensor, block: Block, output: Outputs) -> Tensor:
    """The model's own dropout over attention's or the MLP's output, which is dropped."""
    if output not in block.dropout:
        return x
    y = ops.dropout(scope, x)
    scope.tape.drop(x)
    return y


def _normed(scope: Scope, x: Tensor, spec: Norm | None) -> Tensor:
    return scope.tape.hold(x) if spec is None else ops.norm(scope, x, spec, trained=_trained(scope, spec))


def _normed_away(scope: Scope, x: Tensor, spec: Norm | None) -> Tensor:
    if spec is None:
        return x
    y = ops.norm(scope, x, spec, trained=_trained(scope, spec))
    scope.tape.drop(x)
    return y


def _trained(scope: Scope, spec: Norm) -> bool:
    return scope.trains_weights or (scope.trains_biases and spec.bias) or spec.name in scope.trained_norms


def _by_role(block: Block) -> dict[str, Linear]:
    return {str(lin.role): lin for lin in block.linears if not lin.shared_expert}


def attention(scope: Scope, block: Block, z: Tensor) -> Tensor:
    """Projections, head norms, rotary, the kernel, the output projection. z stays with the caller."""
    tape, spec, lin = scope.tape, block.attention, _by_role(block)
    if spec.kind == "mla":
        q, k, v = _mla_projections(scope, block, z)
    elif "qkv" in lin:
        fused = linear(scope, z, lin["qkv"])
        q = ops.narrow(scope, fused, spec.q_width)
        k = ops.narrow(scope, fused, spec.kv_width)
        v = ops.narrow(scope, fused, spec.num_key_value_heads * spec.v_head_dim)
        if "rotary" in scope.regime.fused_ops:
            q, k = ops.contiguous(scope, q), ops.contiguous(scope, k)
        tape.drop(fused)
    else:
        q = linear(scope, z, lin["q"])
        k = linear(scope, z, lin["k"])
        v = linear(scope, z, lin["v"]) if "v" in lin else tape.hold(k)
    norms = {n.place: n for n in block.norms}
    q = _normed_away(scope, q, norms.get("q"))
    k = _normed_away(scope, k, norms.get("k"))
    if spec.rotary:
        q = _rotated(scope, q, spec)
        k = _rotated(scope, k, spec)
    if scope.prefix_tokens:
        k, v = _with_prefix(scope, k), _with_prefix(scope, v)
    context = attention_core(scope, q, k, v, spec)
    tape.drop(q, k, v)
    out = linear(scope, context, lin["o"])
    tape.drop(context)
    return out


def _rotated(scope: Scope, x: Tensor, spec: Attention) -> Tensor:
    y = ops.rotary(scope, x, spec.partial_rotary_factor)
    scope.tape.drop(x)
    return y


def _with_prefix(scope: Scope, x: Tensor) -> Tensor:
    """torch.cat of the cached prefix and the new keys or values: a copy, longer by the prefix, and the cache's own."""
    grown = x.width * (1 + scope.prefix_tokens / scope.seq_len)
    y = scope.tape.op(x, width=grown, itemsize=x.itemsize, trains=True)
    scope.tape.keep(y.buffer)
    scope.tape.drop(x)
    return y


def _mla_projections(scope: Scope, block: Block, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """DeepSeek's latent attention: low-rank q (or plain), compressed kv, then per-head k and v."""
    tape, spec, lin = scope.tape, block.attention, _by_role(block)
    norms = {n.place: n for n in block.norms}
    if "q_a" in lin:
        a = _normed_away(scope, linear(scope, z, lin["q_a"]), norms.get("q_a"))
        q = linear(scope, a, lin["q_b"])
        tape.drop(a)
    else:
        q = linear(scope, z, lin["q"])
    compressed = linear(scope, z, lin["kv_a"])
    latent = _normed_away(scope, ops.narrow(scope, compressed, lin["kv_b"].in_features), norms.get("kv_a"))
    tape.drop(compressed)
    kv = linear(scope, latent, lin["kv_b"])
    tape.drop(latent)
    k = tape.op(kv, width=spec.q_width, itemsize=kv.itemsize)  # cat of the plain and the rotary part
    v = ops.narrow(scope, kv, spec.num_heads * spec.v_head_dim)
    tape.drop(kv)
    return q, k, v


def mlp(scope: Scope, block: Block, z: Tensor) -> Tensor:
    """Plain, gated or mixture of experts. z stays with the caller."""
    if block.mlp.experts:
        return mixture(scope, block, z, _dense_mlp)
    return _dense_mlp(scope, block, z, _by_role(block))


def _dense_mlp(scope: Scope, block: Block, z: Tensor, lin: dict[str, Linear]) -> Tensor:
    tape, name = scope.tape, block.mlp.activation
    one_kernel = "activation" in scope.regime.fused_ops and not block.mlp.experts
    if "gate_up" in lin:
        fused = linear(scope, z, lin["gate_up"])
        half = lin["gate_up"].out_features // 2
        gate, up = ops.narrow(scope, fused, half), ops.narrow(scope, fused, half)
        if one_kernel:
            hidden = ops.fused_gate(scope, ops.contiguous(scope, gate), ops.contiguous(scope, up))
            tape.named.append(fused)  # its slices keep their names until the function returns
        else:
            tape.drop(fused)
            acted = ops.activation(scope, gate, name)
            tape.drop(gate)
            hidden = ops.multiply(scope, acted, up)
    elif "gate" in lin and one_kernel:
        hidden = ops.fused_gate(scope, linear(scope, z, lin["gate"]), linear(scope, z, lin["up"]))
    elif "gate" in lin:
        gate = linear(scope, z, lin["gate"])
        acted = ops.activation(scope, gate, name)
        tape.drop(gate)
        hidden = ops.multiply(scope, acted, linear(scope, z, lin["up"]))
    else:
        up = linear(scope, z, lin["up"])
        hidden = ops.activation(scope, up, name)
        tape.drop(up)
    out = linear(scope, hidden, lin["down"])
    tape.drop(hidden)
    return out

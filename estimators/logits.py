"""From the last layer to the loss and back: final norm, head, loss path, on a tape.

full: transformers' ForCausalLMLoss (loss/loss_utils.py): logits, an fp32 copy, log_softmax; 14 V bytes a token at the
peak while the outputs are held, 12 V once they are not. fused: TRL 1.16's LM head (trl/kernels/chunked_logprob.py): one
tile of 4096 x 32768 logits, an fp32 gradient of the hidden states. chunked: Liger's and Unsloth's, which compute the
gradient during forward, some rows at a time. Preference losses that read all logits: preference.py.
"""

from dataclasses import dataclass

from estimators import layer_ops as ops
from estimators.layer import LayerSetup, input_width
from estimators.layer_ops import FP32, Scope
from estimators.preference import log_probs, odds_ratio
from estimators.regime import LossPath, Regime
from estimators.tape import Line, Tape, Tensor
from estimators.unsloth_loss import COPIES, chunk_rows
from profiles.model import Linear, ModelSpec, Norm

INDEX_BYTES = 8
TRL_TOKEN_TILE = 4096  # trl/kernels/chunked_logprob.py TOKEN_CHUNK_SIZE
TRL_VOCAB_TILE = 32_768  # trl/trainer/utils.py _CHUNKED_LOGPROB_CHUNK_SIZE
# Tensors of the logits' size in fp32 that passes without gradient make, of each loss from log probabilities
LOG_PROBS: dict[LossPath, int] = {"log-probs": 0, "log-probs-dpo": 2, "log-probs-kto": 3}
TRL_STATISTICS = 7 * FP32  # running max, four sums, max before target, target logit


@dataclass(frozen=True, slots=True)
class HeadProfile:
    """Lines from the last layer's output on. `forward` is inside autocast, `backward` after it; both include `saved`.

    saved: alive between the two; when the layers' backward begins, none of it. left: gradient bytes of norm and head
    that stay. held: bytes per token that the loop keeps through the step (logits of kept outputs).
    """

    forward: tuple[Line, ...]
    saved: Line
    backward: tuple[Line, ...]
    left: float
    held: float


def profile_head(model: ModelSpec, regime: Regime, setup: LayerSetup, *, tokens: int) -> HeadProfile:
    """Run final norm, head and loss forward and back for a micro-batch of `tokens`."""
    tape = Tape()
    x = tape.tensor(input_width(model.layers[0].block), regime.stream, True)
    tape.mark()
    loss, logits = run_head(tape, x, model, regime, setup, tokens=tokens)
    forward, saved = tape.envelope(), (tape.per_token, tape.constant)
    tape.mark()
    loss.grad = tape.alloc(0.0)
    tape.backward()
    tape.drop(loss)
    held = 0.0 if logits is None else logits.width * logits.itemsize
    return HeadProfile(forward=forward, saved=saved, backward=tape.envelope(), left=tape.constant, held=held)


def run_head(
    tape: Tape, x: Tensor, model: ModelSpec, regime: Regime, setup: LayerSetup, *, tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Final norm, head and loss on `tape`: the loss, and the logits where the loop keeps the outputs."""
    scope = Scope(
        tape=tape,
        regime=regime,
        seq_len=1,
        trains_weights=setup.trains_weights or setup.trains_head,
        trains_biases=setup.trains_biases,
        trained_norms=setup.trained_norms,
        accumulates=setup.accumulates,
    )
    hidden = _final_norm(scope, model, x, setup)
    if model.head is None:
        return _mean(scope, hidden), None
    if regime.loss == "full":
        return _full(scope, model, hidden)
    if regime.loss in LOG_PROBS:
        return log_probs(scope, _logits(scope, model, hidden), copies=LOG_PROBS[regime.loss]), None
    if regime.loss == "odds-ratio":
        return odds_ratio(scope, _logits(scope, model, hidden)), None
    if regime.loss == "value":
        return _value(scope, model, hidden), None
    if regime.loss == "fused":
        return _fused(scope, model, hidden, tokens), None
    if regime.fused_kernels:
        return _unsloth(scope, hidden, model.head, unsloth_rows(model, regime, setup, tokens)), None
    return _chunked(scope, hidden, model.head, liger_rows(model, regime, tokens)), None


def evaluation_parts(model: ModelSpec, regime: Regime) -> tuple[int, ...]:
    """Bytes a token of an evaluation that makes all logits: the head's product, its fp32 copy, log_softmax of that."""
    product = regime.compute if regime.autocast else regime.stream
    sizes = (product, FP32, FP32) if product < FP32 else (FP32, FP32)
    return tuple(model.vocab_size * size for size in sizes)


def evaluation_bytes(model: ModelSpec, regime: Regime) -> int:
    """All that such an evaluation makes of a token."""
    return sum(evaluation_parts(model, regime))


def unsloth_rows(model: ModelSpec, regime: Regime, setup: LayerSetup, tokens: int) -> int:
    """Rows of the chunks that Unsloth's loss cuts `tokens` into; 0 where the loss is another."""
    if regime.loss != "chunked" or not regime.fused_kernels or model.head is None:
        return 0
    head = model.head
    of_head = head.weight_parameters * regime.base if setup.trains_weights or setup.trains_head else 0.0
    return chunk_rows(
        tokens=tokens,
        vocab_size=head.out_features,
        budget=regime.loss_budget,
        fixed=tokens * head.in_features * regime.stream + 2 * of_head,
        equal=regime.equal_lengths,
    )


def _final_norm(scope: Scope, model: ModelSpec, x: Tensor, setup: LayerSetup) -> Tensor:
    final = next((n for n in model.extra_norms if n.place == "final"), None)
    if final is None or final.size != int(x.width):
        return x
    if scope.regime.fused_layers:
        gemma = model.layers[0].block.mlp.activation.startswith("gelu")
        hidden = ops.fused_norm(scope, x, in_place=not gemma)
    else:
        hidden = ops.norm(scope, x, final, trained=_trains_norm(setup, final))
    scope.tape.drop(x)
    return hidden


def _trains_norm(setup: LayerSetup, norm: Norm) -> bool:
    return setup.trains_weights or (setup.trains_biases and norm.bias) or norm.name in setup.trained_norms


def _mean(scope: Scope, hidden: Tensor) -> Tensor:
    out = scope.tape.op(hidden, width=0.0, itemsize=FP32, saved=[hidden.buffer])
    scope.tape.drop(hidden)
    return out


def _logits(scope: Scope, model: ModelSpec, hidden: Tensor) -> Tensor:
    assert model.head is not None
    logits = ops.base_linear(scope, hidden, model.head)
    scope.tape.drop(hidden)
    return _softcap(scope, logits) if model.final_logit_softcap else logits


def _full(scope: Scope, model: ModelSpec, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
    tape, regime = scope.tape, scope.regime
    logits = _logits(scope, model, hidden)
    upcast = tape.cast(logits, FP32)
    log_probs = tape.op(upcast, width=upcast.width, itemsize=FP32)
    tape.save_output(log_probs)
    loss = tape.op(log_probs, width=0.0, itemsize=FP32, saved=[log_probs.buffer])
    tape.drop(upcast, log_probs)
    if regime.outputs_to_fp32:  # accelerate's convert_outputs_to_fp32, after the model's forward
        wide = tape.cast(logits, FP32)
        tape.drop(logits)
        logits = wide
    if regime.keep_outputs:
        return loss, logits
    tape.drop(logits)
    return loss, None


def _softcap(scope: Scope, logits: Tensor) -> Tensor:
    """logits / cap, tanh (saves its output), * cap."""
    tape = scope.tape
    divided = tape.op(logits, width=logits.width, itemsize=logits.itemsize)
    tape.drop(logits)
    capped = tape.op(divided, width=divided.width, itemsize=divided.itemsize)
    tape.save_output(capped)
    tape.drop(divided)
    out = tape.op(capped, width=capped.width, itemsize=capped.itemsize)
    tape.drop(capped)
    return out


def _value(scope: Scope, model: ModelSpec, hidden: Tensor) -> Tensor:
    """LLaMA-Factory's reward model (TRL 0.24 AutoModelForCausalLMWithValueHead): logits in fp32 that nobody reads, and
    a number a token."""
    tape = scope.tape
    logits = _logits(scope, model, tape.hold(hidden))
    tape.drop(tape.cast(logits, FP32), logits)
    value = tape.op(hidden, width=1.0, itemsize=FP32, saved=[hidden.buffer])
    tape.drop(hidden)
    return value


def _fused(scope: Scope, model: ModelSpec, hidden: Tensor, tokens: int) -> Tensor:
    """TRL picks the positions with a label, then walks tiles; the gradients of hidden and head accumulate in fp32."""
    tape, regime, head = scope.tape, scope.regime, model.head
    assert head is not None
    index = tape.alloc(2 * INDEX_BYTES)
    picked = tape.op(hidden, width=hidden.width, itemsize=hidden.itemsize, saved=[index])
    tape.release(index)
    tape.drop(hidden)
    statistics = tape.alloc(TRL_STATISTICS)
    product = regime.compute if regime.autocast else picked.itemsize
    columns = TRL_VOCAB_TILE + (head.in_features if picked.itemsize > product else 0)  # and the rows' narrow copy
    a_row = float(columns * product)  # whatever the vocabulary
    tile = (a_row, 0.0) if tokens <= TRL_TOKEN_TILE else (0.0, a_row * TRL_TOKEN_TILE)
    last = TRL_VOCAB_TILE if tokens > TRL_TOKEN_TILE else head.out_features - TRL_VOCAB_TILE
    of_weight = [min(TRL_VOCAB_TILE, head.out_features), max(0, min(TRL_VOCAB_TILE, last, head.out_features))]
    copied = head.in_features * product if regime.base != product else 0
    cast, casts = float(copied * of_weight[0]), float(copied * sum(of_weight))  # backward names one until the next
    tape.scratch(tile, (0.0, cast))
    weight = head.weight_parameters
    gradient = weight * regime.base if scope.trains_weights else 0.0
    fp32_gradient = weight * FP32 if scope.trains_weights and regime.base < FP32 else 0.0
    kept = 0.0 if scope.accumulates else gradient
    fp32_hidden = picked.width * FP32 if picked.itemsize < FP32 else 0.0
    log_probs = tape.op(
        picked,
        width=1.0,
        itemsize=FP32,
        saved=[picked.buffer, statistics],
        pieces=[(fp32_hidden, 0.0), (0.0, fp32_gradient), tile, (0.0, casts), (0.0, gradient - kept)],
        weight_grad=kept,
    )
    tape.release(statistics)
    tape.drop(picked)
    loss = tape.op(log_probs, width=0.0, itemsize=FP32)
    tape.drop(log_probs)
    return loss


def liger_rows(model: ModelSpec, regime: Regime, tokens: int) -> int:
    """Rows of Liger's chunk: as many chunks as the vocabulary is wider than the hidden states, rounded up to a power of
    two (ops/fused_linear_cross_entropy.py); 0 where the loss is another."""
    if regime.loss != "chunked" or regime.fused_kernels or model.head is None:
        return 0
    rows = -(-tokens // -(-model.head.out_features // model.head.in_features))
    return min(1 << (rows - 1).bit_length(), tokens)


def _chunked(scope: Scope, hidden: Tensor, head: Linear, rows: int) -> Tensor:
    """Liger: both gradients are made in the forward and kept; a chunk's logits, then its gradient of the hidden states
    or of the head beside them. Autocast makes a half copy of an fp32 head for each product, and caches a trained one's.
    """
    tape, regime = scope.tape, scope.regime
    product = regime.compute if regime.autocast else hidden.itemsize
    gradient = tape.alloc(hidden.width * hidden.itemsize)
    losses = tape.alloc(FP32)
    weight = float(head.weight_parameters)
    of_weight = tape.alloc(0.0, weight * regime.base if scope.trains_weights else 0.0)
    half = weight * product if regime.base > product else 0.0
    cached = half if scope.trains_weights else 0.0
    logits = float(rows * head.out_features * product)
    part = rows * hidden.width * product
    narrowed = part if hidden.itemsize > product else 0.0
    tape.scratch((0.0, half), (0.0, logits), (0.0, max(narrowed + cached, part)))
    if scope.trains_weights:
        tape.scratch((0.0, cached), (0.0, narrowed), (0.0, logits), (0.0, weight * product))
    loss = tape.op(hidden, width=0.0, itemsize=FP32, saved=[gradient, of_weight])
    for buffer in (gradient, losses, of_weight):
        tape.release(buffer)
    tape.drop(hidden)
    if scope.trains_weights and not scope.accumulates and loss.requires_grad:
        tape.adopt(of_weight)
    return loss


def _unsloth(scope: Scope, hidden: Tensor, head: Linear, rows: int) -> Tensor:
    """unsloth_zoo (fused_losses/cross_entropy_loss.py): a compiled chunk makes its logits and their gradient, then the
    head's gradient beside that; the gradients of hidden states and head are kept, and scaled into new tensors in
    backward."""
    tape, regime = scope.tape, scope.regime
    product = regime.compute if regime.autocast else hidden.itemsize
    gradient = tape.alloc(hidden.width * hidden.itemsize)
    weight = head.weight_parameters * regime.base if scope.trains_weights else 0.0
    of_weight = tape.alloc(0.0, weight)
    logits = float(rows * head.out_features * product)
    narrowed = rows * hidden.width * product if hidden.itemsize > product else 0.0
    half = head.weight_parameters * product if regime.base > product else 0.0
    tape.scratch((0.0, half), (0.0, narrowed), (0.0, logits), (0.0, max((COPIES - 1) * logits, weight)))
    loss = tape.op(
        hidden, width=0.0, itemsize=FP32, saved=[gradient, of_weight],
        weight_grad=0.0 if scope.accumulates else weight, scratch=(0.0, weight if scope.accumulates else 0.0),
    )  # fmt: skip
    tape.release(gradient)
    tape.release(of_weight)
    tape.drop(hidden)
    return loss

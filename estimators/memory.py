"""Device memory of a plan, analytic tier: phases of a step, the worst of them, and what is not known.

A step's peak is in one of four moments: the loss (all layers' saved tensors and the logits), the backward of a layer
(what that layer makes on top of what the others still hold), the optimizer step (weights, gradients, states), or the
load. Layers and head are profiled on a tape (layer.py, logits.py); here they are stacked.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import replace

from estimators.answer import Component, ComponentName, MemoryEstimate, Phase, PhaseName
from estimators.attention_ops import FLASH_ROW_BLOCK
from estimators.embedding import embedding_sums
from estimators.generation import generation_parts
from estimators.layer import LayerProfile, LayerSetup, profile_layer, stream_itemsize
from estimators.layer_ops import FP32
from estimators.logits import TRL_TOKEN_TILE, HeadProfile, evaluation_bytes, liger_rows, profile_head, unsloth_rows
from estimators.margins import allocated_interval, reserved_interval
from estimators.methods import Method, get_method
from estimators.methods.scalar_head import task_model
from estimators.offload import offloaded_bytes, shared_weight
from estimators.overhead import device_interval, workspace_bytes
from estimators.regime import Regime, has_mask, resolve_regime
from estimators.setup import keeps_gradients, layer_runs, layer_setup, own_regime
from estimators.standing import standing_bytes, tensor_itemsize
from estimators.tape import Line
from estimators.tasks import (
    completion_tokens,
    holds_reference,
    passes_without_gradient,
    sequences_per_example,
)
from estimators.vector_sum import resident_threads, vector_sum
from profiles.errors import UnsupportedError
from profiles.gpu import GpuSpec, Hardware
from profiles.model import Block, ModelSpec
from profiles.plan import Plan

INPUT_BYTES = 3 * 8  # input_ids, attention_mask, labels as int64
MASK_BYTES = 1  # transformers keeps the padded causal mask as booleans for SDPA
COMES_AND_GOES = {"layer_working_set", "logits", "optimizer_temporary", "gradients", "other"}

ZERO = "DeepSpeed's buffers are modelled from its source, at its default sizes; states are divided evenly"
SHARDED = {
    "ddp": "DDP keeps all gradients once more in its buckets",
    "fsdp2": "states are divided evenly; what FSDP2 gathers was checked against a trace of torch's own code",
    **dict.fromkeys(("zero1", "zero2", "zero3"), ZERO),
}

LIGER = "Liger's kernels are modelled from their source; two runs of a 1B Llama met it"

Parts = list[tuple[ComponentName, float]]


def estimate_memory(plan: Plan, model: ModelSpec, hardware: Hardware) -> MemoryEstimate:
    """Estimate one card's memory for `plan` (analytic tier), in bytes.

    Raises:
        UnsupportedError: the plan cannot exist; the message is the reason.
        InvalidInputError: target_modules names a module that the model does not have.
    """
    memory = memory_model(plan, model, hardware.gpu)
    phases = memory.phases(plan.micro_batch_size, plan.gradient_accumulation_steps)
    totals = [_total(parts) for _, parts in phases]
    highest = max(totals)
    parted = [_comes_and_goes(parts) for _, parts in phases]
    allocated = allocated_interval(highest, plan, memory.regime, "analytic")
    reserved = reserved_interval(allocated, parted, plan=plan, regime=memory.regime)
    return MemoryEstimate(
        basis="analytic",
        phases=tuple(_phase(*phase) for phase in phases),
        peak_phase=phases[totals.index(highest)][0],
        allocated=allocated,
        reserved=reserved,
        device=device_interval(reserved, hardware.gpu),
        budget=float(hardware.gpu.memory_bytes),
        trainable_parameters=memory.trainable_parameters,
        assumptions=_assumptions(plan, model, memory.regime, hardware),
    )


def _comes_and_goes(parts: Parts) -> tuple[float, float, float]:
    """All bytes, those of saved activations, and others that do not lie still."""
    saved = sum(n_bytes for name, n_bytes in parts if name == "saved_activations")
    return _total(parts), saved, sum(n_bytes for name, n_bytes in parts if name in COMES_AND_GOES)


def _phase(name: PhaseName, parts: Parts) -> Phase:
    return Phase(name=name, components=tuple(Component(name=n, n_bytes=b) for n, b in parts if b > 0))


class MemoryModel:
    """A plan's memory as a function of the micro-batch: everything else is worked out once."""

    def __init__(self, plan: Plan, model: ModelSpec, gpu: GpuSpec) -> None:
        method = get_method(plan.method)
        reason = method.refusal(model, plan)
        if reason is not None:
            raise UnsupportedError(reason)
        model = task_model(plan, model)
        self.trainable_parameters = method.trainable_parameters(model, plan)
        self.trained = list(method.trained_for(model, plan))
        self.model = model = method.extended(model, plan)
        self._sequences, self._samples = sequences_per_example(plan), plan.task == "grpo"
        self._prompt = plan.seq_len - completion_tokens(plan)
        self.method = method
        regime = resolve_regime(plan, model, gpu)
        self.seq_len = plan.seq_len + (plan.num_virtual_tokens if method.adds_tokens else 0)
        self._length = plan.seq_len + (plan.num_virtual_tokens if method.adds_tokens or method.adds_keys else 0)
        self.standing = standing_bytes(plan, model, method, regime, workspace_bytes(gpu))
        self.setup = layer_setup(method, model, plan, regime)
        self.regime = replace(regime, stream=stream_itemsize(model.layers[0].block, regime, self.setup))
        self.runs = layer_runs(method, model, plan, self.regime, self._length)
        has_prefix = bool(self.setup.prefix_tokens)
        self._layers = [
            (r.count, profile_layer(r.block, r.regime, r.setup, _length_class(r.regime, self.seq_len, has_prefix)))
            for r in self.runs
            if r.reached
        ]
        self.checkpointed = sum(count for count, p in self._layers if p.checkpointed)
        self._masks = len({g.block.attention.sliding_window for g in model.layers if self._reads_mask(g.block)})
        self._below = _below_layers(model, self.regime, self.setup)
        self._last_graph = 0.0  # outputs that are kept hold their graph, and int8's products what they read; the cache
        loss = self.regime.loss
        whole = loss == "full" or (loss == "fused" and self.regime.quantized == 8)
        self.outputs_hold_graph = self.regime.keep_outputs and whole
        if self.outputs_hold_graph:
            self._last_graph = sum(count * p.pinned for count, p in self._layers)
        words = model.hidden_size * self.regime.residual * plan.seq_len / self.seq_len
        if self.regime.checkpointing and not method.trains_base:  # enable_input_require_grads: the words are a leaf
            self._below += words if method.adds_tokens else 0.0  # elsewhere the first checkpoint
            self._last_graph += 2 * words if self.regime.keep_outputs else 0.0  # it and its gradient
        self._last_graph += sum(g.count * self.cache_bytes(g.block) for g in model.layers)
        self.penalty = _penalty_bytes(model, method, self.regime, plan)
        kept = self.regime.keep_outputs and self.regime.loss == "fused"  # whose backward does not go through it
        self.held_penalty = self.penalty if kept else 0.0
        self._threads = resident_threads(gpu)
        self._keeps_gradients = keeps_gradients(plan)
        self._zeroes_gradients = not plan.zero_grad_set_to_none
        self.waiting = 0.0  # gradients of AdaLoRA's penalty, until a layer's own are added to them
        if method.id == "adalora" and (loss == "fused" or (loss == "full" and self._keeps_gradients)):
            self.waiting = float(self.trainable_parameters * self.regime.adapter)
        self._heads: dict[Hashable, HeadProfile] = {}
        self.shared_weight = shared_weight(model, self.regime, self.setup)
        indexed = self.regime.fused_layers and plan.packing  # Unsloth then makes the tables of every position
        self._positions = max(model.max_position_embeddings, self.seq_len) if indexed else self.seq_len
        self.copied = _autocast_copies(model, method, self.regime, plan)
        self._copies = copies = sum(n_bytes * tensors for n_bytes, tensors in self.copied)
        # A reference that is loaded in fp32 has its own half copies until its forward ends
        self._reference_copies = copies if holds_reference(plan) and plan.quantization == "fp32" else 0.0
        encoder = method.has_encoder(plan)
        self._encoder_copies = copies if encoder else 0.0  # backward reaches the encoder last
        self.caches_copies = self.regime.checkpointing and not encoder  # to the end of forward
        self._cast_copies = copies if self.caches_copies else 0.0

    def phases(self, micro_batch_size: int, accumulation: int) -> list[tuple[PhaseName, Parts]]:
        """Every phase's components in bytes, for micro-batches of this size; `accumulation` of them are sampled at once
        where the task samples."""
        tokens = micro_batch_size * self._sequences * self.seq_len
        standing, regime, model = self.standing, self.regime, self.model
        head = self._head(tokens)
        held = head.held * tokens + self.held_penalty
        gradients = standing.accumulated if self.setup.accumulates else 0.0
        found = standing.accumulated if self._keeps_gradients else 0.0
        checkpoint = float(regime.stream * model.hidden_size * tokens)
        saved = (
            self._encoder_copies
            + self._below * tokens
            + sum(count * _point(p.saved, tokens) for count, p in self._layers)
        )
        layers = self.checkpointed
        stays = layers * checkpoint
        if layers and not regime.offload_checkpoints:  # the first one is the embedding's output
            stays -= (1 - regime.entry / regime.stream) * checkpoint
        if regime.offload_checkpoints:
            frozen = not self.method.trains_base
            buffers, stays = offloaded_bytes(checkpoint, layers=layers, frozen_embedding=frozen)
            saved += buffers
        saved += stays
        fixed: Parts = [
            ("base_weights", standing.base),
            ("adapter_weights", standing.adapters),
            ("optimizer_states", standing.states),
            ("workspace", standing.workspace),
            ("dequantized_weights", self.shared_weight),
            ("inputs", self._input_bytes(tokens)),
        ]
        forward_logits = max(_at(head.forward, tokens), _point(head.saved, tokens) + self.penalty)
        forward_logits += self._cast_copies + held + standing.whole.logits
        backward_logits = _at(head.backward, tokens) + self.held_penalty
        whole = standing.whole
        last_graph = self._last_graph * tokens
        kept = saved + last_graph  # until the new outputs take the place of the last ones
        highest = self._layers[-1][1] if self._layers else None
        top = 0.0 if highest is None or highest.checkpointed else _point(highest.saved, tokens)
        saved -= tokens * sum(count * p.let_go for count, p in self._layers)
        begun = saved + self.waiting
        narrow_gradient = float(tokens * model.vocab_size * regime.compute) + held + whole.prefetched
        moments = [(kept, forward_logits), (begun, backward_logits)]
        moments += [(begun, narrow_gradient)] if whole.prefetched else []
        logits_alive = max(moments, key=sum)
        forward = max(
            self._last_forward(
                [*fixed, ("gathered", whole.forward), ("other", self._reference_copies)],
                found,
                kept + self._cast_copies,
                tokens,
                held,
            ),
            [*fixed, ("gathered", whole.start), ("gradients", found), ("logits", held)],
            [
                *fixed,
                ("gathered", whole.turn),
                ("gradients", found),
                ("saved_activations", kept - top),
                ("logits", held),
            ],
            [*fixed, ("gathered", whole.head), ("gradients", found), ("saved_activations", saved), ("logits", held)],
            key=_total,
        )
        loss: Parts = [
            ("gathered", whole.loss),
            ("gradients", gradients),
            ("saved_activations", logits_alive[0]),
            ("logits", logits_alive[1]),
        ]
        backward: Parts = [*fixed, ("gathered", whole.backward)]
        phases: list[tuple[PhaseName, Parts]] = [
            ("load", [("base_weights", standing.base), ("other", standing.largest_load)]),
            ("forward_end", forward),
            ("loss", [*fixed, *loss]),
            (
                "layer_backward",
                max(
                    self._layer_backward(backward, gradients, begun, stays, checkpoint, tokens, held),
                    [*fixed, ("gathered", whole.end), ("gradients", standing.gradients), ("logits", held)],
                    key=_total,
                ),
            ),
        ]
        if self.method.trains_base:
            backward = [*fixed, ("gathered", whole.embedding)]
            phases.append(("embedding_backward", self._embedding_backward(backward, tokens, held)))
        if self._samples:
            phases.insert(1, ("sampling", [*fixed, *self._sampling(micro_batch_size * accumulation)]))
        last: Parts = [
            ("gathered", whole.step),
            ("gradients", standing.gradients),
            ("optimizer_temporary", standing.temporary),
            ("saved_activations", last_graph),
            ("logits", held),
        ]
        phases.append(("optimizer_step", [*fixed, *last]))
        if regime.evaluates_logits:
            logits = float(evaluation_bytes(model, regime) * self.seq_len)
            other = self._copies + regime.stream * model.hidden_size * self.seq_len
            zeroed = standing.accumulated if self._zeroes_gradients else 0.0
            held_out: Parts = [("gathered", whole.forward), ("gradients", zeroed), ("logits", logits), ("other", other)]
            phases.append(("evaluation", [*fixed, *held_out]))
        return phases

    def _sampling(self, rows: int) -> Parts:
        """Layers run without gradients: the upper bound is a forward pass that saves nothing beyond itself."""
        tokens = rows * self._prompt
        prefill = max((_at(p.forward, tokens) for _, p in self._layers if p.forward), default=0.0)
        return generation_parts(
            self.model, self.regime, sequences=rows, prompt=self._prompt, length=self.seq_len, prefill=prefill
        )

    def _head(self, tokens: int) -> HeadProfile:
        """The head's profile differs only in whether TRL's tile of rows is full, in Unsloth's and Liger's rows."""
        tile = (
            tokens > TRL_TOKEN_TILE,
            unsloth_rows(self.model, self.regime, self.setup, tokens),
            liger_rows(self.model, self.regime, tokens),
        )
        if tile not in self._heads:
            self._heads[tile] = profile_head(self.model, self.regime, self.setup, tokens=tokens)
        return self._heads[tile]

    def _input_bytes(self, tokens: int) -> float:
        """Ids, labels, positions' cos and sin of one sequence, and the mask."""
        attention = self.model.layers[0].block.attention
        rotary = 2.0 * self._positions * attention.head_dim * self.regime.residual if attention.rotary else 0.0
        return INPUT_BYTES * tokens + rotary + self.mask_bytes(tokens)

    def mask_bytes(self, tokens: int) -> float:
        """The (batch, 1, s, s) masks, one for each kind of layer (sliding, global): booleans for the padded batches of
        SDPA, the residual's dtype for eager attention."""
        if self.regime.kernel == "eager":
            return float(self._masks * self.regime.mask * self._length * tokens)
        return float(self._masks * MASK_BYTES * self._length * tokens)

    def _reads_mask(self, block: Block) -> bool:
        own = self.regime_of(block)
        return own.kernel == "eager" or (own.masked and own.kernel != "flash")

    def regime_of(self, block: Block) -> Regime:
        """What one layer runs in."""
        return own_regime(self.regime, block, self._length)

    def trained_bytes(self) -> list[int]:
        """Of each trained tensor."""
        return [t.elements * tensor_itemsize(t, self.regime) for t in self.trained for _ in range(t.tensors)]

    def cache_bytes(self, block: Block) -> float:
        """Bytes a token of the keys and values that stay with outputs that are kept, where the kernel saves copies of
        them, one for each query head, instead of themselves."""
        regime, attention = self.regime_of(block), block.attention
        repeated = attention.num_key_value_heads < attention.num_heads and regime.kernel != "flash"
        kept = regime.use_cache and regime.keep_outputs and not regime.checkpointing
        return float(2 * attention.kv_width * regime.residual) if kept and repeated else 0.0

    def _last_forward(self, fixed: Parts, gradients: float, saved: float, tokens: int, held: float) -> Parts:
        """The last layer's forward makes more than it saves. Under checkpointing its second run makes more still."""
        working = max(
            (_at(p.forward, tokens) - _point(p.saved, tokens) for _, p in self._layers if p.forward), default=0.0
        )
        return [
            *fixed,
            ("gradients", gradients),
            ("saved_activations", saved),
            ("layer_working_set", working),
            ("logits", held),
        ]

    def _layer_backward(
        self, fixed: Parts, gradients: float, saved: float, stays: float, checkpoint: float, tokens: int, held: float
    ) -> Parts:
        """The worst layer's backward, at the top (all others' tensors alive) or the bottom (all gradients there).
        `stays`: checkpoints on the card, gone at the bottom but for the layer's own, which may be in a buffer."""
        head_left = self._head(tokens).left
        if self.method.trains_base and self.model.tie_word_embeddings:
            waits = 1.0 if self.setup.accumulates else max(0.0, 1 - self.standing.gradient_share)
            waits *= self.model.embeddings[0].parameters * self.regime.base  # for the embedding's, to be added once
            fixed = [*fixed, ("logits", waits)]

        def alive_of(p: LayerProfile) -> float:
            kept = 0.0 if self.regime.offload_checkpoints or not p.checkpointed else checkpoint
            return kept + _point(p.saved, tokens) - p.let_go * tokens

        total_left = head_left + sum(count * p.left for count, p in self._layers)
        candidates: list[Parts] = []
        below = saved - sum(count * alive_of(p) for count, p in self._layers)
        pinned = tokens * sum(count * p.pinned for count, p in self._layers)
        done = 0.0
        for count, profile in self._layers:
            own = checkpoint if profile.checkpointed else alive_of(profile)
            peak = max(_at(profile.backward, tokens), self._summing(profile, tokens))
            working = peak if profile.checkpointed else peak - own
            others = pinned - (0.0 if profile.checkpointed else tokens * profile.pinned)
            bottom = max(saved - stays, own) if self.regime.offload_checkpoints else min(saved, own + others)
            if self.standing.inputs_held:  # and all gradients of them, but the one that is being read
                bottom = saved + (self.checkpointed - 2) * checkpoint
            whole, layers_left = self.standing.whole, total_left - head_left
            passed = whole.reduced_from
            ends = [(saved, head_left, 0.0), (bottom, total_left - profile.left, whole.lowest)]
            if whole.reduced:
                between = bottom + (1 - passed) * (saved - bottom)
                ends.append((between, head_left + passed * layers_left, whole.reduced))
            if self.method.trains_layers:  # which layers lie below this one is known
                done += count * profile.left
                top = below + count * alive_of(profile)
                ends = [
                    (top, total_left - done, 0.0),
                    (below + alive_of(profile), total_left - done + (count - 1) * profile.left, whole.lowest),
                ]
                below = top
            candidates.extend(
                [
                    *fixed,
                    ("gathered", gathered),
                    ("gradients", gradients or left * self.standing.gradient_share),
                    ("saved_activations", alive),
                    ("layer_working_set", working),
                    ("logits", held),
                ]
                for alive, left, gathered in ends
            )
        return max(candidates, key=_total)

    def _summing(self, profile: LayerProfile, tokens: int) -> float:
        """The highest point of a layer's backward with the partial sums of a trained vector's gradient."""
        return max(
            (
                _at(lines, tokens) + vector_sum(rows * tokens, width, self._threads)
                for (rows, width), lines in profile.sums
            ),
            default=0.0,
        )

    def _embedding_backward(self, fixed: Parts, tokens: int, held: float) -> Parts:
        """embedding_dense_backward: a dense gradient, and its partial sums. Of a tied head it is the second one, added
        into the first before the parameter gets any; one that exists is added to last."""
        model, regime = self.model, self.regime
        others = int(model.tie_word_embeddings) + int(self.setup.accumulates)
        second = others * model.embeddings[0].parameters * regime.base
        incoming = regime.stream * model.hidden_size * tokens
        sums = embedding_sums(tokens, model.vocab_size, model.hidden_size)
        gradients = self.standing.gradients
        working = float(second + incoming + sums)
        return [*fixed, ("gradients", gradients), ("layer_working_set", working), ("logits", held)]


_CACHE_SIZE = 1024
_models: OrderedDict[tuple[Hashable, ...], tuple[ModelSpec, GpuSpec, MemoryModel]] = OrderedDict()
_BATCH_AND_SCHEDULE = {
    "model", "gpu", "micro_batch_size", "mean_len", "packing", "padding_mask", "learning_rate", "num_epochs",
    "max_steps", "warmup_ratio", "weight_decay", "lr_scheduler", "eval_fraction", "early_stopping_patience", "seed",
    "max_grad_norm", "lora_alpha", "method_options", "expandable_segments", "gradient_accumulation_steps",
}  # fmt: skip


def memory_model(plan: Plan, model: ModelSpec, gpu: GpuSpec) -> MemoryModel:
    """The model of all plans that differ from this one in batch and schedule only; kept, since planners ask for many.

    Raises:
        UnsupportedError: the plan cannot exist; the message is the reason.
        InvalidInputError: target_modules names a module that the model does not have.
    """
    key = (
        id(model), id(gpu), has_mask(plan), plan.padding_mask is False, plan.micro_batch_size > 1, plan.packing,
        plan.gradient_accumulation_steps > 1, plan.eval_fraction > 0,
        str(plan.method_options), *(v for k, v in plan.__dict__.items() if k not in _BATCH_AND_SCHEDULE),
    )  # fmt: skip
    known = _models.get(key)
    if known is not None and known[0] is model and known[1] is gpu:
        return known[2]
    memory = MemoryModel(plan, model, gpu)
    _models[key] = (model, gpu, memory)  # both are kept: nothing else can take their ids
    if len(_models) > _CACHE_SIZE:
        _models.popitem(last=False)
    return memory


def _total(parts: Parts) -> float:
    return sum(n_bytes for _, n_bytes in parts)


def _length_class(regime: Regime, seq_len: int, has_prefix: bool) -> int:
    """Flash attention's memory is linear but for rounding to rows of 128: one length serves all multiples. Without
    autocast an fp32 query takes another kernel."""
    if (
        regime.kernel == "flash"
        and (regime.autocast or regime.own_flash)
        and seq_len % FLASH_ROW_BLOCK == 0
        and not has_prefix
    ):
        return FLASH_ROW_BLOCK
    return seq_len


def _at(lines: tuple[Line, ...], tokens: int) -> float:
    return max(a * tokens + b for a, b in lines)


def _point(line: Line, tokens: int) -> float:
    return line[0] * tokens + line[1]


def _below_layers(model: ModelSpec, regime: Regime, setup: LayerSetup) -> float:
    """Bytes a token that is kept behind the embedding: what a norm read, an fp32 copy of it under autocast, and the
    mask of a dropout."""
    if not (setup.input_requires_grad or setup.trains_biases):
        return 0.0
    kept = 0
    if any(n.place == "embedding" for n in model.extra_norms):
        kept = regime.residual + (FP32 if regime.autocast and regime.residual < FP32 else 0)
    return float(model.hidden_size * (kept + model.embedding_dropout))


def _autocast_copies(model: ModelSpec, method: Method, regime: Regime, plan: Plan) -> list[tuple[float, int]]:
    """Half copies of fp32 parameters that autocast caches until its context ends, and a layer's saved tensors hold:
    bytes of each, and how many are alike. Of the base's only products' weights have any, and the head's is on its own
    tape."""
    return [
        (float(t.elements * regime.compute), t.tensors)
        for t in method.trained_for(model, plan)
        if regime.autocast and tensor_itemsize(t, regime) > regime.compute and (t.columns or not t.in_base)
    ]


def _penalty_bytes(model: ModelSpec, method: Method, regime: Regime, plan: Plan) -> float:
    """What a penalty's graph holds beside the model's own: autocast copies a weight for each time that it is read."""
    if regime.loss == "chunked":
        return 0.0  # no loss of the model's own
    weights, made = method.penalty_elements(model, plan)
    itemsize = regime.compute if regime.autocast else regime.adapter
    return float((2 * weights if regime.adapter > itemsize else 0) * itemsize + made * itemsize)


def _assumptions(plan: Plan, model: ModelSpec, regime: Regime, hardware: Hardware) -> tuple[str, ...]:
    mask = "with" if regime.masked else "without"
    said = [
        *hardware.assumptions,
        *model.notes,
        f"every micro-batch may be {plan.micro_batch_size} x {plan.seq_len} tokens: the longest decides",
        f"attention runs in the {regime.kernel} kernel, {mask} a padding mask",
    ]
    if sequences_per_example(plan) > 1:
        said.append(f"an example becomes {sequences_per_example(plan)} sequences: the chosen and the rejected one")
    if passes_without_gradient(plan):
        where = "a second model on the card" if holds_reference(plan) else "the same model without its adapter"
        said.append(f"the reference policy is {where}")
    if plan.task == "grpo":
        said.append(
            f"completions of {completion_tokens(plan)} tokens are sampled by transformers' generate, without vLLM"
        )
    if regime.fused_kernels:
        said.append("Unsloth's kernels are modelled from their source; thirteen runs of Llama and Qwen 2.5 met it")
        if not regime.fused_layers:
            said.append("Unsloth compiles this model's own layers; they are counted uncompiled")
    elif regime.quantized and model.has_fused_experts:
        said.append("the experts are bare tensors in transformers 5: bitsandbytes leaves them in 16 bits")
    if regime.fused_ops:
        said.append(LIGER)
    if plan.sharding != "none":
        said.append(SHARDED[plan.sharding])
    return tuple(said)

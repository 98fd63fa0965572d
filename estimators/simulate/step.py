"""Training steps as transformers' Trainer runs them: forward under autocast, backward, clip, optimizer, zero."""

import contextlib
import gc
from functools import partial
from typing import Any

import torch

from estimators.batches import optimizer_steps
from estimators.methods.scalar_head import SCALAR_TASKS
from estimators.regime import Regime
from estimators.simulate import adalora, preference
from estimators.simulate.build import DTYPES, Built
from estimators.simulate.job import Job
from estimators.simulate.load import DEVICE, layer_index
from estimators.simulate.loss import Batch, loss_function
from estimators.simulate.operations import Tally
from estimators.simulate.optimizers import make_optimizer
from estimators.simulate.tracker import Tracker
from estimators.simulate.unsloth_kernels import shared_weights
from estimators.simulate.unsloth_loss import unsloth_loss
from estimators.simulate.zero import Zero
from estimators.tasks import sequences_per_example
from profiles.model import ModelSpec
from profiles.plan import Plan


def run_steps(built: Built, job: Job, regime: Regime, tracker: Tracker, tally: Tally) -> None:
    """Run the job's optimizer steps; `tally` gets the last one's operations."""
    plan, spec = job.plan, job.model
    token_loss = spec.kind == "causal-lm" and plan.task not in SCALAR_TASKS
    if plan.task in preference.TASKS:
        loss_of = preference.preference_loss(built.model, built.reference, plan, regime, tracker)
    else:
        loss_of = loss_function(
            regime.loss if token_loss else "full",
            built.model,
            tracker,
            use_cache=regime.use_cache,
            to_fp32=regime.outputs_to_fp32 and regime.autocast,
            unsloth=partial(unsloth_loss, budget=regime.loss_budget, equal=regime.equal_lengths)
            if regime.fused_kernels
            else None,
        )
    zero = Zero(built.parameters, plan, tracker) if plan.sharding in ("zero1", "zero2") else None
    optimizer = make_optimizer(plan, built.model if zero is None else zero.module)
    gc.collect()
    gc.freeze()  # a step's own cycles are collected after it, not at random, and nothing else is looked at
    outputs: Any = None
    if regime.evaluates_logits:
        _evaluate(built, job, regime, tracker)
    steps = optimizer_steps(plan, job.batches)
    for step, micro_batches in enumerate(steps):
        tracker.step = step
        tracker.tally = tally if step == len(steps) - 1 else None
        if step and job.zero_grad == "start":
            _zero(plan, optimizer, tracker)
        for i, (rows, length) in enumerate(micro_batches):
            if plan.sharding == "fsdp2":  # Accelerator.no_sync: whole gradients stay on the card until the last
                built.model.set_requires_gradient_sync(i == len(micro_batches) - 1)
            tracker.enter("data")
            tally.restart()
            batch = _batch(plan, spec, rows, length)
            tracker.name(batch.values(), "inputs")
            if not regime.keep_outputs:
                outputs = None
            tracker.enter("forward")
            with _autocast(regime):
                outputs, loss = loss_of(batch)
            if plan.method == "adalora" and regime.loss == "fused":
                loss = loss + adalora.penalty(built.model)
            _name_cache(outputs, tracker)
            tracker.name(shared_weights(), "dequantized_weights")
            del batch
            if not regime.keep_outputs:
                outputs = None
            tracker.enter("loss_backward")
            if zero is not None:
                zero.before_backward()
            loss.register_hook(_lift_in_this_thread)
            loss.backward()
            loss = loss.detach()
            if zero is not None:
                zero.after_backward()
            _name_gradients(built, tracker)
        if zero is not None:
            tracker.enter("clip")
            zero.before_step()
        _update(built, plan, optimizer, tracker, clip=zero is None)
        if zero is not None:
            zero.after_step()
        if job.zero_grad == "end":
            _zero(plan, optimizer, tracker)
        if job.release_outputs:
            outputs = None
        gc.collect()
    if regime.evaluates_logits:
        _evaluate(built, job, regime, tracker)


def _autocast(regime: Regime) -> contextlib.AbstractContextManager[Any]:
    if not regime.autocast:
        return contextlib.nullcontext()
    context: contextlib.AbstractContextManager[Any] = torch.autocast("cuda", dtype=DTYPES[regime.compute_dtype])
    return context


def _evaluate(built: Built, job: Job, regime: Regime, tracker: Tracker) -> None:
    """One held-out row, as emitted projects evaluate before the first step and after the last: the model's own loss
    over all logits, without gradients."""
    tracker.evaluates = True
    tracker.enter("evaluation")
    built.model.eval()
    loss_of = loss_function("full", built.model, tracker, use_cache=False, to_fp32=regime.outputs_to_fp32)
    with torch.no_grad(), _autocast(regime):
        loss_of(_batch(job.plan, job.model, 1, job.plan.seq_len))
    built.model.train()
    tracker.evaluates = False


def _lift_in_this_thread(_: torch.Tensor) -> None:
    """Numbers that a recomputed layer makes tensors of move to the device as fakes; FakeTensorMode says so only to the
    thread that enters it, and autograd has threads of its own."""
    torch._C._set_only_lift_cpu_tensors(True)


def _update(built: Built, plan: Plan, optimizer: Any, tracker: Tracker, *, clip: bool) -> None:
    tracker.enter("clip")
    if plan.max_grad_norm and clip:  # DeepSpeed scales its own partition in place
        torch.nn.utils.clip_grad_norm_(built.parameters, plan.max_grad_norm)
    tracker.enter("optimizer")
    optimizer.step()
    for parameter, state in optimizer.state.items():
        layer = tracker.layer_of(parameter)
        tracker.name([x for x in state.values() if isinstance(x, torch.Tensor)], "optimizer_states", layer)
    if plan.method == "adalora":
        tracker.name(adalora.update_scores(built.model), "optimizer_states")


def _zero(plan: Plan, optimizer: Any, tracker: Tracker) -> None:
    tracker.enter("zero")
    optimizer.zero_grad(set_to_none=plan.zero_grad_set_to_none)


def _batch(plan: Plan, spec: ModelSpec, rows: int, length: int) -> Batch:
    if plan.task in preference.TASKS:
        return preference.preference_batch(plan, rows, length)
    rows *= sequences_per_example(plan)
    tokens = torch.ones(rows, length, dtype=torch.long).to(DEVICE)
    batch = {"input_ids": tokens}
    if not plan.packing and plan.attention != "flash_attention_2":  # that kernel takes lengths, no mask
        batch["attention_mask"] = torch.ones(rows, length, dtype=torch.long).to(DEVICE)
    one_label = plan.task in SCALAR_TASKS
    shape = (rows,) if one_label else (rows, length)
    batch["labels"] = torch.ones(shape, dtype=torch.long).to(DEVICE)
    return batch


def _name_gradients(built: Built, tracker: Tracker) -> None:
    for name, parameter in built.model.named_parameters():
        if parameter.grad is not None:
            index = layer_index(name, built.layers)
            tracker.name([parameter.grad], "gradients", -1 if index is None else index)


def _name_cache(outputs: Any, tracker: Tracker) -> None:
    cache = getattr(outputs, "past_key_values", None)
    for layer in getattr(cache, "layers", ()):
        tracker.name([getattr(layer, "keys", None), getattr(layer, "values", None)], "kv_cache")

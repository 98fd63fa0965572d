"""Preference losses: TRL's own DPO, KTO and ORPO trainers on a stand-in for all but their arithmetic, and
LLaMA-Factory's log probabilities."""

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch

from estimators.regime import Regime
from estimators.simulate.load import DEVICE
from estimators.simulate.loss import Batch, LossFunction, base_model, silence_fused_kernels
from estimators.simulate.tracker import Tracker
from estimators.tasks import sequences_per_example
from profiles.plan import Plan

TASKS = ("dpo", "orpo", "kto")
BETA = 0.1


def preference_batch(plan: Plan, examples: int, length: int) -> Batch:
    """Ids, masks and labels as the platform's collator gives them, all tokens learned."""

    def ones(rows: int) -> torch.Tensor:
        return torch.ones(rows, length, dtype=torch.long).to(DEVICE)

    rows = examples * sequences_per_example(plan)
    if plan.platform == "llamafactory" or plan.task != "orpo":
        batch = {"input_ids": ones(rows), "attention_mask": ones(rows)}
        batch["labels" if plan.platform == "llamafactory" else "completion_mask"] = ones(rows)
    else:
        parts = ("input_ids", "attention_mask", "labels")
        return {f"{side}_{part}": ones(examples) for side in ("chosen", "rejected") for part in parts}
    if plan.task == "kto":
        batch |= {f"KL_{name}": ones(rows) for name in batch}
        batch["label"] = torch.ones(rows, dtype=torch.bool).to(DEVICE)
    return batch


def preference_loss(model: Any, reference: Any, plan: Plan, regime: Regime, tracker: Tracker) -> LossFunction:
    """Return batch -> (None, loss). `reference`: the second model, None where the adapter is switched off."""
    if plan.platform == "llamafactory":
        return _log_probs(model, reference, plan, to_fp32=regime.autocast)
    if plan.task == "orpo":
        return _orpo(model, to_fp32=regime.autocast)
    return _trl(model, reference, plan, tracker)


def _trl(model: Any, reference: Any, plan: Plan, tracker: Tracker) -> LossFunction:
    """DPOTrainer._compute_loss and KTOTrainer._compute_loss of TRL 1.16."""
    import trl
    import trl.trainer.utils as utils

    silence_fused_kernels(tracker)
    outputs = ("log_probs", "entropy", "mean_logits", *(("is_top1",) if plan.task == "dpo" else ()))
    utils.add_fused_lm_head(base_model(model), outputs=outputs)
    if reference is not None:
        utils.add_fused_lm_head(reference)
    kind = trl.DPOTrainer if plan.task == "dpo" else trl.KTOTrainer
    trainer = _without_init(
        kind, model, ref_model=reference, precompute_ref_logps=False, ld_alpha=None, f_divergence_type="reverse_kl",
        loss_types=["sigmoid"], loss_weights=[1.0], loss_type="kto", calculate_KL=True, desirable_weight=1.0,
        undesirable_weight=1.0, label_smoothing=0.0, use_weighting=False, _total_train_tokens=0, _tp_size=1,
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
    )  # fmt: skip

    def loss(batch: Batch) -> tuple[Any, torch.Tensor]:
        return None, trainer._compute_loss(model, batch, False)

    return loss


def _orpo(model: Any, *, to_fp32: bool) -> LossFunction:
    """ORPOTrainer.get_batch_loss_metrics of TRL 1.16, its Triton kernel as one that allocates the same."""
    import trl.experimental.orpo.orpo_trainer as orpo

    orpo.selective_log_softmax = lambda logits, index: _Gathered.apply(logits, index)
    trainer = _without_init(orpo.ORPOTrainer, model, is_encoder_decoder=False, padding_value=0)
    forward = _converted(model, to_fp32)

    def loss(batch: Batch) -> tuple[Any, torch.Tensor]:
        return None, trainer.get_batch_loss_metrics(forward, batch)[0]

    return loss


def _without_init(kind: Any, model: Any, **attributes: Any) -> Any:
    """A trainer with only what its loss reads: data, tokenizer and optimizer are none of it."""
    trainer = kind.__new__(kind)
    accelerator = SimpleNamespace(
        device=torch.device(DEVICE), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    metrics: dict[str, Any] = {"train": defaultdict(list)}
    vars(trainer).update(
        model=model, accelerator=accelerator, beta=BETA, aux_loss_enabled=False, _metrics=metrics, **attributes
    )
    return trainer


class _Gathered(torch.autograd.Function):  # type: ignore[misc]
    """trl/kernels/logprob_entropy.py: keeps the logits and four numbers a row, makes their gradient in one piece."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return a number a row."""
        numbers = [torch.empty(logits.shape[:-1], dtype=torch.float32, device=logits.device) for _ in range(4)]
        ctx.save_for_backward(logits, index, *numbers[2:])
        return numbers[0]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """A gradient of the logits' size."""
        return torch.empty_like(ctx.saved_tensors[0], memory_format=torch.contiguous_format), None


def _converted(model: Any, to_fp32: bool) -> Callable[..., Any]:
    """accelerate's convert_outputs_to_fp32 around the model's forward."""
    from accelerate.utils.operations import convert_to_fp32

    return (lambda *args, **kwargs: convert_to_fp32(model(*args, **kwargs))) if to_fp32 else model


def _log_probs(model: Any, reference: Any, plan: Plan, *, to_fp32: bool) -> LossFunction:
    """LLaMA-Factory 0.9.5 train/dpo/trainer.py and train/kto/trainer.py, which need another TRL than is installed."""

    def run(forward: Any, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits = forward(input_ids=ids, attention_mask=mask, return_dict=True, use_cache=False).logits.to(torch.float32)
        wanted = labels[:, 1:].clone()
        probs = torch.gather(logits[:, :-1, :].log_softmax(-1), dim=2, index=wanted.unsqueeze(2)).squeeze(2)
        return probs.sum(-1), logits

    def whole(forward: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        probs, logits = run(forward, batch["input_ids"], batch["attention_mask"], batch["labels"])
        if plan.task != "kto":
            return probs, *logits.split(len(logits) // 2)
        with torch.no_grad():
            run(forward, batch["KL_input_ids"], batch["KL_attention_mask"], batch["KL_labels"])
        return probs, logits[batch["label"]]

    forward = _converted(model, to_fp32)

    def loss(batch: Batch) -> tuple[Any, torch.Tensor]:
        probs, *_held = whole(forward, batch)
        if plan.task != "orpo":
            with torch.no_grad():
                if reference is None:
                    with model.disable_adapter():
                        whole(forward, batch)
                else:
                    whole(_converted(reference, to_fp32), batch)
        return None, -torch.nn.functional.logsigmoid(probs).mean()

    return loss

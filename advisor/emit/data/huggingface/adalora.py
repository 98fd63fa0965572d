"""What AdaLoRA needs beyond its PEFT config: ranks reallocated while training, and the penalty that TRL leaves out."""

import os

import torch
from transformers import TrainerCallback


class RankAllocation(TrainerCallback):
    """Prunes ranks from init_r to target_r over the run.

    `warmup` and `final`: the shares of all steps before the pruning begins and after it ends (PEFT's tinit, tfinal).
    """

    def __init__(self, warmup, final):
        self.warmup, self.final = warmup, final

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Set the schedule: only now is the number of steps known."""
        adalora = model.base_model
        config = adalora.peft_config["default"]
        config.tinit = int(state.max_steps * self.warmup)
        config.tfinal = int(state.max_steps * self.final)
        adalora.rankallocator.set_total_step(state.max_steps)

    def on_optimizer_step(self, args, state, control, model=None, **kwargs):
        """Reallocate: gradients are still there in this hook, and in no later one."""
        model.base_model.update_and_allocate(state.global_step + 1)


WHOLE = "adalora.pt"  # in a checkpoint: the adapter at its full rank, and the scores that ranks are given by
SCORES = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # of PEFT's rank allocator


def adalora_trainer(kind):
    """`kind`, a trainer of TRL's, with the penalty."""

    class AdaLoraTrainer(kind):
        """Adds the orthogonality penalty. PEFT adds it to outputs.loss, which TRL's losses do not read.

        PEFT saves adapters cut to their present ranks, which no longer fit the model that a run resumes with:
        checkpoints get the whole ones too.
        """

        def _save_optimizer_and_scheduler(self, output_dir):
            super()._save_optimizer_and_scheduler(output_dir)
            if self.args.should_save:
                model = self.accelerator.unwrap_model(self.model)
                weights = {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}
                scores = {name: getattr(model.base_model.rankallocator, name) for name in SCORES}
                ranks = model.peft_config["default"].rank_pattern
                torch.save({"weights": weights, "scores": scores, "ranks": ranks}, os.path.join(output_dir, WHOLE))

        def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
            model = self.accelerator.unwrap_model(model or self.model)
            saved = torch.load(os.path.join(resume_from_checkpoint, WHOLE), map_location=self.args.device)
            model.load_state_dict(saved["weights"], strict=False)
            for name, value in saved["scores"].items():
                setattr(model.base_model.rankallocator, name, value)
            model.peft_config["default"].rank_pattern = saved["ranks"]

        def _load_best_model(self):
            self._load_from_checkpoint(self.state.best_model_checkpoint)

        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            """The loss of the task plus orth_reg_weight times the mean of ||A A^T - I|| and ||B^T B - I||."""
            answer = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
            if not model.training:  # the evaluation loss stays comparable with that of other methods
                return answer
            loss, rest = (answer[0], answer[1:]) if return_outputs else (answer, ())
            config = self.accelerator.unwrap_model(model).peft_config["default"]
            penalties = []
            for name, p in model.named_parameters():
                if "lora_A" in name or "lora_B" in name:
                    product = p @ p.T if "lora_A" in name else p.T @ p
                    penalties.append(torch.linalg.matrix_norm(product - torch.eye(len(product)).to(product)))
            penalty = config.orth_reg_weight * torch.stack(penalties).mean()
            # Losses of accumulated micro-batches are summed when num_items_in_batch is given, those of whole answers
            # averaged.
            summed = num_items_in_batch is not None and self.loss_is_scaled_for_ga is not False
            share = self.current_gradient_accumulation_steps if summed else 1
            loss = loss + penalty / share
            return (loss, *rest) if return_outputs else loss

    return AdaLoraTrainer

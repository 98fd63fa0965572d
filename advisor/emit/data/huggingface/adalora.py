"""What AdaLoRA needs beyond its PEFT config: ranks reallocated while training, and the penalty that TRL leaves out."""

import torch
from transformers import TrainerCallback
from trl import SFTTrainer


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


class AdaLoraTrainer(SFTTrainer):
    """Adds the orthogonality penalty. PEFT adds it to outputs.loss, which TRL's fused loss does not read."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The loss of SFTTrainer plus orth_reg_weight times the mean of ||A A^T - I|| and ||B^T B - I||."""
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
        # Losses of accumulated micro-batches are summed when num_items_in_batch is given.
        share = self.current_gradient_accumulation_steps if num_items_in_batch is not None else 1
        loss = loss + penalty / share
        return (loss, *rest) if return_outputs else loss

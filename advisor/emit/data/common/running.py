"""Begin or resume, train, stop cleanly, evaluate and save."""

import json

import torch
from progress import CHECKPOINTS, last_checkpoint
from transformers import TrainerCallback


class AllStepsDone(Exception):  # noqa: N818 - it is no error
    """There is nothing left to train."""


class LastStep(TrainerCallback):
    """Ends a training that is resumed after its last step: transformers 5.23 would train one step more."""

    def on_step_begin(self, args, state, control, **kwargs):
        """Before anything of the step is done."""
        if state.global_step >= state.max_steps:
            raise AllStepsDone


def find_checkpoint(resume):
    """The newest complete checkpoint, None for a new run."""
    if not resume:
        if any(CHECKPOINTS.glob("checkpoint-*")):  # of two runs in one folder a resume could take either
            raise SystemExit("runs/ holds an earlier run: add --resume to go on with it, or move runs/ away.")
        return None
    return last_checkpoint()


def run(trainer, progress, checkpoint):
    """Train to the end and save the result to model/; exit with 130 where somebody asked for a stop."""
    trainer.add_callback(LastStep())
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except AllStepsDone:
        if trainer.args.load_best_model_at_end and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
        trainer.callback_handler.on_train_end(trainer.args, trainer.state, trainer.control)
    except torch.OutOfMemoryError:
        progress.write("end", status="out-of-memory", step=trainer.state.global_step)
        raise
    if progress.stopping:
        progress.write("end", status="stopped", step=trainer.state.global_step)
        print("Stopped. `python train.py --resume` goes on from the checkpoint.")
        raise SystemExit(130)
    history = trainer.state.log_history
    evaluated = any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in history)
    if trainer.eval_dataset is not None and (trainer.args.load_best_model_at_end or not evaluated):
        trainer.evaluate()
    trainer.save_model("model")
    progress.write("end", status="finished", step=trainer.state.global_step)
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    if progress.main:
        print(json.dumps({"steps": trainer.state.global_step, "eval_losses": losses}))

"""Begin or resume, train, stop cleanly, evaluate and save."""

import json
from pathlib import Path

import torch

CHECKPOINTS = Path("runs/checkpoints")


def find_checkpoint(resume):
    """The newest complete checkpoint, None for a new run. trainer_state.json is written last: a folder without it was
    cut off."""
    if not resume:
        if any(CHECKPOINTS.glob("checkpoint-*")):  # of two runs in one folder a resume could take either
            raise SystemExit("runs/ holds an earlier run: add --resume to go on with it, or move runs/ away.")
        return None
    complete = [path.parent for path in CHECKPOINTS.glob("checkpoint-*/trainer_state.json")]
    if not complete:
        raise SystemExit("There is no checkpoint to resume from: run without --resume.")
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))


def run(trainer, progress, checkpoint):
    """Train to the end and save the result to model/; exit with 130 where somebody asked for a stop."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
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
    print(json.dumps({"steps": trainer.state.global_step, "eval_losses": losses}))

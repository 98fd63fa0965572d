"""Fine-tune the model of config.yaml on data/train.jsonl: `python train.py`, or `python train.py --resume`.

Progress goes to runs/metrics.jsonl, checkpoints to runs/checkpoints, the result to model/.
Ctrl-C stops after the step at hand, with a checkpoint.
"""

import argparse
import os
from pathlib import Path

import yaml

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to this folder
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL tells the hub of each run otherwise
os.environ.setdefault("UNSLOTH_DISABLE_STATISTICS", "1")
os.environ.setdefault("TENSORBOARD_LOGGING_DIR", "runs/tensorboard")
CONFIG = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
# Unsloth turns expandable segments on wherever nothing is set; torch reads it when it is imported
os.environ.setdefault("PYTORCH_ALLOC_CONF", f"expandable_segments:{CONFIG['expandable_segments']}")

import unsloth  # noqa: E402, F401  comes first: it rewrites transformers, TRL and PEFT as they are imported
from general import GeneralText  # noqa: E402
from precision import DTYPES, choose_precision  # noqa: E402
from progress import CHECKPOINTS, Progress  # noqa: E402
from rows import load_rows  # noqa: E402
from running import find_checkpoint, run  # noqa: E402
from transformers import EarlyStoppingCallback  # noqa: E402
from trl import SFTConfig, SFTTrainer  # noqa: E402
from unsloth import FastLanguageModel  # noqa: E402


def main(resume):
    """Load, train, save."""
    checkpoint = find_checkpoint(resume)
    training = CONFIG["training"]
    precision = choose_precision(CONFIG["precision"])
    model, tokenizer = FastLanguageModel.from_pretrained(dtype=DTYPES[precision], **CONFIG["model"])
    if CONFIG["adapter"] is not None:
        model = FastLanguageModel.get_peft_model(model, **CONFIG["adapter"])
    train_rows = load_rows("data/train.jsonl", tokenizer, training)
    eval_rows = load_rows("data/eval.jsonl", tokenizer, training)
    if eval_rows is None:  # nothing held out: nothing to evaluate on
        training.update(eval_strategy="no", eval_on_start=False, load_best_model_at_end=False)
    progress = Progress()
    callbacks = [progress, GeneralText(progress)]
    if CONFIG["early_stopping_patience"] and eval_rows is not None:
        callbacks.append(EarlyStoppingCallback(CONFIG["early_stopping_patience"]))
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=str(CHECKPOINTS), bf16=precision == "bf16", fp16=precision == "fp16", **training),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    run(trainer, progress, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune the model of config.yaml.")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    main(parser.parse_args().resume)

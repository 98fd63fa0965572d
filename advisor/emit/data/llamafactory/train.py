"""Fine-tune by train.yaml with LLaMA-Factory: `python train.py`, or `python train.py --resume`.

Progress goes to runs/metrics.jsonl, checkpoints to runs/checkpoints, the result to model/.
Ctrl-C stops after the step at hand, with a checkpoint.
"""

import argparse
import json
import os
from pathlib import Path

import yaml

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to this folder
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # TRL tells the hub of each run otherwise
os.environ.setdefault("TENSORBOARD_LOGGING_DIR", "runs/tensorboard")
ARGUMENTS = yaml.safe_load(Path("train.yaml").read_text(encoding="utf-8"))
PLAN = json.loads(Path("plan.json").read_text(encoding="utf-8"))["plan"]
if PLAN["expandable_segments"]:  # torch reads it when it is imported
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
if "WORLD_SIZE" not in os.environ:  # one process: LLaMA-Factory refuses to spread it over several cards
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")

import torch  # noqa: E402
from general import GeneralText  # noqa: E402
from llamafactory.data.template import TEMPLATES  # noqa: E402
from llamafactory.train.callbacks import PissaConvertCallback  # noqa: E402
from llamafactory.train.tuner import run_exp  # noqa: E402
from progress import CHECKPOINTS, Progress, last_checkpoint  # noqa: E402
from transformers import AutoConfig, AutoTokenizer, Trainer, TrainerCallback  # noqa: E402

RESULT = Path("model")
STORED = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class Run(Progress):
    """Progress that ends the process when a stop has its checkpoint: LLaMA-Factory would save and evaluate first."""

    def on_train_end(self, args, state, control, **kwargs):
        """Leave now, or remember how far it went."""
        if self.stopping:
            self.write("end", status="stopped", step=state.global_step)
            print("Stopped. `python train.py --resume` goes on from the checkpoint.")
            raise SystemExit(130)


def fit_machine():
    """Take what this machine has where it lacks the precision or the GPU of train.yaml; LLaMA-Factory would refuse."""
    if not torch.cuda.is_available():
        best, supported = None, ("bf16",)
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        best, supported = "bf16", ("bf16", "fp16")
    else:
        best, supported = "fp16", ("fp16",)
    ARGUMENTS["use_cpu"] = not torch.cuda.is_available()
    wanted = next((name for name in ("bf16", "fp16") if ARGUMENTS.get(name)), None)
    if wanted not in (None, *supported):
        ARGUMENTS.update(bf16=best == "bf16", fp16=best == "fp16")
        print(f"note: no {wanted} on this machine, computing in {best or 'fp32'}; memory and speed will differ")


def fit_model():
    """What only the model's own files can tell."""
    name = ARGUMENTS["model_name_or_path"]
    stored, planned = AutoConfig.from_pretrained(name).dtype, STORED.get(PLAN["quantization"])
    half = next((STORED[key] for key in ("bf16", "fp16") if ARGUMENTS.get(key)), None)
    if ARGUMENTS.get("quantization_bit") and half is not None and stored not in (None, half, torch.float32):
        raise SystemExit(
            f"What is not quantised stays in {stored}, as it is stored, and autocast in {half} fails over that.\n"
            f"Take a card or a checkpoint of the other kind."
        )
    if planned is not None and stored not in (None, planned):
        print(f"note: the weights are stored and loaded in {stored}, not {planned}; memory and speed may differ")
    tokenizer = AutoTokenizer.from_pretrained(name)
    if ARGUMENTS["template"] is None and tokenizer.chat_template is None:
        raise SystemExit(
            "The rows are conversations, but this model's tokenizer has no chat template.\n"
            "Take an instruction-tuned model, or name a template of LLaMA-Factory's in train.yaml."
        )
    if ARGUMENTS["template"] == "empty":  # it lacks what belongs around a plain text: its begin and its end
        empty = TEMPLATES["empty"]
        empty.format_prefix.slots = [tokenizer.decode(tokenizer.encode(""))]
        empty.format_assistant.slots = ["{{content}}", {"eos_token"}]


def end_at_last_step():
    """A run that is resumed after its last step is at its end: transformers 5.6 would train one step more."""
    run_epoch = Trainer._run_epoch

    def run_what_is_left(self, *args, **kwargs):
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            run_epoch(self, *args, **kwargs)

    Trainer._run_epoch = run_what_is_left


def keep_first_adapter():
    """PiSSA's result is the trained adapter less the first one: LLaMA-Factory would take the resumed one for that."""
    if (CHECKPOINTS / "pissa_init").is_dir():
        PissaConvertCallback.on_train_begin = TrainerCallback.on_train_begin


def bring_result():
    """Move what LLaMA-Factory left beside the checkpoints to model/; a converted PiSSA adapter in place of the raw."""
    RESULT.mkdir(exist_ok=True)
    for folder in (CHECKPOINTS, CHECKPOINTS / "pissa_converted"):
        for path in folder.glob("*"):
            if path.is_file():
                os.replace(path, RESULT / path.name)


def main(resume):
    """Check, train, bring the result to its place."""
    if not resume and any(CHECKPOINTS.glob("checkpoint-*")):  # LLaMA-Factory would go on with it, unasked
        raise SystemExit("runs/ holds an earlier run: add --resume to go on with it, or move runs/ away.")
    if set("*?[]") & set(os.getcwd()):
        raise SystemExit(
            "LLaMA-Factory takes * ? [ ] in a folder's name for a pattern: rename this folder, or move it."
        )
    if resume:
        ARGUMENTS["resume_from_checkpoint"] = last_checkpoint()
        keep_first_adapter()
    fit_machine()
    fit_model()
    end_at_last_step()
    run = Run()
    try:
        run_exp(ARGUMENTS, callbacks=[run, GeneralText(run)])
    except torch.OutOfMemoryError:
        run.write("end", status="out-of-memory", step=run.logged_step)
        raise
    if run.main:
        bring_result()
        state = json.loads((RESULT / "trainer_state.json").read_text(encoding="utf-8"))
        run.write("end", status="finished", step=state["global_step"])
        losses = [entry["eval_loss"] for entry in state["log_history"] if "eval_loss" in entry]
        print(json.dumps({"steps": state["global_step"], "eval_losses": losses}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune by train.yaml.")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    main(parser.parse_args().resume)

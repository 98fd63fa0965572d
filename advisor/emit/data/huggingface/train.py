"""Fine-tune the model of config.yaml on data/train.jsonl: `python train.py`, or `python train.py --resume`.

Progress goes to runs/metrics.jsonl, checkpoints to runs/checkpoints, the result to model/.
Ctrl-C stops after the step at hand, with a checkpoint.
"""

import argparse
import json
import os
from pathlib import Path

import yaml

os.chdir(Path(__file__).resolve().parent)  # every path below is relative to this folder
CONFIG = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
if CONFIG["expandable_segments"]:  # torch reads it when it is imported
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import torch  # noqa: E402
from accelerate import PartialState  # noqa: E402
from datasets import Dataset  # noqa: E402
from peft import get_peft_config, prepare_model_for_kbit_training  # noqa: E402
from progress import AllStepsDone, LastStep, Progress  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    EarlyStoppingCallback,
    set_seed,
)
from trl import SFTConfig, SFTTrainer  # noqa: E402
from trl.chat_template_utils import get_training_chat_template  # noqa: E402

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
CHECKPOINTS = Path("runs/checkpoints")


def choose_precision(wanted):
    """'bf16', 'fp16' or 'fp32': the wanted one where this machine has it."""
    if not torch.cuda.is_available():
        best, supported = "fp32", ("bf16", "fp32")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        best, supported = "bf16", ("bf16", "fp16", "fp32")
    else:
        best, supported = "fp16", ("fp16", "fp32")
    if wanted in supported:
        return wanted
    if wanted != "auto":
        print(f"note: no {wanted} on this machine, computing in {best}; memory and speed will differ")
    return best


def load_model(precision):
    """The base model, quantised if config.yaml says so."""
    options = CONFIG["model"]
    # 16-bit weights follow the machine's 16-bit type; float32 stays.
    dtype = torch.float32 if options["dtype"] == "float32" else DTYPES[precision]
    quantization = CONFIG["quantization"]
    if quantization is not None:
        quantization = BitsAndBytesConfig(**quantization)
        quantization.bnb_4bit_compute_dtype = DTYPES[precision]
        if CONFIG["shard_quantized"]:  # FSDP flattens parameters of one dtype only
            quantization.bnb_4bit_quant_storage = DTYPES[precision]

    def load(attention):
        return AutoModelForCausalLM.from_pretrained(
            options["name_or_path"], dtype=dtype, quantization_config=quantization, attn_implementation=attention
        )

    try:
        model = load(options["attn_implementation"])
    except ImportError as error:
        if options["attn_implementation"] != "flash_attention_2":
            raise
        print(f"note: FlashAttention 2 cannot be used, taking PyTorch's attention instead ({error})")
        model = load("sdpa")
    model.config.use_cache = options["use_cache"]
    if CONFIG["kbit_prepared"]:
        model = prepare_model_for_kbit_training(
            model, use_gradient_checkpointing=CONFIG["training"]["activation_checkpointing"]
        )
    return model


def load_rows(path, tokenizer, training):
    """The rows of a JSON Lines file. The loss is taken on answers only, wherever rows tell question from answer."""
    if not Path(path).is_file():
        return None
    with open(path, encoding="utf-8") as file:  # load_dataset would take brackets in the folder's name for a pattern
        rows = Dataset.from_list([json.loads(line) for line in file])
    columns = rows.column_names
    chats = "messages" in columns or ("prompt" in columns and not isinstance(rows[0]["prompt"], str))
    if chats and tokenizer.chat_template is None:
        raise SystemExit(
            "The rows are conversations, but this model's tokenizer has no chat template.\n"
            "Take an instruction-tuned model, or rows with prompt and completion as plain text."
        )
    if "messages" not in columns:
        return rows  # prompt + completion: TRL masks the prompt by itself; text: all of it is learned
    try:
        get_training_chat_template(tokenizer)
        training["assistant_only_loss"] = True
        return rows
    except ValueError:
        # TRL cannot mark the assistant's turns of this template: learn the last answer, given all before it.
        print("note: this chat template cannot be masked by turn; of each conversation the last answer is learned")
        return rows.filter(lambda row: row["messages"][-1]["role"] == "assistant").map(
            lambda row: {"prompt": row["messages"][:-1], "completion": row["messages"][-1:]},
            remove_columns=["messages"],
        )


def is_complete(trainer_state):
    """Whether the file, which is written last of a checkpoint, is whole: a full disk cuts it short."""
    try:
        json.loads(trainer_state.read_bytes())
    except ValueError:
        return False
    return True


def last_checkpoint():
    """The newest complete checkpoint."""
    complete = [path.parent for path in CHECKPOINTS.glob("checkpoint-*/trainer_state.json") if is_complete(path)]
    if not complete:
        raise SystemExit("There is no checkpoint to resume from: run without --resume.")
    return str(max(complete, key=lambda path: int(path.name.rpartition("-")[2])))


def main(resume):
    """Load, train, save."""
    if not resume and any(CHECKPOINTS.glob("checkpoint-*")):  # of two runs in one folder a resume could take either
        raise SystemExit("runs/ holds an earlier run: add --resume to go on with it, or move runs/ away.")
    PartialState()  # picks this process's GPU before anything is loaded
    training = CONFIG["training"]
    set_seed(training["seed"])  # adapters are initialised before the trainer would do this
    precision = choose_precision(CONFIG["precision"])
    tokenizer = AutoTokenizer.from_pretrained(CONFIG["model"]["name_or_path"])
    train_rows = load_rows("data/train.jsonl", tokenizer, training)
    eval_rows = load_rows("data/eval.jsonl", tokenizer, training)
    if eval_rows is None:  # nothing held out: nothing to evaluate on
        training.update(eval_strategy="no", eval_on_start=False, load_best_model_at_end=False)
    model = load_model(precision)
    if CONFIG["method"] == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))

    trainer_class, progress = SFTTrainer, Progress()
    callbacks = [progress]
    if CONFIG["method"] == "adalora":
        from adalora import AdaLoraTrainer, RankAllocation

        trainer_class = AdaLoraTrainer
        callbacks.append(RankAllocation(**CONFIG["adalora"]))
    if CONFIG["early_stopping_patience"] and eval_rows is not None:
        callbacks.append(EarlyStoppingCallback(CONFIG["early_stopping_patience"]))
    trainer = trainer_class(
        model=model,
        args=SFTConfig(
            output_dir=str(CHECKPOINTS),
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bf16" and CONFIG["mixed_precision"],
            fp16=precision == "fp16" and CONFIG["mixed_precision"],
            **training,
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        peft_config=get_peft_config(CONFIG["peft"]) if CONFIG["peft"] else None,
        callbacks=callbacks,
    )

    # Gradient scaling (fp16) works on float32 parameters only.
    cast_to = "fp32" if precision == "fp16" else CONFIG["adapter_dtype"]
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    if cast_to:
        for parameter in trainable:
            parameter.data = parameter.data.to(DTYPES[cast_to])
    if not trainable:
        raise SystemExit(
            f"Nothing to train: the model has no parameters that {CONFIG['method']} trains"
            + (" (it has no biases)." if CONFIG["method"] == "bitfit" else ".")
        )

    trainer.add_callback(LastStep())
    try:
        trainer.train(resume_from_checkpoint=last_checkpoint() if resume else None)
    except AllStepsDone:
        if training["load_best_model_at_end"] and trainer.state.best_model_checkpoint:
            trainer._load_best_model()
    except torch.OutOfMemoryError:
        progress.write("end", status="out-of-memory", step=trainer.state.global_step)
        raise
    if progress.stopping:
        progress.write("end", status="stopped", step=trainer.state.global_step)
        print("Stopped. `python train.py --resume` goes on from the checkpoint.")
        raise SystemExit(130)
    history = trainer.state.log_history
    evaluated = any("eval_loss" in entry and entry["step"] == trainer.state.global_step for entry in history)
    if eval_rows is not None and (training["load_best_model_at_end"] or not evaluated):
        trainer.evaluate()
    trainer.save_model("model")
    progress.write("end", status="finished", step=trainer.state.global_step)
    losses = [entry["eval_loss"] for entry in history if "eval_loss" in entry]
    print(json.dumps({"steps": trainer.state.global_step, "eval_losses": losses}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune the model of config.yaml.")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    main(parser.parse_args().resume)

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
os.environ.setdefault("TENSORBOARD_LOGGING_DIR", "runs/tensorboard")
CONFIG = yaml.safe_load(Path("config.yaml").read_text(encoding="utf-8"))
if CONFIG["expandable_segments"]:  # torch reads it when it is imported
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

import task  # noqa: E402
import torch  # noqa: E402
from general import GeneralText  # noqa: E402
from peft import get_peft_config, get_peft_model, prepare_model_for_kbit_training  # noqa: E402
from precision import DTYPES, choose_precision  # noqa: E402
from processes import join_processes  # noqa: E402
from progress import CHECKPOINTS, Progress  # noqa: E402
from running import find_checkpoint, run  # noqa: E402
from transformers import AutoTokenizer, BitsAndBytesConfig, EarlyStoppingCallback, set_seed  # noqa: E402


def load_model(precision, task_options):
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
        return task.Model.from_pretrained(
            options["name_or_path"],
            dtype=dtype,
            quantization_config=quantization,
            attn_implementation=attention,
            **task_options,
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


def train_last_layers(model, count):
    """Only the last `count` layers get gradients."""
    depth = model.config.num_hidden_layers
    layers = next(m for m in model.modules() if isinstance(m, torch.nn.ModuleList) and len(m) == depth)
    model.requires_grad_(False)
    layers[-count:].requires_grad_(True)


def add_adapter(model):
    """What TRL's trainers do with `peft_config`, for a trainer that does not, or not so."""
    model = get_peft_model(model, get_peft_config(CONFIG["peft"]))
    if CONFIG["quantization"] is not None:
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    return model


def projector_class(method):
    """What the optimizer keeps of each matrix."""
    if method == "galore":
        from galore_torch.galore_projector import GaLoreProjector

        return GaLoreProjector
    from apollo_torch.random_projector import GradientProjector

    return GradientProjector


def main(resume):
    """Load, train, save."""
    checkpoint = find_checkpoint(resume)
    join_processes()
    training = CONFIG["training"]
    set_seed(training["seed"])  # adapters are initialised before the trainer would do this
    precision = choose_precision(CONFIG["precision"])
    tokenizer = AutoTokenizer.from_pretrained(CONFIG["model"]["name_or_path"])
    train_rows = task.load_data("data/train.jsonl", tokenizer, CONFIG)
    eval_rows = task.load_data("data/eval.jsonl", tokenizer, CONFIG)
    if eval_rows is None:  # nothing held out: nothing to evaluate on
        training.update(eval_strategy="no", eval_on_start=False, load_best_model_at_end=False)
    model = load_model(precision, task.model_options(train_rows))
    if CONFIG["method"] == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith(".bias"))
    elif CONFIG["method"] == "freeze":
        train_last_layers(model, CONFIG["trained_layers"])

    trainer_class, progress = task.Trainer, Progress()
    callbacks = [progress, GeneralText(progress)]
    if CONFIG["method"] == "adalora":
        from adalora import RankAllocation, adalora_trainer

        trainer_class = adalora_trainer(task.Trainer)
        callbacks.append(RankAllocation(**CONFIG["adalora"]))
    elif CONFIG["method"] == "loraplus":
        from loraplus import loraplus_trainer

        trainer_class = loraplus_trainer(task.Trainer, CONFIG["loraplus_lr_ratio"])
    elif CONFIG["method"] in ("galore", "apollo"):
        torch.serialization.add_safe_globals([projector_class(CONFIG["method"])])  # --resume meets it in checkpoints
    if CONFIG["early_stopping_patience"] and eval_rows is not None:
        callbacks.append(EarlyStoppingCallback(CONFIG["early_stopping_patience"]))
    options = task.trainer_options(tokenizer, CONFIG)
    if CONFIG["peft"] and task.ADAPTER_FIRST:
        model = add_adapter(model)
    elif CONFIG["peft"]:
        options["peft_config"] = get_peft_config(CONFIG["peft"])
    trainer = trainer_class(
        model=model,
        args=task.Arguments(
            output_dir=str(CHECKPOINTS),
            use_cpu=not torch.cuda.is_available(),
            bf16=precision == "bf16" and CONFIG["mixed_precision"],
            fp16=precision == "fp16" and CONFIG["mixed_precision"],
            **training,
        ),
        train_dataset=train_rows,
        eval_dataset=eval_rows,
        processing_class=tokenizer,
        callbacks=callbacks,
        **options,
    )

    # Gradient scaling (fp16) works on float32 parameters only.
    cast_to = "fp32" if precision == "fp16" else CONFIG["adapter_dtype"]
    trainable = [p for p in trainer.model.parameters() if p.requires_grad]
    if cast_to:
        for parameter in trainable:
            parameter.data = parameter.data.to(DTYPES[cast_to])
    if precision == "fp32":  # without autocast a layer that is trained whole takes only its own dtype
        for name, parameter in trainer.model.named_parameters():
            if "modules_to_save" in name:
                parameter.data = parameter.data.float()
    if not trainable:
        raise SystemExit(
            f"Nothing to train: the model has no parameters that {CONFIG['method']} trains"
            + (" (it has no biases)." if CONFIG["method"] == "bitfit" else ".")
        )
    run(trainer, progress, checkpoint)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fine-tune the model of config.yaml.")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    main(parser.parse_args().resume)

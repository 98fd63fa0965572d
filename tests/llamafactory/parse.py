"""Hand every emitted project on standard input (JSON lines) to LLaMA-Factory's own `get_train_args`.

Run by its own interpreter in an empty folder; under torchrun for plans of several cards. Without a GPU here, the one
thing that is changed is `use_cpu`. Prints how many were taken and, of those that were not, the first errors.
"""

import json
import os
import sys
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace

import torch
import yaml
from llamafactory.extras.misc import is_env_enabled
from llamafactory.hparams import get_train_args, parser

BUILT = parser.HfArgumentParser(parser._TRAIN_ARGS)
parser.HfArgumentParser = lambda kinds: BUILT  # built anew for each call it would take most of the time
STAGES = {"sft": "sft", "pretrain": "pt", "dpo": "dpo", "orpo": "dpo", "kto": "kto", "reward": "rm"}


def parse(files, plan):
    """The classes' own values, held against the plan."""
    arguments = yaml.safe_load(files["train.yaml"])
    arguments["use_cpu"] = True
    if "deepspeed.json" in files:
        Path("deepspeed.json").write_text(files["deepspeed.json"])
    if "accelerate.yaml" in files:
        from accelerate.commands.config.config_args import load_config_from_file

        Path("accelerate.yaml").write_text(files["accelerate.yaml"])
        assert load_config_from_file("accelerate.yaml").distributed_type.value == "FSDP"
    model, data, training, tuning, _ = get_train_args(arguments)
    assert tuning.stage in (STAGES[plan["task"]], "pt")
    assert training.per_device_train_batch_size == plan["micro_batch_size"]
    assert training.gradient_accumulation_steps == plan["gradient_accumulation_steps"]
    assert data.cutoff_len in (plan["seq_len"], plan["seq_len"] - 1)  # LLaMA-Factory takes one off a packed row
    assert bool(data.packing) == plan["packing"]
    assert model.disable_gradient_checkpointing == (plan["gradient_checkpointing"] == "none")
    assert (model.quantization_bit or 16) == {"int8": 8, "nf4": 4, "nf4-dq": 4, "fp4": 4}.get(plan["quantization"], 16)
    assert isinstance(training.learning_rate, float)
    assert 0 < training.get_warmup_steps(1000) < 1000
    if plan["sharding"].startswith("zero"):
        check_deepspeed(training, plan)


def check_deepspeed(training, plan):
    """DeepSpeed's own class takes deepspeed.json once the trainer has filled it in, as it does before it trains."""
    import deepspeed
    from deepspeed.runtime.config import DeepSpeedConfig

    filled = training.hf_deepspeed_config
    filled.trainer_config_process(training)
    filled.trainer_config_finalize(training, SimpleNamespace(config=SimpleNamespace(hidden_size=64)), 100)
    deepspeed.init_distributed(auto_mpi_discovery=False)  # over the group that is there, for its number of processes
    built = DeepSpeedConfig(filled.config)
    assert built.zero_optimization_stage == int(plan["sharding"][-1])
    assert built.train_micro_batch_size_per_gpu == plan["micro_batch_size"]
    assert built.gradient_accumulation_steps == plan["gradient_accumulation_steps"]
    for moved, part in (("offload_optimizer", "offload_optimizer"), ("offload_parameters", "offload_param")):
        device = getattr(built.zero_config, part)
        assert (device is not None and device.device == "cpu") == plan[moved]


def main():
    """Read all, parse all, on every rank; the first one tells."""
    path = Path(sys.argv[1])
    here = Path(f"rank-{os.environ.get('RANK', '0')}")
    here.mkdir()
    os.chdir(here)
    taken, errors = 0, []
    with redirect_stdout(sys.stderr):
        for line in path.open(encoding="utf-8"):
            row = json.loads(line)
            try:
                parse(row["files"], row["plan"])
                taken += 1
            except Exception as error:
                errors.append(f"{type(error).__name__}: {error}; {json.dumps(row['plan'])}")
    assert not is_env_enabled("ALLOW_EXTRA_ARGS"), "unknown keys have to be errors"
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"taken": taken, "errors": errors[:5], "failed": len(errors)}), flush=True)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


main()

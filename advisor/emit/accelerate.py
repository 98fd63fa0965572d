"""accelerate's own file for sharding and offloading: DDP, FSDP2, DeepSpeed ZeRO. Not run on GPUs by us yet."""

from typing import Any

from estimators.sharding import fsdp2_refusal
from profiles.plan import Plan


def sharding_refusal(plan: Plan) -> str | None:
    """What cannot be sharded, and offloading without anything that does it."""
    if plan.sharding == "none":
        if plan.n_gpus > 1:
            return "several cards need a sharding: ddp, fsdp2 or zero1 to zero3"
        if plan.offload_optimizer or plan.offload_parameters:
            return "offloading needs zero2 or zero3, or fsdp2 over several cards"
    if plan.sharding in ("ddp", "zero1") and (plan.offload_optimizer or plan.offload_parameters):
        return f"{plan.sharding} does not offload"
    if plan.sharding == "zero2" and plan.offload_parameters:
        return "ZeRO-2 keeps whole parameters on each card: only ZeRO-3 offloads them"
    if plan.sharding == "fsdp2" and plan.fsdp_version != 2:
        return "FSDP1 is superseded: only FSDP2 is written"
    if plan.sharding == "fsdp2" and plan.offload_optimizer != plan.offload_parameters:
        return "FSDP2 offloads parameters and optimizer states together or not at all"
    if plan.quantization == "int8" and plan.sharding in ("fsdp2", "zero3"):
        return f"int8 weights cannot be sharded by {plan.sharding}"
    return fsdp2_refusal(plan.method, plan.optimizer) if plan.sharding == "fsdp2" else None


def accelerate_config(plan: Plan) -> dict[str, Any]:
    """accelerate.yaml for `plan.n_gpus` cards of one machine."""
    # Autocast is the script's choice (bf16/fp16 of the training arguments), which overrides this.
    common = {"compute_environment": "LOCAL_MACHINE", "num_machines": 1, "num_processes": plan.n_gpus}
    if plan.sharding == "ddp":
        return {**common, "distributed_type": "MULTI_GPU"}
    if plan.sharding == "fsdp2":
        return {
            **common,
            "distributed_type": "FSDP",
            "fsdp_config": {
                "fsdp_version": 2,
                "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                "fsdp_reshard_after_forward": True,
                "fsdp_cpu_ram_efficient_loading": True,
                "fsdp_offload_params": plan.offload_parameters,
                "fsdp_state_dict_type": "FULL_STATE_DICT",
                "fsdp_activation_checkpointing": False,
            },
        }
    stage = int(plan.sharding.removeprefix("zero"))
    return {
        **common,
        "distributed_type": "DEEPSPEED",
        "deepspeed_config": {
            "zero_stage": stage,
            "offload_optimizer_device": "cpu" if plan.offload_optimizer else "none",
            "offload_param_device": "cpu" if plan.offload_parameters else "none",
            "zero3_init_flag": stage == 3,
            "zero3_save_16bit_model": stage == 3,
        },
    }

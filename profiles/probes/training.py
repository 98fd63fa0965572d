"""Real training steps of a plan: transformers, PEFT and AdamW, on random tokens; random weights where only a config is.

The loop is the Trainer's (forward, backward, clip, step, zero_grad) without its logging. The plan is taken at its word:
what it leaves open is what transformers and PEFT choose.
"""

from collections.abc import Iterator
from tempfile import TemporaryDirectory
from typing import Any

import torch

from profiles.calibration import TimedStep
from profiles.errors import UnsupportedError
from profiles.plan import FOUR_BIT, Plan
from profiles.probes.job import ProbeJob
from profiles.probes.stopwatch import Stopwatch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
SHARE = 0.5  # seconds of measuring that a step is given at least
SEED = 0
INIT_OVER_TARGET = 1.5  # AdaLoRA: PEFT's defaults are 12 and 8


def probe_steps(job: ProbeJob, watch: Stopwatch) -> Iterator[TimedStep | str]:
    """Time every plan of the job until its time is over. One that fails (memory, a library) gives its reason."""
    for plan in job.plans:
        if watch.expired:
            return
        try:
            seconds = time_plan(plan, job.device, watch)
        except Exception as error:
            yield f"{plan.method} at {plan.seq_len} tokens: {type(error).__name__}: {str(error)[:200]}"
            continue
        yield TimedStep(plan=plan, seconds=seconds)


def time_plan(plan: Plan, device: str, watch: Stopwatch) -> float:
    """Median seconds of one optimizer step. Raises UnsupportedError for a plan that this loop does not know."""
    torch.manual_seed(SEED)
    model = adapt_model(load_base(plan, device), plan)
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    shape = (plan.micro_batch_size, plan.seq_len)
    tokens = torch.randint(0, model.config.vocab_size, shape, device=device)
    autocast = torch.autocast(device, DTYPES["bf16"], enabled=device == "cuda" and plan.quantization != "fp32")
    count = 0

    def step() -> None:
        nonlocal count
        for _ in range(plan.gradient_accumulation_steps):
            with autocast:
                loss = model(input_ids=tokens, labels=tokens).loss
            (loss / plan.gradient_accumulation_steps).backward()
        if plan.max_grad_norm > 0:
            torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm)
        optimizer.step()
        if plan.method == "adalora":
            model.base_model.update_and_allocate(count)
        count += 1
        optimizer.zero_grad()

    return watch.seconds(step, share=SHARE)


def load_base(plan: Plan, device: str) -> Any:
    """The base model on `device`: from a folder, or with random weights from a config (bitsandbytes: by a folder)."""
    from transformers import AutoConfig, AutoModelForCausalLM

    attention = "sdpa" if plan.attention == "auto" else plan.attention
    dtype = DTYPES[plan.quantization if plan.quantization in DTYPES else "bf16"]
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if isinstance(plan.model, str):
        return AutoModelForCausalLM.from_pretrained(plan.model, **options, **_quantized(plan)).to(device)
    fields = {k: v for k, v in plan.model.items() if k not in ("model_type", "architectures", "dtype", "torch_dtype")}
    config = AutoConfig.for_model(plan.model["model_type"], **fields)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, **options)
    if plan.quantization in DTYPES:
        return model
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        del model
        return AutoModelForCausalLM.from_pretrained(folder, device_map=device, **options, **_quantized(plan))


def _quantized(plan: Plan) -> dict[str, Any]:
    if plan.quantization in DTYPES:
        return {}
    from transformers import BitsAndBytesConfig

    if plan.quantization not in FOUR_BIT:
        return {"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}
    nested = plan.quantization == "nf4-dq"
    kind = "fp4" if plan.quantization == "fp4" else "nf4"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type=kind, bnb_4bit_use_double_quant=nested,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    }  # fmt: skip


def adapt_model(model: Any, plan: Plan) -> Any:
    """The model with the method's trained parameters and the plan's checkpointing."""
    model.config.use_cache = plan.use_cache
    if plan.gradient_checkpointing != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
        model.enable_input_require_grads()
    if plan.method == "full":
        return model
    if plan.method == "bitfit":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.endswith("bias"))
        if not any(p.requires_grad for p in model.parameters()):
            raise UnsupportedError("this model has no biases")
        return model
    import peft

    return peft.get_peft_model(model, _peft_config(plan))


def _peft_config(plan: Plan) -> Any:
    import peft

    common: dict[str, Any] = {"task_type": "CAUSAL_LM"}
    virtual = common | {"num_virtual_tokens": plan.num_virtual_tokens}
    if plan.method == "prompt":
        return peft.PromptTuningConfig(**virtual)
    if plan.method == "prefix":
        return peft.PrefixTuningConfig(**virtual, prefix_projection=plan.prefix_projection)
    if plan.method == "ptuning":
        return peft.PromptEncoderConfig(**virtual, encoder_hidden_size=plan.encoder_hidden_size)
    common["target_modules"] = "all-linear" if "all-linear" in plan.target_modules else list(plan.target_modules)
    common |= {"lora_alpha": plan.lora_alpha or 2 * plan.lora_rank, "lora_dropout": plan.lora_dropout}
    if plan.method in ("lora", "qlora"):
        return peft.LoraConfig(**common, r=plan.lora_rank)
    if plan.method == "adalora":
        initial = plan.method_options.get("init_r", round(INIT_OVER_TARGET * plan.lora_rank))
        ranks = {"init_r": initial, "target_r": plan.lora_rank}
        return peft.AdaLoraConfig(**common, **ranks, total_step=1000)
    raise UnsupportedError(f"the steps probe does not know the method {plan.method!r}")

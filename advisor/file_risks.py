"""What is risky about a training file on a certain card: rules, one function each, over the plan that it became."""

from collections.abc import Callable, Iterator

from advisor.plans import LEARNING_RATE, MANY_EPOCHS
from advisor.readers import Finding, Reading
from advisor.readers.default_targets import DEFAULT_TARGETS
from estimators.methods import get_method
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import QUANTIZED, Plan
from profiles.units import format_bytes

LOGIT_BYTES = 4  # transformers' loss makes an fp32 copy of all logits
FAR_RATE = 10.0  # times above or below a published learning rate
Rule = Callable[[Reading, Plan, ModelSpec, Hardware], Iterator[Finding]]


def find_file_risks(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> tuple[Finding, ...]:
    """All that the rules say."""
    return tuple(finding for rule in RULES for finding in rule(reading, plan, model, hardware))


def precision(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """bf16 needs a card that has it; fp16 needs care, and cannot be what is trained."""
    gpu = hardware.gpu
    floats = {plan.quantization, plan.compute_dtype}
    if gpu.bf16 is False and "bf16" in floats and gpu.vendor != "CPU":
        yield _error("bf16", f"{gpu.name} has no bf16: the trainer stops or is very slow", "fp16 instead of bf16")
    if gpu.vendor == "CPU" and "bf16" in floats:
        yield _warning("bf16", "on a CPU transformers takes bf16 only beside use_cpu", "use_cpu: true")
    if gpu.bf16 and "fp16" in floats and gpu.vendor != "CPU":
        yield _warning("fp16", "fp16 overflows where bf16 does not, and the card has bf16", "bf16 instead of fp16")
    if plan.quantization == "fp16" and get_method(plan.method).trains_base and plan.platform != "llamafactory":
        yield _error("fp16", "torch's GradScaler refuses gradients of fp16 weights", "float32 weights, or bf16")


def attention(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """FlashAttention 2 is a package of its own and runs on compute capability 8.0 and later."""
    if plan.attention != "flash_attention_2":
        return
    if hardware.gpu.flash_attention_2 is False:
        yield _error(
            "attention", f"FlashAttention 2 does not run on {hardware.gpu.name}", "sdpa, which comes with torch"
        )
        return
    missing = "goes on without it" if reading.format == "llamafactory" else "stops with an ImportError"
    yield _warning("attention", f"where the package flash-attn is not installed, {reading.release} {missing}")


def evaluation(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Evaluation takes batches of its own, eight sequences unless the file says otherwise."""
    size = reading.eval_batch_size
    if size is None or size <= plan.micro_batch_size:
        return
    text = f"evaluation takes {size} sequences at a time, training {plan.micro_batch_size}"
    if plan.loss_kernel == "full" or (plan.loss_kernel is None and plan.platform == "llamafactory"):
        logits = size * plan.seq_len * model.vocab_size * LOGIT_BYTES
        text += f": its logits alone take up to {format_bytes(logits)} in fp32"
    key = "eval_batch_size" if reading.format == "axolotl" else "per_device_eval_batch_size"
    yield _warning(key, text, f"{key}: {plan.micro_batch_size}")


def length(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Sequences beyond the positions that the model was made for."""
    limit = model.max_position_embeddings
    if plan.seq_len > limit:
        yield _warning("seq_len", f"{plan.seq_len} tokens are beyond the {limit} positions of {model.name}")


def placement(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Sharding and offloading that this many cards cannot do."""
    if reading.sharding not in (None, "none", "ddp") and plan.n_gpus == 1:
        offloads = " (what it moves to main memory is counted on the card)" if reading.offload_optimizer else ""
        yield _warning("sharding", f"{reading.sharding} shards nothing on one card{offloads}", "--n-gpus says how many")


def repetition(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Many epochs that nothing watches."""
    if plan.num_epochs > MANY_EPOCHS and reading.eval_batch_size is None and plan.max_steps is None:
        yield _warning(
            "epochs",
            f"{plan.num_epochs:g} epochs and no evaluation: overfitting goes unseen (1 to {MANY_EPOCHS} are usual)",
            "hold some examples back",
        )


def learning_rate(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Ten times off a published starting point for the method."""
    usual = LEARNING_RATE.get(plan.method)
    if usual is None or plan.learning_rate is None:
        return
    ratio = plan.learning_rate / usual
    if ratio >= FAR_RATE or ratio <= 1 / FAR_RATE:
        word = "above" if ratio > 1 else "below"
        title = get_method(plan.method).title
        yield _warning(
            "learning_rate", f"{plan.learning_rate:g} is far {word} what is published for {title} ({usual:g})"
        )


def targets(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """PEFT's default modules are few, and not known for every model."""
    if not reading.targets_by_model:
        return
    if model.model_type in DEFAULT_TARGETS:
        names = ", ".join(DEFAULT_TARGETS[model.model_type])
        yield _warning(
            "lora_target_modules",
            f"is not given: PEFT adapts {names} alone; all linear layers match full fine-tuning better",
            "lora_target_modules: [all-linear]",
        )
    else:
        yield _error(
            "lora_target_modules",
            f"is not given, and PEFT knows no default for {model.model_type}",
            "lora_target_modules: [all-linear]",
        )


def fast_path(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """Unsloth's fused LoRA wants no dropout."""
    if plan.platform == "unsloth" and plan.lora_dropout > 0 and plan.method != "full":
        yield _warning("lora_dropout", "with dropout Unsloth's fused LoRA layers do not run", "lora_dropout=0")


def quantised_start(reading: Reading, plan: Plan, model: ModelSpec, hardware: Hardware) -> Iterator[Finding]:
    """8-bit bases and sharding of weights do not go together."""
    if plan.quantization == "int8" and plan.sharding in ("fsdp2", "zero3"):
        yield _error("quantization", f"an int8 base cannot be sharded by {plan.sharding}", "4 bits, or zero2")
    if plan.quantization in QUANTIZED and plan.kbit_prepared:
        yield _warning("quantization", "what is not quantised becomes fp32, which large vocabularies pay for")


RULES: tuple[Rule, ...] = (
    precision,
    attention,
    evaluation,
    length,
    placement,
    repetition,
    learning_rate,
    targets,
    fast_path,
    quantised_start,
)


def _error(key: str, text: str, fix: str = "") -> Finding:
    return Finding(level="error", key=key, text=text, fix=fix)


def _warning(key: str, text: str, fix: str = "") -> Finding:
    return Finding(level="warning", key=key, text=text, fix=fix)

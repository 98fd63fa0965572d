"""What is risky about a training file on a certain card: rules, one function each, over the plan that it became."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from advisor.plans import LEARNING_RATE, MANY_EPOCHS
from advisor.readers import Finding, Reading, get_reader
from advisor.readers.default_targets import DEFAULT_TARGETS
from estimators.logits import evaluation_bytes
from estimators.methods import get_method
from estimators.regime import resolve_regime
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.units import format_bytes

LOGIT_BYTES = 4  # transformers' loss makes an fp32 copy of all logits
FAR_RATE = 10.0  # times above or below a published learning rate


class Case(NamedTuple):
    """A file, the plan that it became on this hardware, and the model."""

    reading: Reading
    plan: Plan
    model: ModelSpec
    hardware: Hardware

    def key(self, field: str) -> str:
        """What the file's format calls a field of the plan."""
        return get_reader(self.reading.format).keys.get(field, field)


Rule = Callable[[Case], Iterator[Finding]]


def find_file_risks(case: Case) -> tuple[Finding, ...]:
    """All that the rules say."""
    return tuple(finding for rule in RULES for finding in rule(case))


def precision(case: Case) -> Iterator[Finding]:
    """bf16 needs a card that has it; fp16 needs care, and cannot be what is trained."""
    plan, gpu = case.plan, case.hardware.gpu
    floats = {plan.quantization, plan.compute_dtype}
    if gpu.bf16 is False and "bf16" in floats and gpu.vendor != "CPU":
        text = f"{gpu.name} has no bf16 units: torch emulates it, which is very slow, or the trainer stops"
        yield _warning("bf16", text, "fp16 instead of bf16")
    if gpu.vendor == "CPU" and "bf16" in floats:
        yield _warning("bf16", "on a CPU transformers takes bf16 only beside use_cpu", "use_cpu: true")
    if gpu.bf16 and "fp16" in floats and gpu.vendor != "CPU":
        yield _warning("fp16", "fp16 overflows where bf16 does not, and the card has bf16", "bf16 instead of fp16")
    if plan.quantization == "fp16" and get_method(plan.method).trains_base and plan.platform != "llamafactory":
        yield _error("fp16", "torch's GradScaler refuses gradients of fp16 weights", "float32 weights, or bf16")


def attention(case: Case) -> Iterator[Finding]:
    """FlashAttention 2 is a package of its own and runs on compute capability 8.0 and later."""
    key, gpu, release = case.key("attention"), case.hardware.gpu, case.reading.release
    if case.plan.attention != "flash_attention_2":
        return
    if gpu.flash_attention_2 is False:
        yield _error(key, f"FlashAttention 2 does not run on {gpu.name}", f"{key}: sdpa, which comes with torch")
        return
    missing = "goes on without it" if case.reading.format == "llamafactory" else "stops with an ImportError"
    yield _warning(key, f"where the package flash-attn is not installed, {release} {missing}")


def evaluation(case: Case) -> Iterator[Finding]:
    """Evaluation takes batches of its own, eight sequences unless the file says otherwise."""
    size, plan, key = case.reading.eval_batch_size, case.plan, case.key("eval_batch_size")
    if size is None:
        return
    text = f"evaluation takes {size} sequences at a time, training {plan.micro_batch_size}"
    regime = resolve_regime(plan, case.model, case.hardware.gpu)
    if regime.evaluates_logits and size > 1:
        logits = size * plan.seq_len * evaluation_bytes(case.model, regime)
        text += f"; under Liger that is {format_bytes(logits)} of logits beside the weights (one sequence is counted)"
        yield _warning(key, text, f"{key}: 1")
        return
    if size <= plan.micro_batch_size:
        return
    if plan.loss_kernel == "full" or (plan.loss_kernel is None and plan.platform == "llamafactory"):
        logits = size * plan.seq_len * case.model.vocab_size * LOGIT_BYTES
        text += f": its logits alone take up to {format_bytes(logits)} in fp32"
    yield _warning(key, text, f"{key}: {plan.micro_batch_size}")


def positions(case: Case) -> Iterator[Finding]:
    """Sequences beyond the positions that the model was made for."""
    length, limit = case.plan.seq_len, case.model.max_position_embeddings
    if length > limit:
        yield _warning(case.key("seq_len"), f"{length} tokens are beyond the {limit} positions of {case.model.name}")


def placement(case: Case) -> Iterator[Finding]:
    """Sharding and offloading that this many cards cannot do."""
    reading = case.reading
    if reading.sharding not in (None, "none", "ddp") and case.plan.sharding == "none":
        offloads = " (what it moves to main memory is counted on the card)" if reading.offload_optimizer else ""
        yield _warning("sharding", f"{reading.sharding} shards nothing on one card{offloads}", "--n-gpus says how many")


def repetition(case: Case) -> Iterator[Finding]:
    """Many epochs that nothing watches."""
    plan = case.plan
    if plan.num_epochs > MANY_EPOCHS and case.reading.eval_batch_size is None and plan.max_steps is None:
        yield _warning(
            case.key("num_epochs"),
            f"{plan.num_epochs:g} epochs and no evaluation: overfitting goes unseen (1 to {MANY_EPOCHS} are usual)",
            "hold some examples back",
        )


def learning_rate(case: Case) -> Iterator[Finding]:
    """Ten times off a published starting point for the method."""
    plan = case.plan
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


def targets(case: Case) -> Iterator[Finding]:
    """PEFT's default modules are few, and not known for every model."""
    key, kind = case.key("target_modules"), case.model.model_type
    if not case.reading.targets_by_model:
        return
    if kind in DEFAULT_TARGETS:
        names = ", ".join(DEFAULT_TARGETS[kind])
        text = f"is not given: PEFT adapts {names} alone; all linear layers match full fine-tuning better"
        yield _warning(key, text, f"{key}: [all-linear]")
    else:
        yield _error(key, f"is not given, and PEFT knows no default for {kind}", f"{key}: [all-linear]")


def fast_path(case: Case) -> Iterator[Finding]:
    """Unsloth's fused LoRA wants no dropout."""
    plan = case.plan
    if plan.platform == "unsloth" and plan.lora_dropout > 0 and plan.method != "full":
        yield _warning(
            case.key("lora_dropout"), "with dropout Unsloth's fused LoRA layers do not run", "lora_dropout=0"
        )


def sharded_base(case: Case) -> Iterator[Finding]:
    """8-bit bases and sharding of weights do not go together."""
    plan = case.plan
    if plan.quantization == "int8" and plan.sharding in ("fsdp2", "zero3"):
        yield _error("quantization", f"an int8 base cannot be sharded by {plan.sharding}", "4 bits, or zero2")


RULES: tuple[Rule, ...] = (
    precision,
    attention,
    evaluation,
    positions,
    placement,
    repetition,
    learning_rate,
    targets,
    fast_path,
    sharded_base,
)


def _error(key: str, text: str, fix: str = "") -> Finding:
    return Finding(level="error", key=key, text=text, fix=fix)


def _warning(key: str, text: str, fix: str = "") -> Finding:
    return Finding(level="warning", key=key, text=text, fix=fix)

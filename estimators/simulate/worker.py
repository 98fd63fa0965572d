"""The child process: run one Job and return a Simulation. torch is imported here and nowhere above."""

import gc
import resource
import time
from importlib.metadata import version
from typing import Any

from estimators.allocator import CachingAllocator
from estimators.methods import get_method
from estimators.overhead import cublas_workspace
from estimators.regime import resolve_regime, runs_unsloth_layers
from estimators.simulate.job import Job
from estimators.simulate.replay import replay
from estimators.simulate.result import Operation, Simulation
from estimators.simulate.snapshot import write_snapshot
from estimators.simulate.stretch import BASE_LAYERS, REPEATED, stretch
from estimators.simulate.trace import Trace
from estimators.tasks import holds_reference, passes_without_gradient
from estimators.vector_sum import resident_threads
from profiles.errors import AdviseError, UnsupportedError
from profiles.plan import FOUR_BIT
from profiles.units import KIB, MIB

PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "trl")
DEFAULT_CAPABILITY = (8, 0)
# PEFT methods that treat each layer by itself, or none; others (prefixes, shared banks) grow with the number of layers
BY_LAYER = frozenset(
    {"LORA", "ADALORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3", "LN_TUNING", "HRA", "MISS", "PROMPT_TUNING", "P_TUNING"}
)
# Their last parameter's update goes at different points of the next one's turn: all layers are traced
LOOPED = frozenset({"adafactor", "apollo"})
WITHOUT_ROTATION = "smollm3"  # every fourth layer, though its config need not name them

ZERO = "ZeRO's partitions and buckets are modelled from DeepSpeed's source around the traced step"
SHARDING_NOTES = {
    "zero1": (ZERO,),
    "zero2": (ZERO,),
    "ddp": ("DDP's gradient buckets are modelled from torch's source, one for each layer",),
    "fsdp2": (
        "FSDP2 is torch's own code, traced as one rank among fake ones",
        "streams do nothing: memory that FSDP frees on another stream is free at once, so reserved is a lower bound",
    ),
}


class SimulationError(AdviseError):
    """The traced code failed: says in which stage, layer, module and operation."""

    def __init__(self, where: str, error: BaseException) -> None:
        text = " ".join(str(error).split())[:300]
        super().__init__(
            "simulation-failed",
            f"the simulated run failed {where}: {type(error).__name__}: {text}",
            "the analytic estimate stands; `ftadvise measure` runs a few real steps",
        )


def run_job(job: Job) -> Simulation:
    """Trace the job's run on fake tensors and replay it.

    Raises:
        UnsupportedError: the simulated tier does not cover this plan.
        SimulationError: the code under trace failed.
        DeviceOutOfMemoryError: only with `limit_to_device`.
    """
    started = time.perf_counter()
    refuse(job)
    job = job.replace(model=get_method(job.plan.method).extended(job.model, job.plan))
    layers = job.model.num_hidden_layers
    traced = BASE_LAYERS if job.layers == "extrapolate" and layers > BASE_LAYERS and _uniform(job) else layers
    trace, trainable, operations = trace_run(job, traced)
    if traced != layers:
        trace = stretch(trace, layers, sharded=job.plan.sharding == "fsdp2")
    plan = job.plan
    allocator = CachingAllocator(
        limit=job.hardware.gpu.memory_bytes if job.limit_to_device else None,
        max_split_size=None if job.max_split_size_mb is None else job.max_split_size_mb * MIB,
        expandable_segments=plan.expandable_segments,
    )
    if job.snapshot is not None:
        write_snapshot(trace, job.snapshot)
    found = replay(trace, allocator, vocab_size=job.model.vocab_size, empty_cache_every=job.empty_cache_every)
    return Simulation(
        phases=found.phases,
        stages=found.stages,
        peak_allocated=found.peak_allocated,
        peak_reserved=found.peak_reserved,
        after_load=found.after_load,
        end_allocated=found.end,
        end_reserved=found.end_reserved,
        trainable_parameters=trainable,
        layers=layers,
        layers_traced=traced,
        seconds=time.perf_counter() - started,
        rss=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB,
        versions={name: version(name) for name in PACKAGES},
        timeline=found.timeline,
        operations=operations,
        assumptions=_assumptions(job),
    )


def _assumptions(job: Job) -> tuple[str, ...]:
    """What stands in the trace that is not the run's own code."""
    if job.plan.platform != "unsloth":
        fused = resolve_regime(job.plan, job.model, job.hardware.gpu).fused_ops
        liger = ("Liger's kernels are modelled from the source of 0.8.5, not traced",) if fused else ()
        return (*liger, *SHARDING_NOTES.get(job.plan.sharding, ()))
    said = "Unsloth's kernels, checkpoints and loss are modelled from the source of 2026.10.7, not traced"
    if runs_unsloth_layers(job.plan, job.model):
        return (said, "attention as xformers runs it, a key head for each query head")
    return (said, "Unsloth compiles this model's own layers; here they run uncompiled")


def refuse(job: Job) -> None:
    """Raise UnsupportedError for what cannot be traced here."""
    plan = job.plan
    if plan.gradient_checkpointing == "unsloth" and plan.platform != "unsloth":
        raise UnsupportedError("offloaded checkpoints exist in Unsloth only", "gradient_checkpointing: full")
    if plan.platform == "unsloth" and job.model.has_fused_experts and plan.quantization in FOUR_BIT:
        raise UnsupportedError("Unsloth's own 4-bit experts cannot be traced", "the analytic estimate stands")
    if plan.sharding == "fsdp2" and plan.fsdp_version == 1:
        raise UnsupportedError("the simulated tier runs FSDP2, not FSDP1")
    if plan.task == "grpo":
        raise UnsupportedError("the simulated tier does not sample", "GRPO's analytic estimate stands")
    if plan.task in ("dpo", "orpo", "kto", "reward") and plan.platform == "unsloth":
        raise UnsupportedError(f"Unsloth's {plan.task} is not traced", "its analytic estimate stands")
    if plan.task == "reward" and plan.platform == "llamafactory":
        raise UnsupportedError("LLaMA-Factory's value head is not traced", "its analytic estimate stands")
    if holds_reference(plan) and plan.n_gpus > 1:
        raise UnsupportedError("a second model over several cards is not traced", "its analytic estimate stands")
    prompts = get_method(plan.method).adds_tokens or get_method(plan.method).adds_keys
    if prompts and plan.loss_kernel == "chunked":
        raise UnsupportedError("the chunked loss is run on the bare model, without soft prompts")
    if plan.sharding == "zero3":
        raise UnsupportedError("the simulated tier does not run ZeRO-3", "its analytic estimate stands")


def trace_run(job: Job, layers: int) -> tuple[Trace, int, tuple[Operation, ...]]:
    """Trace `layers` layers of the job's model. For all layers: trainable parameters, and operations of a step."""
    gc.disable()  # storages die when their code lets go of them
    from estimators.simulate.guard import install_device_guard
    from estimators.simulate.imports import skip_needless_imports
    from estimators.simulate.optimizers import uses_bitsandbytes
    from estimators.simulate.patches import apply_patches

    install_device_guard()
    sharded = job.plan.sharding == "fsdp2"
    quantizes = uses_bitsandbytes(job.plan)
    skip_needless_imports(sharded=sharded, quantizes=quantizes)
    capability = job.hardware.gpu.compute_capability or DEFAULT_CAPABILITY
    apply_patches(
        capability=capability,
        expand_kv_heads=job.expand_kv_heads,
        flash_dtype=_flash_dtype(job),
        quantizes=quantizes,
    )
    import torch._dynamo.source  # noqa: F401  # first imported in a trace, it would keep the frames that lead to it
    from torch._subclasses.fake_tensor import FakeTensorMode

    from estimators.simulate.build import build
    from estimators.simulate.operations import Tally
    from estimators.simulate.step import run_steps
    from estimators.simulate.tracker import Tracker

    gc.freeze()
    plan, spec = job.plan, job.model
    regime = resolve_regime(plan, spec, job.hardware.gpu)
    tally = Tally(repeated=REPEATED, times=spec.num_hidden_layers - layers + 1)
    tracker = Tracker(
        workspace=cublas_workspace(capability),
        threads=resident_threads(job.hardware.gpu),
        boolean=not regime.masked or plan.attention == "flash_attention_2",
        wrappers=_wrappers() if sharded else (),
    )
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as fake, tracker:
            fake.cache_enabled = False  # the tracker has its own memo; keeping two takes 0.3 s
            built = build(job, regime, tracker, num_layers=layers)
            trainable = built.trainable(spec.num_hidden_layers)
            run_steps(built, job, regime, tracker, tally)
            trace = tracker.finish()
    except AdviseError:
        raise
    except Exception as error:
        raise SimulationError(tracker.where(), error) from error
    return trace, trainable, tally.operations()


def _wrappers() -> tuple[type, ...]:
    from torch.distributed.tensor import DTensor

    return (DTensor,)


def _flash_dtype(job: Job) -> str | None:
    """What FlashAttention 2 casts fp32 inputs to (transformers modeling_flash_attention_utils.py); None: SDPA runs."""
    if job.plan.attention != "flash_attention_2":
        return None
    return resolve_regime(job.plan, job.model, job.hardware.gpu).compute_dtype


def _uniform(job: Job) -> bool:
    """Whether all layers are alike, and so are what the method adds to them: then some can stand for all."""
    if passes_without_gradient(job.plan):
        return False  # they go through the layers once more
    if job.plan.sharding in ("zero1", "zero2"):
        return False  # its partitions and buckets cut through layers
    if job.model.model_type == WITHOUT_ROTATION:
        return False
    if len(job.model.layers) != 1 or job.model.kind == "encoder-decoder" or get_method(job.plan.method).trains_layers:
        return False
    if job.plan.optimizer in LOOPED or job.plan.method in LOOPED:
        return False
    method = job.plan.method_options.get("peft_type") or get_method(job.plan.method).peft_type
    if method is not None and method not in BY_LAYER:
        return False
    if any("layer" in option for option in job.plan.method_options):
        return False  # the method itself names layers
    kinds: list[Any] = [job.model.config.get(key) or () for key in ("layer_types", "no_rope_layers")]
    return all(len(set(kind)) <= 1 for kind in kinds)

"""What a run takes in steps, time, money, energy and disk, from its speed and the data's size."""

from math import ceil

from estimators.answer import SpeedEstimate
from estimators.interval import Interval
from estimators.methods import Method
from profiles.gpu import GpuSpec, PriceRange
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import Record
from profiles.scheme import DTYPE_BYTES, OptimizerSpec
from profiles.units import HOUR

RNG_AND_SCHEDULER_BYTES = 20_000  # scheduler.pt, rng_state.pth, trainer_state.json of transformers' Trainer
ENERGY_UNIT = HOUR * 1000  # joules in a kWh


class RunLength(Record):
    """Optimizer steps of a run, the seconds they take, and the real tokens that they see."""

    steps: int
    seconds: Interval
    tokens: float


class CheckpointSize(Record):
    """Bytes on disk: `weights` to use the result, `resume` also to go on training from it."""

    weights: float
    resume: float


def steps_per_epoch(plan: Plan, *, examples: int, mean_len: float | None = None) -> int:
    """Optimizer steps over `examples`: ceil(rows / global batch).

    With packing a row holds seq_len / mean_len examples; the mean is `mean_len`, else the plan's, else seq_len.
    """
    rows = float(examples)
    if plan.packing:
        rows = examples * min(mean_len or plan.mean_len or plan.seq_len, plan.seq_len) / plan.seq_len
    return max(ceil(rows / plan.global_batch_size), 1)


def run_length(plan: Plan, speed: SpeedEstimate, *, examples: int, mean_len: float | None = None) -> RunLength:
    """The whole run: epochs over the data, or `max_steps` where the plan sets it. Evaluation and saving come on top."""
    steps = plan.max_steps or ceil(plan.num_epochs * steps_per_epoch(plan, examples=examples, mean_len=mean_len))
    return RunLength(steps=steps, seconds=speed.step_seconds.scaled(float(steps)), tokens=steps * speed.tokens_per_step)


def seconds_for_tokens(speed: SpeedEstimate, tokens: float) -> Interval:
    """Seconds for that many real tokens."""
    rate = speed.tokens_per_second
    return Interval(low=tokens / rate.high, expected=tokens / rate.expected, high=tokens / rate.low, level=rate.level)


def cost_usd(seconds: Interval, *, n_gpus: int, price: PriceRange | float) -> Interval:
    """USD for `seconds` on `n_gpus` cards at a price an hour and card: the user's own, or the range that was seen.

    The low end is the shortest time at the lowest price, the high end the longest at the highest; expected in between
    at the geometric mean of the prices, since they differ by factors.
    """
    low, high = (price, price) if isinstance(price, float | int) else (price.low, price.high)
    hours = n_gpus / HOUR
    return Interval(
        low=seconds.low * low * hours,
        expected=seconds.expected * (low * high) ** 0.5 * hours,
        high=seconds.high * high * hours,
        level=seconds.level,
    )


def energy_kwh_at_most(seconds: Interval, *, n_gpus: int, gpu: GpuSpec) -> float | None:
    """Energy of the cards in kWh if they draw their full power limit for the longest time; None if it is not known.

    An upper bound: a card that waits for memory or its host draws less. The rest of the machine is not in it.
    """
    return None if gpu.tdp_w is None else seconds.high * n_gpus * gpu.tdp_w / ENERGY_UNIT


def checkpoint_size(
    plan: Plan, model: ModelSpec, method: Method, optimizer: OptimizerSpec, *, trained_itemsize: int
) -> CheckpointSize:
    """Disk space of a checkpoint: the adapter or the whole model, and to resume the optimizer's states.

    Weights are saved in the dtype that they are trained in, `trained_itemsize` bytes. PEFT's files for Llama-3.2-3B:
    LoRA r 32 on q and v, 9,175,040 parameters, 36,715,216 bytes (4 each and a header); full, 6,425,499,648 (2 each).
    """
    trained = method.trainable_parameters(model, plan)
    if method.trains_base and method.id == "full":
        weights = float(model.parameters * trained_itemsize)
    elif method.trains_base:
        weights = float(model.parameters * DTYPE_BYTES.get(plan.quantization, 2))  # saved with the frozen rest
    else:
        weights = float(trained * trained_itemsize)
    each = optimizer.state_bytes if optimizer.state_bytes is not None else optimizer.state_tensors * trained_itemsize
    return CheckpointSize(weights=weights, resume=weights + trained * each + RNG_AND_SCHEDULER_BYTES)

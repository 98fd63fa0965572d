"""Timed kernels and steps -> Calibration: the constants of the speed model that explain them, and what they leave.

Maximum a posteriori in logarithms. A constant x has the prior log x ~ N(log default, sd); a timing t of what the model
puts at f(x) seconds has the error log f(x) - log t, with a noise by its kind and Huber's loss. Gauss-Newton on
numerical derivatives. The residual is that of steps left out one by one: e / (1 - h), h the step's leverage. What the
constants leave open about a whole model, of which only a few layers were timed, comes on top: sqrt(j H^-1 j), times
how much noisier the steps were than assumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, hypot, inf, log, sqrt
from statistics import median

from estimators.efficiency import default_constants
from estimators.kernel_time import kernel_seconds
from estimators.throughput import TIME_FACTOR, step_on
from profiles.calibration import Calibration, Fitted, TimedKernel, TimedStep, pool
from profiles.errors import AdviseError
from profiles.gpu import GpuSpec
from profiles.measurement import Environment
from profiles.model import ModelSpec
from profiles.plan import Plan

# Standard deviation of the logarithm of a constant about its default: how far one machine may be from the others.
CARD_PRIORS: Mapping[str, float] = {
    "matmul": 0.2,
    "elementwise": 0.3,
    "attention": 0.3,
    "attention_hopper": 0.3,
    "attention_efficient": 0.3,
    "attention_math": 0.3,
    "dequantize": 0.4,
    "launch_seconds": 0.5,
    "tensor_seconds": 0.5,
    "adapters": 0.4,
    "loss": 0.3,
    "head": 0.2,
    "optimizer": 0.5,
    "matmul_bandwidth": 0.3,
    "tile_loss": 0.5,
    "depth_loss": 0.5,
    "l2_gain": 0.5,
    "pcie_share": 0.5,
}
# The link between cards: only where collectives were timed; a step alone does not tell it from all else.
LINK_PRIORS: Mapping[str, float] = {"nvlink_share": 0.3, "pcie_share_pair": 0.5, "link_latency": 0.7}
# A CPU's own rates are a guess from its cores; its memory-bound work (`matmul` scales nothing else there) is wide too.
CPU_PRIORS: Mapping[str, float] = {
    "cpu_tflops_per_core": 1.0,
    "cpu_bandwidth_gbps": 0.7,
    "elementwise": 1.0,
    "attention_math": 0.7,
    "dequantize": 1.0,
    "launch_seconds": 1.0,
    "tensor_seconds": 0.7,
    "adapters": 0.7,
    "loss": 0.7,
    "head": 0.4,
    "optimizer": 1.0,
    "matmul_bandwidth": 0.7,
    "depth_loss": 1.0,
}
STEP_NOISE = 0.02  # of the logarithm; repeated steps of one machine agree to about this
LAUNCH_NOISE = 0.1  # a real run's batches differ in length, and others may use the machine
KERNEL_NOISE = 0.1  # a kernel alone has its cache to itself, and no neighbours
OTHER_NOISE = 0.25  # a copy or a chain of tiny layers stands for many different kernels
HUBER = 2.0  # errors beyond this many standard deviations count linearly
ROUNDS = 12
DERIVATIVE_STEP = 0.02
LARGEST_CHANGE = 1.0
LEVEL = 0.9
NORMAL_LEVEL = 1.645  # standard deviations that hold LEVEL of a normal distribution
MEDIAN_TO_DEVIATION = 1.4826  # standard deviation over median absolute deviation of a normal distribution
WHOLE_LAYERS = 24  # a model of usual depth: what a few layers are extrapolated to
LEAST_FREEDOM = 0.1  # an observation that decides a constant alone has no error of its own to show
FEWEST_STEPS = 4  # fewer say nothing about how far the next one will be off
LEAST_RESIDUAL = 0.03  # a card's clock and temperature alone move a step by this
DEFAULTS_OF_SCALES = {"attention_math": 1.0, "loss": 1.0, "head": 1.0, "optimizer": 1.0, "matmul_bandwidth": 1.0}


@dataclass(frozen=True, slots=True)
class Observation:
    """Something timed: what the model says with given constants, what was measured, both in seconds."""

    predict: Callable[[Mapping[str, float]], float]
    seconds: float
    noise: float
    is_step: bool

    def error(self, constants: Mapping[str, float]) -> float:
        """log(predicted / measured)."""
        return log(self.predict(constants) / self.seconds)


@dataclass(frozen=True, slots=True)
class Fit:
    """Constants, how many observations each rests on, and what is not known.

    errors, step_errors: of all observations and of steps, each left out of the fit. deviations: standard deviation of
    the logarithm of what was asked to be extrapolated.
    """

    constants: Mapping[str, float]
    support: Mapping[str, int]
    errors: tuple[float, ...]
    step_errors: tuple[float, ...]
    deviations: tuple[float, ...] = ()


def fit_calibration(
    *,
    calibration_id: str,
    date: str,
    environment: Environment,
    gpu: GpuSpec,
    kernels: Sequence[TimedKernel],
    steps: Sequence[TimedStep],
    describe: Callable[[Plan], ModelSpec],
    previous: Calibration | None = None,
) -> Calibration:
    """Fit the model's constants for `gpu` to what was timed, now and in `previous`.

    describe: the ModelSpec of a step's plan.

    Raises:
        AdviseError: nothing that was timed can be compared with the model ('nothing-to-fit').
    """
    if previous is not None:
        kernels, steps = pool(previous.kernels, kernels), pool(previous.steps, steps)
    timed = [(s.plan, describe(s.plan), s.seconds, STEP_NOISE if s.origin == "probe" else LAUNCH_NOISE) for s in steps]
    observations = [*observe_kernels(kernels, gpu), *observe_steps(timed, gpu)]
    if not observations:
        raise AdviseError("nothing-to-fit", "no probe returned a figure to fit to", "See what each probe said above.")
    whole = observe_steps([(plan, deepened(model), seconds, noise) for plan, model, seconds, noise in timed], gpu)
    priors = CPU_PRIORS if gpu.vendor == "CPU" else CARD_PRIORS
    if any("n_gpus" in kernel.shape for kernel in kernels):
        priors = {**priors, **LINK_PRIORS}
    found = fit_constants(observations, priors, whole)
    spread = _quantile([abs(e) for e in found.errors])
    constants = {
        name: Fitted(value=float(f"{value:.5g}"), n=found.support[name], residual=round(spread, 4))
        for name, value in found.constants.items()
        if found.support[name]
    }
    if len(found.step_errors) >= FEWEST_STEPS:
        noisier = max(1.0, MEDIAN_TO_DEVIATION * median(abs(e) for e in found.step_errors) / STEP_NOISE)
        margin = hypot(residual_of(found.step_errors), NORMAL_LEVEL * noisier * median(found.deviations))
        constants[TIME_FACTOR] = Fitted(value=1.0, n=len(found.step_errors), residual=round(margin, 4))
    return Calibration(
        id=calibration_id, date=date, environment=environment, constants=constants, kernels=tuple(kernels),
        steps=tuple(steps),
    )  # fmt: skip


def observe_kernels(kernels: Sequence[TimedKernel], gpu: GpuSpec) -> list[Observation]:
    """Kernels that the model has a time for on this card.

    A probe calls one kernel again and again. No call takes a card less than its host needs to make it, and the shortest
    product of the probe shows that floor: kernels that are said to be shorter are taken to be as long.
    """
    products = [k.seconds for k in kernels if k.kind == "matmul"]
    floor = min(products) if products and gpu.vendor != "CPU" else 0.0

    def observe(kernel: TimedKernel) -> Observation:
        noise = KERNEL_NOISE if kernel.kind == "matmul" else OTHER_NOISE

        def predict(constants: Mapping[str, float]) -> float:
            return max(kernel_seconds(kernel, gpu, constants) or inf, floor)

        return Observation(predict, kernel.seconds, noise, is_step=False)

    constants = start_constants()
    return [observe(k) for k in kernels if kernel_seconds(k, gpu, constants) is not None]


def observe_steps(steps: Sequence[tuple[Plan, ModelSpec, float, float]], gpu: GpuSpec) -> list[Observation]:
    """(plan, model, seconds of a step, noise) that the model has a time for on this card."""

    def observe(plan: Plan, model: ModelSpec, seconds: float, noise: float) -> Observation:
        def predict(constants: Mapping[str, float]) -> float:
            step = step_on(plan, model, gpu, constants)
            return inf if step is None else step.seconds

        return Observation(predict, seconds, noise, is_step=True)

    constants = start_constants()
    return [observe(*s) for s in steps if step_on(s[0], s[1], gpu, constants) is not None]


def start_constants() -> dict[str, float]:
    """The defaults, with those that only calibrations have."""
    return {**default_constants(), **DEFAULTS_OF_SCALES}


def deepened(model: ModelSpec) -> ModelSpec:
    """The model with WHOLE_LAYERS in place of the few that were timed; a whole model stays as it is."""
    times = max(1, WHOLE_LAYERS // model.num_hidden_layers)
    layers = tuple(group.replace(count=group.count * times) for group in model.layers)
    return model.replace(layers=layers)


def fit_constants(
    observations: Sequence[Observation], priors: Mapping[str, float], unseen: Sequence[Observation] = ()
) -> Fit:
    """The constants named in `priors` that fit best, and how well they determine what `unseen` would take."""
    names, start = list(priors), start_constants()

    def constants(theta: Sequence[float]) -> dict[str, float]:
        return {**start, **{n: start[n] * exp(t) for n, t in zip(names, theta, strict=True)}}

    def errors(theta: Sequence[float]) -> list[float]:
        c = constants(theta)
        return [o.error(c) for o in observations]

    def loss(theta: Sequence[float], e: Sequence[float]) -> float:
        data = sum(_huber(x / o.noise) for x, o in zip(e, observations, strict=True))
        return data + sum((t / priors[n]) ** 2 / 2 for n, t in zip(names, theta, strict=True))

    theta = [0.0] * len(names)
    e = errors(theta)
    best = loss(theta, e)
    for _ in range(ROUNDS):
        jacobian = _jacobian(errors, theta, e)
        change = _solve(*_normal_equations(jacobian, e, theta, observations, [priors[n] for n in names]))
        for shrink in (1.0, 0.5, 0.2, 0.05):
            trial = [
                t + min(max(shrink * d, -LARGEST_CHANGE), LARGEST_CHANGE) for t, d in zip(theta, change, strict=True)
            ]
            trial_errors = errors(trial)
            if (trial_loss := loss(trial, trial_errors)) < best:
                break
        else:
            break
        gained, theta, e, best = best - trial_loss, trial, trial_errors, trial_loss
        if gained < 1e-3 * max(best, 1.0):
            break
    jacobian = _jacobian(errors, theta, e)
    hessian, _ = _normal_equations(jacobian, e, theta, observations, [priors[n] for n in names])
    left_out = _left_out(jacobian, hessian, e, observations)
    deviations = _deviations(lambda t: [o.error(constants(t)) for o in unseen], hessian, theta)
    support = {
        n: sum(abs(row[i]) > 0.01 for row in jacobian) for i, n in enumerate(names)
    }  # an observation speaks of a constant that moves it by more than a hundredth of its own change
    found = {n: v for n, v in constants(theta).items() if n in priors}
    steps = tuple(x for x, o in zip(left_out, observations, strict=True) if o.is_step)
    return Fit(
        constants=found, support=support, errors=tuple(left_out), step_errors=steps, deviations=tuple(deviations)
    )


def residual_of(errors: Sequence[float]) -> float:
    """A margin that holds LEVEL of new steps: the errors' quantile, wider for few of them."""
    return max(_quantile([abs(e) for e in errors]) * (1 + 1 / sqrt(len(errors))), LEAST_RESIDUAL)


def _quantile(values: Sequence[float]) -> float:
    """The LEVEL quantile, linear between ranks."""
    ranked = sorted(values)
    place = LEVEL * (len(ranked) - 1)
    low = int(place)
    high = min(low + 1, len(ranked) - 1)
    return ranked[low] + (place - low) * (ranked[high] - ranked[low])


def _huber(z: float) -> float:
    return z * z / 2 if abs(z) <= HUBER else HUBER * (abs(z) - HUBER / 2)


Matrix = list[list[float]]


def _jacobian(errors: Callable[[Sequence[float]], list[float]], theta: Sequence[float], e: Sequence[float]) -> Matrix:
    """Rows: observations; columns: constants."""
    columns = []
    for i in range(len(theta)):
        moved = [t + DERIVATIVE_STEP * (j == i) for j, t in enumerate(theta)]
        columns.append([(x - y) / DERIVATIVE_STEP for x, y in zip(errors(moved), e, strict=True)])
    return [list(row) for row in zip(*columns, strict=True)]


def _weights(e: Sequence[float], observations: Sequence[Observation]) -> list[float]:
    return [min(1.0, HUBER * o.noise / max(abs(x), 1e-12)) / o.noise**2 for x, o in zip(e, observations, strict=True)]


def _normal_equations(
    jacobian: Matrix, e: Sequence[float], theta: Sequence[float], observations: Sequence[Observation],
    spread: Sequence[float],
) -> tuple[Matrix, list[float]]:  # fmt: skip
    """(H, -g) of the quadratic approximation."""
    weights, n = _weights(e, observations), len(theta)
    hessian = [
        [sum(w * row[i] * row[j] for w, row in zip(weights, jacobian, strict=True)) for j in range(n)] for i in range(n)
    ]
    gradient = [sum(w * row[i] * x for w, row, x in zip(weights, jacobian, e, strict=True)) for i in range(n)]
    for i in range(n):
        hessian[i][i] += spread[i] ** -2
        gradient[i] += theta[i] * spread[i] ** -2
    return hessian, [-g for g in gradient]


def _left_out(
    jacobian: Matrix, hessian: Matrix, e: Sequence[float], observations: Sequence[Observation]
) -> list[float]:
    """Each observation's error had the fit not seen it: e / (1 - h) with h = w j H^-1 j (exact for linear models)."""
    weighted = zip(jacobian, e, _weights(e, observations), strict=True)
    return [x / max(1 - w * _square(hessian, row), LEAST_FREEDOM) for row, x, w in weighted]


def _deviations(
    errors: Callable[[Sequence[float]], list[float]], hessian: Matrix, theta: Sequence[float]
) -> list[float]:
    """Standard deviations sqrt(j H^-1 j) of predictions that the fit has not seen."""
    e = errors(theta)
    return [sqrt(_square(hessian, row)) for row in _jacobian(errors, theta, e)] if e else []


def _square(hessian: Matrix, row: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(row, _solve(hessian, row), strict=True))


def _solve(matrix: Matrix, right: Sequence[float]) -> list[float]:
    """Gaussian elimination with pivots; the matrix is positive definite by the priors."""
    rows = [[*row, b] for row, b in zip(matrix, right, strict=True)]
    n = len(rows)
    for i in range(n):
        pivot = max(range(i, n), key=lambda k: abs(rows[k][i]))
        rows[i], rows[pivot] = rows[pivot], rows[i]
        for k in range(i + 1, n):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    solution = [0.0] * n
    for i in reversed(range(n)):
        solution[i] = (rows[i][n] - sum(rows[i][k] * solution[k] for k in range(i + 1, n))) / rows[i][i]
    return solution

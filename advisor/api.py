"""The three calls of the Python API: `facts`, `estimate`, `advise`. The command line is made of them."""

from typing import Any, Literal

from advisor.assess import assess, resolve_task
from advisor.decide import decide
from advisor.facts import resolve_model
from advisor.hardware import resolve_hardware
from advisor.recommendation import Facts, Recommendation
from advisor.request import Request
from advisor.stored import stored_calibration
from estimators.answer import Estimate
from estimators.methods import get_method
from estimators.sharding import fsdp2_refusal
from estimators.throughput import estimate_speed
from profiles.errors import UnsupportedError
from profiles.gpu import Hardware
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.record import parse_record

SIMULATION_SECONDS = 120.0


def facts(request: Request | dict[str, Any]) -> Facts:
    """Look up what a request needs: the model's shapes, the hardware, the data's lengths, the price.

    Raises:
        AdviseError: unknown names, broken files, values that cannot be; with a message and a hint.
    """
    return assess(_request(request))


def estimate(
    plan: Plan | dict[str, Any],
    *,
    hardware: Hardware | None = None,
    offline: bool = False,
    basis: Literal["analytic", "simulated"] = "analytic",
) -> Estimate:
    """Memory (bytes) and speed (seconds, tokens/s) of one plan, on `hardware`, else on what `plan.gpu` names.

    `plan.gpu` None means this machine's. basis "simulated": memory and speed of the real code on fake tensors (seconds,
    needs torch); the speed of several cards and of Unsloth stays the formulas'.

    Raises:
        AdviseError: the plan is malformed, or cannot exist; the message is the reason.
    """
    plan = plan if isinstance(plan, Plan) else parse_record(Plan, plan, "plan")
    model, hardware = resolve_plan(plan, hardware=hardware, offline=offline)
    calibration, said = stored_calibration(hardware)
    if basis == "simulated":
        from estimators.simulate.estimate import estimate_simulated

        found = estimate_simulated(plan, model, hardware, calibration=calibration, seconds=SIMULATION_SECONDS)
        memory, speed = found.memory, found.speed
    else:
        from estimators.replay import estimate_memory_replayed

        memory, speed = estimate_memory_replayed(plan, model, hardware), None
    speed = speed or estimate_speed(plan, model, hardware, calibration=calibration)
    if speed is None:  # the notes are about speed, and have to be said all the same
        return Estimate(memory=memory.replace(assumptions=(*memory.assumptions, *said)), speed=None)
    return Estimate(memory=memory, speed=speed.replace(assumptions=(*speed.assumptions, *said)))


def resolve_plan(plan: Plan, *, hardware: Hardware | None = None, offline: bool = False) -> tuple[ModelSpec, Hardware]:
    """The model and the hardware that a plan names.

    Raises:
        AdviseError: they are unknown, or the plan cannot exist on them; the message is the reason.
    """
    model = resolve_model(plan.model, offline=offline)
    if hardware is None:
        hardware = resolve_hardware(plan.gpu, None, plan.n_gpus)
    resolve_task(plan.task, model)
    refusal = get_method(plan.method).refusal(model, plan)
    if refusal is None and plan.sharding == "fsdp2":
        refusal = fsdp2_refusal(plan.method, plan.optimizer)
    if refusal is not None:
        raise UnsupportedError(refusal)
    return model, hardware


def advise(request: Request | dict[str, Any], *, known: Facts | None = None, compare: bool = False) -> Recommendation:
    """Recommend how to fine-tune. `known` facts spare the look-up and make the answer a pure function.

    compare: evaluate all combinations for the Pareto front, and every goal for what it would choose.

    Raises:
        AdviseError: as `facts`; and UnsupportedError where only impossible combinations were asked for.
    """
    request = _request(request)
    return decide(request, known if known is not None else assess(request), compare=compare)


def _request(request: Request | dict[str, Any]) -> Request:
    return request if isinstance(request, Request) else parse_record(Request, request, "request")

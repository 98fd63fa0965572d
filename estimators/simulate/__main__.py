"""`python -m estimators.simulate --plan FILE`: simulate a plan and print JSON. `--worker` is the child's side."""

import argparse
import gc
import json
import os
import resource
import sys
import threading
from typing import Any

from profiles.errors import AdviseError, InvalidInputError, UnsupportedError
from profiles.units import KIB, format_bytes

WATCH_SECONDS = 0.2


def main() -> int:
    """Parse the command line and run one of the two sides."""
    parser = argparse.ArgumentParser(prog="python -m estimators.simulate", description=__doc__)
    parser.add_argument("--plan", help="JSON file of a plan; model: a config.json as an object, or a catalogue name")
    parser.add_argument("--whole", action="store_true", help="trace every layer instead of repeating some")
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--rss-bytes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    try:
        answer = _worker(options.rss_bytes) if options.worker else _simulate(options)
    except AdviseError as error:
        answer = json.dumps({"error": error.to_dict()})
        code = 2
    else:
        code = 0
    sys.__stdout__.write(answer + "\n")  # type: ignore[union-attr]
    sys.__stdout__.flush()  # type: ignore[union-attr]
    if options.worker:
        os._exit(code)  # nothing is left to do, and taking the libraries down takes a third of a second
    return code


def _simulate(options: argparse.Namespace) -> str:
    """The parent's side: print what each phase holds."""
    from estimators.simulate.run import simulate
    from profiles.catalog import find_gpu, find_model_row
    from profiles.families import describe_model
    from profiles.gpu import GpuSpec, Hardware
    from profiles.plan import Plan

    if options.plan is None:
        raise InvalidInputError("--plan", "name a JSON file")
    try:
        with open(options.plan, encoding="utf-8") as file:
            plan = Plan.model_validate_json(file.read())
    except (OSError, ValueError) as error:
        raise InvalidInputError(options.plan, str(error)) from error
    config = plan.model if isinstance(plan.model, dict) else find_model_row(plan.model).config
    name = "model" if isinstance(plan.model, dict) else plan.model
    gpu = GpuSpec.model_validate(plan.gpu) if isinstance(plan.gpu, dict) else find_gpu(plan.gpu or "a100-80gb")
    layers = "whole" if options.whole else "extrapolate"
    found = simulate(plan, describe_model(config, name), Hardware(gpu=gpu), seconds=options.seconds, layers=layers)  # type: ignore[arg-type]
    answer: dict[str, Any] = {
        "phases": {
            p.name: {
                "allocated": p.allocated,
                "components": {c.name: round(c.n_bytes) for c in p.components},
                "operation": p.operation,
                "module": p.module,
            }
            for p in found.phases
        },
        "peak_allocated": found.peak_allocated,
        "peak_reserved": found.peak_reserved,
        "after_load": found.after_load,
        "trainable_parameters": found.trainable_parameters,
        "seconds": round(found.seconds, 2),
    }
    return json.dumps(answer, indent=1)


def _worker(rss_bytes: int) -> str:
    """The child's side: a Job on stdin, a Simulation or an error on stdout, whatever libraries print to stderr."""
    sys.stdout = sys.stderr
    if rss_bytes:
        threading.Thread(target=_watch, args=(rss_bytes,), daemon=True).start()
    import logging

    from estimators.simulate.job import Job
    from estimators.simulate.quick import answer_quickly
    from estimators.simulate.worker import run_job

    logging.disable(logging.WARNING)
    answer_quickly()
    gc.disable()  # this process is short; the hundred thousands of objects that imports make need no collection
    try:
        import torch  # noqa: F401  # takes seconds, in which the parent finds out what to ask

        return run_job(Job.model_validate_json(sys.stdin.read())).model_dump_json()
    except ModuleNotFoundError as error:
        raise UnsupportedError(
            f"the simulated tier needs {error.name}, which is not installed", "pip install 'ftadvise[train]'"
        ) from error


def _watch(limit: int) -> None:
    """End the process when it has grown beyond `limit` bytes."""
    while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB <= limit:
        threading.Event().wait(WATCH_SECONDS)
    error = AdviseError("simulation-limit", f"the simulation took more than {format_bytes(limit)} and was stopped")
    os.write(sys.__stdout__.fileno(), json.dumps({"error": error.to_dict()}).encode())  # type: ignore[union-attr]
    os._exit(3)


if __name__ == "__main__":
    sys.exit(main())

"""Simulations for several test files: one child process imports the libraries once and forks for each job."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from estimators.simulate import Simulation
from estimators.simulate.job import Job

ROOT = Path(__file__).parents[2]
SERVER = """
import json, sys
from benchmarks.simulated import simulate_all
from estimators.simulate.job import Job
jobs = [Job.model_validate(j) for j in json.load(sys.stdin)]
out, sys.stdout = sys.stdout, sys.stderr
answers = [a if isinstance(a, str) else a.model_dump(mode="json") for a in simulate_all(jobs, 2)]
json.dump(answers, out)
"""
Answers = dict[str, Simulation | str]


@pytest.fixture(scope="session")
def simulate_jobs() -> Callable[[Mapping[str, Job]], Answers]:
    """Return what runs named jobs: a Simulation each, or the message of its refusal."""

    def run(jobs: Mapping[str, Job]) -> Answers:
        given = json.dumps([j.model_dump(mode="json") for j in jobs.values()])
        done = subprocess.run(
            [sys.executable, "-c", SERVER], input=given, capture_output=True, text=True, cwd=ROOT, timeout=800
        )
        assert done.returncode == 0, done.stderr[-2000:]
        found = json.loads(done.stdout)
        assert len(found) == len(jobs)
        return {n: a if isinstance(a, str) else Simulation.model_validate(a) for n, a in zip(jobs, found, strict=True)}

    return run

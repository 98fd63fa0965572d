"""Emission: a plan written out for one platform, as texts by relative path. Only `write_emission` touches the disk."""

import os
from collections.abc import Callable
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import Field, PositiveInt, field_validator

from advisor.staging import staged_folder
from estimators.answer import Estimate
from estimators.interval import Interval
from estimators.methods import get_method
from profiles.dataset import Form
from profiles.errors import InvalidInputError, UnsupportedError
from profiles.model import ModelSpec
from profiles.plan import Plan, Platform
from profiles.record import Record

RUN_FILE = "plan.json"

# Where transformers' Trainer can report to beside runs/metrics.jsonl, and what it needs for that.
Monitor = Literal["tensorboard", "wandb", "mlflow", "trackio"]
MONITOR_PACKAGES: dict[Monitor, str] = {
    "tensorboard": "tensorboard==2.21.0",
    "wandb": "wandb==0.31.0",
    "mlflow": "mlflow==3.18.0",
    "trackio": "trackio==0.43.0",
}


ClusterId = Literal["slurm", "ray", "skypilot"]


class Forecast(Record):
    """What was predicted for a run: bytes of one card, seconds of an optimizer step, tokens/s of all cards."""

    allocated: Interval
    reserved: Interval
    device: Interval
    step_seconds: Interval | None = None
    tokens_per_second: Interval | None = None

    @classmethod
    def of(cls, estimate: Estimate) -> "Forecast":
        """The figures of an estimate that a run can be compared with."""
        memory, speed = estimate.memory, estimate.speed
        return cls(
            allocated=memory.allocated,
            reserved=memory.reserved,
            device=memory.device,
            step_seconds=speed.step_seconds if speed else None,
            tokens_per_second=speed.tokens_per_second if speed else None,
        )


class PlanChange(Record):
    """Why and how the plan of a project was changed between launches: `changes` holds (before, after) by field."""

    time: str
    reason: str
    step: int
    changes: dict[str, tuple[Any, Any]]


class RunFile(Record):
    """plan.json: what launching, watching and learning from a run need to know of it."""

    schema_version: int = 1
    platform: Platform
    plan: Plan
    model: str
    model_parameters: int
    trainable_parameters: int
    requirements: tuple[str, ...]
    forecast: Forecast | None = None
    source: "Source | None" = None
    history: tuple[PlanChange, ...] = ()


class Emission(Record):
    """`files`: text by relative POSIX path. `command` runs in the folder; its "python" stands for an interpreter."""

    platform: Platform
    plan: Plan
    files: dict[str, str]
    command: tuple[str, ...]

    @field_validator("files")
    @classmethod
    def _stay_inside(cls, files: dict[str, str]) -> dict[str, str]:
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or path == PurePosixPath() or "\\" in name or "\0" in name:
                raise ValueError(f"{name!r} is not a path inside the folder")
        return files


class Source(Record):
    """What a run starts from, and what watches it.

    model_ref: hub id or absolute path of the weights. form: what an example is. conversational: its parts are lists
    of messages, not plain texts. held_out: whether there is a data/eval.jsonl. reward: Python source of a function
    `reward` that GRPO judges samples by (None: the built-in comparison with the data's answers). report_to: whom it
    reports to as well. cluster and nodes: what starts it, on how many machines. examples: rows of the data, if known.
    """

    model_ref: str
    form: Form = "prompt-completion"
    conversational: bool = False
    held_out: bool = True
    report_to: tuple[Monitor, ...] = ()
    reward: str | None = None
    cluster: ClusterId | None = None
    nodes: int = Field(1, ge=1, le=10_000)
    examples: PositiveInt | None = None


class Emitter:
    """One platform. Subclasses stand in one file each and say what they cannot express; they never leave it out."""

    id: Platform
    requirements: tuple[str, ...] = ()

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """Say why this platform cannot express the plan, or None."""
        raise NotImplementedError

    def command(self, plan: Plan) -> tuple[str, ...]:
        """The one command that runs the emitted files, inside their folder."""
        raise NotImplementedError

    def files(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None) -> dict[str, str]:
        """Texts by relative path, without plan.json and the data."""
        raise NotImplementedError

    def adapt_row(self, example: dict[str, Any]) -> dict[str, Any]:
        """A normalised example as this platform reads it, for data/*.jsonl. Raises UnsupportedError: it cannot."""
        return example

    def packages(self, plan: Plan) -> tuple[str, ...]:
        """Exact versions that this plan needs."""
        return self.requirements

    def pins(self, plan: Plan, source: Source) -> tuple[str, ...]:
        """Those of the plan and of what watches the run."""
        return (*self.packages(plan), *(MONITOR_PACKAGES[name] for name in source.report_to))

    def emit(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None = None) -> Emission:
        """Write the plan out. Pure.

        Raises:
            UnsupportedError: the method or the platform refuses; the message is the reason.
            InvalidInputError: a name or value that no UTF-8 file can hold.
        """
        method = get_method(plan.method)
        reason = method.refusal(model, plan) or self.refusal(plan, model, source)
        if reason is not None:
            raise UnsupportedError(reason, "`ftadvise advise` lists the combinations that can be run.")
        run = RunFile(
            platform=self.id,
            plan=plan,
            model=model.name,
            model_parameters=model.parameters,
            trainable_parameters=method.trainable_parameters(model, plan),
            requirements=self.pins(plan, source),
            forecast=forecast,
            source=source,
        )
        files = self.files(plan, model, source, forecast)
        for name, text in {**files, "model_ref": source.model_ref}.items():
            try:
                text.encode()
            except UnicodeEncodeError:
                raise InvalidInputError(name, "holds a character that is no valid Unicode text") from None
        files[RUN_FILE] = run.model_dump_json(indent=2) + "\n"
        return Emission(platform=self.id, plan=plan, files=files, command=self.command(plan))


@cache
def template(platform: str, name: str) -> str:
    """A file that every project of a platform gets as it is; "common": of all platforms."""
    return (package_files("advisor.emit") / "data" / platform / name).read_text(encoding="utf-8")


def write_emission(
    emission: Emission, out: Path, *, force: bool = False, add_data: Callable[[Path], None] | None = None
) -> Path:
    """Write all files of `emission` into the folder `out`, or none; returns its absolute path.

    `add_data` is given a folder and writes data/train.jsonl and data/eval.jsonl into it. Without `force` the folder
    must be new or empty; with it, files of the same name are replaced and all others stay.

    Raises:
        InvalidInputError: the folder is not empty, is a file, or cannot be written.
    """
    out = Path(os.path.expanduser(out)).absolute()
    with staged_folder(out, force=force) as new:
        for name, text in emission.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        if add_data is not None:
            add_data(new)
    return out

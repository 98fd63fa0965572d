"""Emission: a plan written out for one platform, as texts by relative path. Only `write_emission` touches the disk."""

import os
import shutil
from collections.abc import Callable
from functools import cache
from importlib.resources import files as package_files
from pathlib import Path, PurePosixPath
from tempfile import mkdtemp
from typing import Any

from pydantic import field_validator

from estimators.answer import Estimate
from estimators.interval import Interval
from estimators.methods import get_method
from profiles.dataset import Form
from profiles.errors import InvalidInputError, UnsupportedError
from profiles.model import ModelSpec
from profiles.plan import Plan, Platform
from profiles.record import Record

RUN_FILE = "plan.json"


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
    """What a run starts from.

    model_ref: hub id or absolute path of the weights. form: what an example is. conversational: its parts are lists
    of messages, not plain texts. held_out: whether there is a data/eval.jsonl. reward: Python source of a function
    `reward` that GRPO judges samples by (None: the built-in comparison with the data's answers).
    """

    model_ref: str
    form: Form = "prompt-completion"
    conversational: bool = False
    held_out: bool = True
    reward: str | None = None


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
            requirements=self.packages(plan),
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
    if out.exists() and not out.is_dir():
        raise InvalidInputError(str(out), "is a file, not a folder", "Choose another folder.")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise InvalidInputError(str(out), "is not empty", "Choose another folder, or add --force to replace its files.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(dir=out.parent, prefix=".ftadvise-"))
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror}") from None
    try:
        new, old = staging / "new", staging / "old"
        new.mkdir()
        for name, text in emission.files.items():
            path = new / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        if add_data is not None:
            add_data(new)
        _move_in(new, out, old)
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return out


def _move_in(new: Path, out: Path, old: Path) -> None:
    """Move every file of `new` to `out`; what stood there goes to `old`, and comes back if a later move fails."""
    if not out.exists():
        os.replace(new, out)
        return
    moved: list[Path] = []
    try:
        for path in sorted(p for p in new.rglob("*") if p.is_file()):
            name = path.relative_to(new)
            target = out / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():
                (old / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(target, old / name)
            moved.append(name)
            os.replace(path, target)
    except BaseException:
        for name in moved:
            (out / name).unlink(missing_ok=True)
            if (old / name).exists():
                os.replace(old / name, out / name)
        raise

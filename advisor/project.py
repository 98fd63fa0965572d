"""A plan, its data and its forecast -> a folder that trains: what `ftadvise emit` does."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.api import estimate
from advisor.emit import ClusterId, Emission, Forecast, RunFile, Source, emit, emitters, write_emission
from advisor.emit.base import RUN_FILE, Monitor, PlanChange
from advisor.facts import find_known, find_tokenizer, resolve_model
from advisor.launch.folder import load_run_file
from estimators.answer import Estimate
from profiles.dataset import TASK_FORMS, Form
from profiles.errors import AdviseError, InvalidInputError
from profiles.model import ModelSpec
from profiles.plan import Plan

if TYPE_CHECKING:
    from advisor.dataset import Dataset


def write_project(
    plan: Plan,
    model: ModelSpec,
    estimate: Estimate,
    out: Path,
    *,
    data: str | None = None,
    replay: str | None = None,
    reward: str | None = None,
    general_text: str | None = None,
    report_to: tuple[Monitor, ...] = (),
    cluster: ClusterId | None = None,
    nodes: int = 1,
    examples: int | None = None,
    force: bool = False,
) -> Emission:
    """Write the project of `plan` into the folder `out`, with `data` split into training and held-out examples, and of
    `replay` the plan's share mixed into those that are trained on.

    Without `data` the folder's data/ has to be filled before the run. `reward`: Python source of what GRPO rewards.
    `general_text`: a file of texts whose loss is measured before and after, "none" for no such measurement; without it
    those that ship with ftadvise. `cluster`: also what that system needs to run it, on `nodes` machines, for as long as
    `examples` take where there is no `data` to count.

    Raises:
        UnsupportedError: the platform cannot express the plan, or its data.
        InvalidInputError: the folder is not empty, or the data are broken.
    """
    from advisor.dataset import read_dataset
    from advisor.general_text import write_general_text

    dataset = None if data is None else read_dataset(Path(data))
    general = None if replay is None else read_dataset(Path(replay))
    source = _without_data(plan)
    if dataset is not None:
        source = _source(plan, dataset.format.form, conversational=_is_conversational(plan, dataset))
        examples = len(dataset)
    about = {"reward": reward, "report_to": report_to, "cluster": cluster, "nodes": nodes, "examples": examples}

    def add_data(folder: Path) -> None:
        write_general_text(folder / "data", general_text)
        if dataset is not None:
            _write_data(plan, dataset, general, folder / "data")

    emission = emit(plan, model, source.replace(**about), Forecast.of(estimate))
    write_emission(emission, out, force=force, add_data=add_data)
    return emission


def rewrite_project(folder: Path, plan: Plan, change: PlanChange) -> None:
    """Write the project in `folder` anew for `plan`, with a forecast of it; data and runs stay as they are.

    Raises:
        AdviseError: its files are not those that its plan gives (code 'edited-project').
    """
    run, source, model = read_unedited(folder)
    emission = emit(plan, model, source, Forecast.of(estimate(plan.replace(model=source.model_ref))))
    written = RunFile.model_validate_json(emission.files[RUN_FILE]).replace(history=(*run.history, change))
    files = {**emission.files, RUN_FILE: written.model_dump_json(indent=2) + "\n"}
    write_emission(emission.replace(files=files), folder, force=True)


def read_unedited(folder: Path) -> tuple[RunFile, Source, ModelSpec]:
    """The project in `folder`, whose plan says all that its files do.

    Raises:
        AdviseError: its files are not those that its plan gives (code 'edited-project').
    """
    run = load_run_file(folder)
    source = run.source
    if source is None:
        raise AdviseError("edited-project", f"{folder} was written by an older ftadvise", "Emit it anew.")
    model = resolve_model(source.model_ref)
    texts = emit(run.plan, model, source, run.forecast).files
    edited = sorted(name for name, text in texts.items() if name != RUN_FILE and not _holds(folder / name, text))
    if edited:
        raise AdviseError(
            "edited-project",
            f"{folder}: {', '.join(edited)} differ from what ftadvise writes for its plan, so they are left alone",
            "Emit them anew with `ftadvise emit --force`, or go on by hand.",
        )
    return run, source, model


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text(encoding="utf-8") == text


def find_weights(ref: str | dict[str, Any]) -> str:
    """Where a run loads the weights from: a hub id, or the absolute path of a local folder.

    Raises:
        InvalidInputError: `ref` is a bare config, which has no weights.
    """
    if isinstance(ref, dict):
        raise InvalidInputError("model", "is a config without weights", "Name a hub id or a folder to write a run.")
    row = find_known(ref)
    path = Path(os.path.expanduser(ref))
    if row is None and path.exists():
        return str((path if path.is_dir() else path.parent).resolve())
    return row.id if row is not None else ref


def _source(plan: Plan, form: Form, *, conversational: bool = False) -> Source:
    return Source(
        model_ref=find_weights(plan.model),
        form=form,
        conversational=conversational,
        held_out=plan.eval_fraction > 0,
    )


def _is_conversational(plan: Plan, dataset: Any) -> bool:
    """As the first example says; instructions become plain texts where the model has no chat template."""
    if dataset.format.name == "alpaca":
        return _has_chat_template(plan.model, "alpaca")
    return any(isinstance(value, list) for value in next(iter(dataset), {}).values())


def _without_data(plan: Plan) -> Source:
    return _source(plan, TASK_FORMS[plan.task][0])


def _write_data(plan: Plan, dataset: "Dataset", general: "Dataset | None", folder: Path) -> None:
    """data/train.jsonl, with the general examples of the plan's share, and, if any is held out, data/eval.jsonl."""
    from advisor.dataset import draw_replay, split, write_normalised

    template = _has_chat_template(plan.model, dataset.format.name)
    adapt = emitters()[plan.platform].adapt_row
    train, held_out = split(dataset, plan.eval_fraction, plan.seed) if plan.eval_fraction > 0 else (dataset, None)
    also = None if general is None else draw_replay(general, len(train), plan.replay_share, plan.seed)
    write_normalised(train, folder / "train.jsonl", also=also, chat_template=template, adapt=adapt)
    if held_out is not None:
        write_normalised(held_out, folder / "eval.jsonl", chat_template=template, adapt=adapt)


def _has_chat_template(ref: str | dict[str, Any], format_name: str) -> bool:
    """As the tokenizer says; if it is not at hand, instructions become plain prompts and chats stay chats."""
    tokenizer = find_tokenizer(ref)
    if tokenizer is None:
        return format_name != "alpaca"
    from advisor.dataset.chat import read_config

    return bool(read_config(tokenizer.parent).get("chat_template"))

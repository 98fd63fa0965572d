"""The options that commands share, named as the fields of the records that they fill."""

from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from advisor.cli.records import build_record
from advisor.request import Deployment, Goal, Preference, Request, Skill
from advisor.request_flags import flag_of
from profiles.errors import InvalidInputError
from profiles.plan import Platform, Quantization, Task

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """--json."""
    return click.option("--json", "as_json", is_flag=True, help="Answer in JSON (schema ftadvise/1).")(command)


REQUEST_OPTIONS = (
    click.option("--model", help="Nickname (llama-8b), hub id, folder or config.json."),
    click.option("--gpu", help='Card: rtx4090, "2x a100-80g", cpu. Default: what this machine has.'),
    click.option("--vram", "vram_gib", type=float, metavar="GB", help="Memory of a card that is not named."),
    click.option("--n-gpus", type=int, help="Number of cards."),
    click.option("--data", metavar="PATH", help="Training data: jsonl, json, csv, parquet, txt, or a folder."),
    click.option("--replay", metavar="PATH", help="General examples to mix in, against forgetting."),
    click.option("--replay-share", type=float, help="Their share of what is trained.  [default: 0.05]"),
    click.option("--examples", type=int, help="Number of examples, where there is no --data."),
    click.option("--mean-len", type=float, help="Mean tokens of an example, where there is no --data."),
    click.option("--seq-len", type=int, help="Padded length of a sequence, tokens."),
    click.option("--epochs", "num_epochs", type=float, help="Passes over the data.  [default: 1]"),
    click.option("--max-steps", type=int, help="Stop after so many optimizer steps."),
    click.option("--learning-rate", type=float, help="Default: a published one for the method."),
    click.option("--task", type=click.Choice(get_args(Task)), help="Default: sft; classification for encoders."),
    click.option("--goal", type=click.Choice(get_args(Goal)), help="What comes first.  [default: balanced]"),
    click.option(
        "--prefer",
        multiple=True,
        type=click.Choice(get_args(Preference)),
        help="Before the goal's own order; repeat it.",
    ),
    click.option("--deployment", type=click.Choice(get_args(Deployment)), help="What has to come out.  [adapter]"),
    click.option("--skill", type=click.Choice(get_args(Skill)), help="low-code: only platforms that need no code."),
    click.option("--field", help="A special field (medicine, law, ...), whose own test has to judge."),
    click.option("--max-hours", type=float, help="Longest acceptable run."),
    click.option("--max-usd", type=float, help="Dearest acceptable run."),
    click.option("--usd-per-hour", type=float, help="Price of one card an hour."),
    click.option("--ram", "ram_gib", type=float, metavar="GIB", help="Main memory, for what is offloaded."),
    click.option("--disk", "disk_gib", type=float, metavar="GIB", help="Free disk, for the model and checkpoints."),
    click.option("--platform", "platforms", multiple=True, type=click.Choice(get_args(Platform)), help="Only this."),
    click.option("--method", "methods", multiple=True, help="Only this method (full, lora, qlora, ...)."),
    click.option(
        "--quantization", "quantizations", multiple=True, type=click.Choice(get_args(Quantization)), help="Only this."
    ),
    click.option("--rank", "lora_rank", type=int, help="LoRA rank.  [default: 16, less where nothing else fits]"),
    click.option("--target", "target_modules", multiple=True, help="Only adapters on this module (q_proj, ...)."),
    click.option("--packing/--no-packing", default=None, help="Short examples share rows.  [default: by the goal]"),
    click.option("--batch", "global_batch_size", type=int, help="Sequences a step over all cards.  [default: 16]"),
    click.option("--micro-batch", "micro_batch_size", type=int, help="Fix the micro-batch instead of choosing it."),
    click.option("--offline", is_flag=True, help="Never use the network."),
)


def request_options(command: Command) -> Command:
    """All options that make a Request, and --profile, which holds some of them."""
    for option in reversed(REQUEST_OPTIONS):
        command = option(command)
    return click.option("--profile", metavar="FILE", help="A request as YAML; options override it.")(command)


def build_request(fields: dict[str, Any]) -> Request:
    """The request that the options say.

    Raises:
        InvalidInputError: a value that cannot be, under the option's name.
    """
    from advisor.cli.profile_file import read_profile

    path = fields.pop("profile", None)
    given = {name: value for name, value in fields.items() if value is not None and value != ()}
    if given.get("offline") is False:
        del given["offline"]  # a flag that was not given
    content = read_profile(path) if path is not None else {}
    if "model" not in {**content, **given}:
        raise InvalidInputError("--model", "is missing", "Give --model, or a --profile that names one.")
    return build_record(Request, {**content, **given}, flag_of)

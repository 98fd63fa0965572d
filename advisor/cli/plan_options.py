"""The options that say a plan, shared by the commands that take one."""

import json
from collections.abc import Callable
from typing import Any, TypeVar, get_args

import click

from advisor.cli.records import build_record, parse_object, read_text
from profiles.errors import InvalidInputError
from profiles.gpu import Hardware
from profiles.plan import Attention, Checkpointing, Plan, Platform, Quantization, Sharding

Command = TypeVar("Command", bound=Callable[..., Any])

FLAGS = {  # where the option is not the field's name
    "micro_batch_size": "--micro-batch",
    "gradient_accumulation_steps": "--accumulation",
    "lora_rank": "--rank",
    "gradient_checkpointing": "--checkpointing",
}

PLAN_OPTIONS = (
    click.option("--plan", "path", metavar="FILE|-", help="A plan as JSON (`ftadvise schema plan`); - reads stdin."),
    click.option("--model", help="Nickname, hub id, folder or config.json."),
    click.option("--gpu", help="Card. Default: what this machine has."),
    click.option("--vram", type=float, metavar="GB", help="Memory of a card that is not named."),
    click.option("--n-gpus", type=int),
    click.option("--platform", type=click.Choice(get_args(Platform))),
    click.option("--method", help="full, lora, qlora, adalora, bitfit, prompt, prefix, ptuning."),
    click.option("--quantization", type=click.Choice(get_args(Quantization))),
    click.option("--seq-len", type=int, help="Padded length of a sequence, tokens."),
    click.option("--micro-batch", "micro_batch_size", type=int),
    click.option("--accumulation", "gradient_accumulation_steps", type=int),
    click.option("--rank", "lora_rank", type=int),
    click.option("--checkpointing", "gradient_checkpointing", type=click.Choice(get_args(Checkpointing))),
    click.option("--attention", type=click.Choice(get_args(Attention))),
    click.option("--optimizer"),
    click.option("--sharding", type=click.Choice(get_args(Sharding))),
    click.option("--set", "assignments", multiple=True, metavar="FIELD=VALUE", help="Any other field of the plan."),
    click.option("--offline", is_flag=True, help="Never use the network."),
)


def plan_options(command: Command) -> Command:
    """All options that say a plan."""
    for option in reversed(PLAN_OPTIONS):
        command = option(command)
    return command


class AskedPlan:
    """A plan as it was asked for: a file, options, or both. Errors name a field as the user wrote it."""

    def __init__(
        self, path: str | None, vram: float | None, assignments: tuple[str, ...], offline: bool, fields: dict[str, Any]
    ) -> None:
        self.path, self.vram, self.offline = path, vram, offline
        self.given = {name: value for name, value in fields.items() if value is not None}
        self.settings = _parse_settings(assignments)

    def base(self) -> dict[str, Any]:
        """What the file says, and --set on top."""
        path = self.path
        found = parse_object(read_text(path), "plan" if path == "-" else path) if path else {}
        return found | self.settings

    def plan(self, base: dict[str, Any]) -> tuple[Plan, Hardware | None]:
        """The plan with the options on top; the hardware only where --vram says what the plan cannot.

        Raises:
            InvalidInputError: a value that cannot be, or no model.
        """
        from advisor.hardware import resolve_hardware

        def name(field: str) -> str:
            return FLAGS.get(field, f"--{field.replace('_', '-')}") if field in self.given else field

        fields = {**base, **self.given}
        if "model" not in fields:
            raise InvalidInputError("--model", "is missing", "Give --model, or a plan that has it with --plan.")
        plan = build_record(Plan, fields, name)
        hardware = resolve_hardware(plan.gpu, self.vram, plan.n_gpus) if self.vram is not None else None
        return plan, hardware


def _parse_settings(assignments: tuple[str, ...]) -> dict[str, Any]:
    """FIELD=VALUE, the value as JSON where it is some, else as text."""
    fields: dict[str, Any] = {}
    for setting in assignments:
        name, equals, text = setting.partition("=")
        if not equals or name not in Plan.model_fields:
            names = ", ".join(Plan.model_fields)
            raise InvalidInputError("--set", f"{setting!r} is not FIELD=VALUE", f"Fields: {names}.")
        try:
            fields[name] = json.loads(text)
        except ValueError:
            fields[name] = text
    return fields

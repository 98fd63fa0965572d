"""Reading: a training file of some platform as a plan, with what became of each key. Pure: text in, record out."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from pydantic import ValidationError

from profiles.errors import InvalidInputError
from profiles.plan import Plan, Sharding
from profiles.record import Record

Words = Mapping[str, Callable[[Plan], dict[str, str]]]
Kind = Literal["read", "harmless", "not judged", "void", "unknown"]
OpenFile = Callable[[str], str | None]  # the text of a file that the training file names, None where it is not here


class KeyNote(Record):
    """A key and what became of it: translated ("read"), without bearing on memory and speed ("harmless"), "not judged"
    (the estimate stands all the same), "void" (it does not), or "unknown" to the platform's release."""

    key: str
    kind: Kind
    text: str = ""


class Finding(Record):
    """Something about a key of the file, or about what it sets. error: the platform refuses it or the run fails;
    warning: it runs, but is worth a second look. fix: what to write instead."""

    level: Literal["error", "warning"]
    key: str
    text: str
    fix: str = ""


class Reading(Record):
    """A file as it was understood.

    plan: for one card, its model empty where the script computes it; None where the file trains nothing that a plan can
    say: `unjudged` then is the reason, or why an estimate would mean nothing. n_gpus, sharding, offloading: what the
    file says of several cards. float_by_card: 16-bit floats are bf16 or fp16 as the card has it. targets_by_model:
    PEFT's default modules are adapted. eval_batch_size: sequences of an evaluation's batch, None where there is none.
    """

    format: str
    release: str
    plan: Plan | None
    unjudged: str = ""
    keys: tuple[KeyNote, ...] = ()
    findings: tuple[Finding, ...] = ()
    n_gpus: int | None = None
    sharding: Sharding | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False
    float_by_card: bool = False
    targets_by_model: bool = False
    eval_batch_size: int | None = None


class Reader:
    """One format. Subclasses stand in one file each and leave an instance in `READER`.

    keys: what fields of a plan are called in this format. words: how a change of a field is written, as key and value.
    """

    id: str
    title: str
    is_script = False
    keys: ClassVar[Mapping[str, str]] = MappingProxyType({})
    words: ClassVar[Words] = MappingProxyType({})

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """Tell by the keys whether a file is of this format; `content` of a script is its calls by name."""
        raise NotImplementedError

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """Translate a file's content.

        Raises:
            InvalidInputError: a value that cannot be, under its key.
        """
        raise NotImplementedError

    def write(self, before: Plan, after: Plan) -> dict[str, str]:
        """The keys to change for `after` instead of `before`, with their values."""
        changes: dict[str, str] = {}
        for field, say in self.words.items():
            if getattr(before, field) != getattr(after, field):
                changes |= say(after)
        return changes


def make_plan(fields: dict[str, Any], keys: Mapping[str, str]) -> Plan:
    """The plan of `fields`. `keys`: what a field is called in the file.

    Raises:
        InvalidInputError: a value that cannot be, under its key.
    """
    try:
        return Plan.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = str(first["loc"][0]) if first["loc"] else "plan"
        problem = first["msg"].removeprefix("Value error, ").replace("Input should", "should", 1)
        raise InvalidInputError(keys.get(field, field), f"{shown(first['input'])} {problem}") from None


def shown(value: object) -> str:
    """A value as messages show it, short."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # integers of thousands of digits, a list that holds itself
        text = f"this {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."

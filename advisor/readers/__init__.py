"""The registry of formats that can be read: one file each in this folder, found by its `READER`."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from advisor.readers.base import Finding, KeyNote, OpenFile, Reader, Reading
from advisor.readers.script import parse_calls
from advisor.readers.yaml_file import parse_yaml
from profiles.errors import InvalidInputError, UnknownNameError

__all__ = ["Finding", "KeyNote", "OpenFile", "Reader", "Reading", "get_reader", "read_file", "readers"]


@cache
def readers() -> dict[str, Reader]:
    """All formats by id."""
    found = (getattr(import_module(module.name), "READER", None) for module in iter_modules(__path__, f"{__name__}."))
    return {reader.id: reader for reader in found if reader is not None}


def get_reader(name: str) -> Reader:
    """The reader called `name`.

    Raises:
        UnknownNameError: there is none.
    """
    if name not in readers():
        raise UnknownNameError("format", name, (), f"Formats: {', '.join(readers())}.")
    return readers()[name]


def read_file(
    text: str, where: str = "file", *, form: str | None = None, open_file: OpenFile = lambda path: None
) -> Reading:
    """Read a training file; `form` names its format, else its keys tell it. Pure but for `open_file`.

    Raises:
        InvalidInputError: it is of no known format, or a value in it cannot be.
        UnknownNameError: there is no such format.
    """
    if form is not None:
        reader = get_reader(form)
        return reader.read(_content(text, where, reader.is_script), open_file)
    try:
        content, script = _content(text, where, False), False
    except InvalidInputError:
        try:
            content, script = _content(text, where, True), True
        except InvalidInputError:
            content = {}
        if not content.get("calls"):
            raise  # what is neither is told as YAML, which most files are
    for reader in readers().values():
        if reader.is_script == script and reader.recognises(content):
            return reader.read(content, open_file)
    names = ", ".join(reader.title for reader in readers().values())
    raise InvalidInputError(where, "has the keys of no format that is known", f"Known: {names}. --format names one.")


def _content(text: str, where: str, script: bool) -> Mapping[str, Any]:
    return {"calls": parse_calls(text, where)} if script else parse_yaml(text, where)

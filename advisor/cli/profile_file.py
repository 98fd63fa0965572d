"""A request as a YAML profile: the fields of `Request` under their own names. Flags override it."""

from typing import Any

from advisor.cli.records import build_record, read_text
from advisor.request import Request
from profiles.errors import InvalidInputError

HINT = "A profile has the fields of `ftadvise schema request`, one a line: `model: llama-8b`."


def read_profile(path: str) -> dict[str, Any]:
    """The fields that the profile at `path` sets, each checked.

    Raises:
        InvalidInputError: no YAML, no mapping, or a field that cannot be; with file, path of the field and a hint.
    """
    import yaml

    try:
        content = yaml.safe_load(read_text(path))
    except (yaml.YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}" if mark is not None else path
        problem = getattr(error, "problem", None) or "cannot be parsed"
        raise InvalidInputError(place, f"is not YAML: {problem}", HINT) from None
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise InvalidInputError(path, "is not a mapping of fields to values", HINT)
    unknown = [key for key in content if key not in Request.model_fields]
    if unknown:
        from difflib import get_close_matches

        near = get_close_matches(unknown[0], Request.model_fields, n=2)
        said = f"Did you mean {' or '.join(near)}?" if near else f"Fields: {', '.join(Request.model_fields)}."
        raise InvalidInputError(f"{path}: {unknown[0]}", "there is no such field", said)
    checked = {"model": "any", **content}
    build_record(Request, checked, lambda field: f"{path}: {field}")
    return content


def dump_profile(request: Request) -> str:
    """The profile that reads back as `request`, without what stands at its default."""
    import yaml

    fields = request.model_dump(mode="json", exclude_defaults=True)
    return yaml.safe_dump(fields, sort_keys=False, allow_unicode=True)

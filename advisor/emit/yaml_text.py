"""Settings as YAML text with comments: what is written reads back as what was given, whatever it holds."""

from collections.abc import Mapping
from typing import Any

import yaml


def dump_commented(values: Mapping[str, Any], comments: Mapping[str, str]) -> str:
    """`values` key by key, with its comment above a key that has one."""
    return "".join((f"# {comments[key]}\n" if key in comments else "") + _dump({key: values[key]}) for key in values)


def _dump(section: dict[str, Any]) -> str:
    """Readable where it can be: PyYAML loses some Unicode line ends unless all of Unicode is escaped."""
    text = yaml.safe_dump(section, sort_keys=False, allow_unicode=True, width=110)
    return text if yaml.safe_load(text) == section else yaml.safe_dump(section, sort_keys=False, width=110)

"""The one base of all records: frozen, keyword-only, closed against unknown keys, NaN and infinity."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """An immutable fact or answer. Change it with `replace`, never in place."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), ser_json_inf_nan="null"
    )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`, validated again (pydantic's `model_copy(update=...)` is not)."""
        return type(self).model_validate({**dict(self), **changes})

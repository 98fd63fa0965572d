"""The one base of all records: frozen, keyword-only, closed against unknown keys, NaN and infinity."""

from typing import Any, Self, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from profiles.errors import InvalidInputError


class Record(BaseModel):
    """An immutable fact or answer. Change it with `replace`, never in place."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=(), ser_json_inf_nan="null"
    )

    def replace(self, **changes: Any) -> Self:
        """Return a copy with `changes`, validated again (pydantic's `model_copy(update=...)` is not)."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}  # dict(self) has cached properties too
        return type(self).model_validate({**fields, **changes})


RecordT = TypeVar("RecordT", bound=Record)


def parse_record(kind: type[RecordT], data: Any, where: str, hint: str = "") -> RecordT:
    """Validate `data` as a `kind`. Raises InvalidInputError that names the first wrong key inside `where`."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in (where, *first["loc"]))
        unknown = first["type"] == "extra_forbidden"
        fields = ", ".join(kind.model_fields)
        raise InvalidInputError(
            place, "unknown key" if unknown else first["msg"], hint or (f"Keys: {fields}" if unknown else "")
        ) from None

"""ConfigReader: typed access to a config.json that may be broken or hostile; every complaint names the field."""

from typing import Any

from profiles.errors import InvalidModelError

# Upper bounds only keep nonsense out: the largest real values are about 1/10 of them or less.
MAX_LAYERS = 4_096
MAX_SIZE = 2**24  # widths, vocabularies, heads
MAX_EXPERTS = 2**16
MAX_POSITIONS = 1_073_741_824

_HINT = "Take config.json as the model's hub page has it; sizes are whole numbers, not strings."


def _shown(value: object) -> str:
    """The value for a message, short whatever it is (Python refuses to print integers of thousands of digits)."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"an integer of {value.bit_length()} bits"
    if not isinstance(value, int | float | str):
        return type(value).__name__
    text = f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 60 else f"{text[:57]}..."


class ConfigReader:
    """Reads one config.json dict. `name` is the model's name, for messages and for the record.

    Every method raises InvalidModelError with the field's name where the value cannot be.
    """

    def __init__(self, config: dict[str, Any], name: str) -> None:
        self.config = config
        self.name = name

    def error(self, key: str, message: str, hint: str = _HINT) -> InvalidModelError:
        """The error to raise about field `key`."""
        return InvalidModelError(f"{self.name}: {key}", message, hint)

    def count(self, *keys: str, default: int | None = None, high: int = MAX_SIZE, low: int = 1) -> int:
        """A whole number under the first of `keys` that is there; else (or if null) `default`, None: required."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int):
                raise self.error(key, f"must be a whole number, got {_shown(value)}")
            if not low <= value <= high:
                raise self.error(key, f"must be from {low} to {high}, got {_shown(value)}")
            return value
        if default is None:
            raise self.error(keys[0], "is missing")
        return default

    def optional_count(self, key: str, default: int | None = None) -> int | None:
        """A whole number or None; an explicit null is None, whatever the `default` for a missing key."""
        if key not in self.config:
            return default
        return None if self.config[key] is None else self.count(key)

    def flag(self, *keys: str, default: bool) -> bool:
        """true or false under the first of `keys` that is there."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if not isinstance(value, bool):
                raise self.error(key, f"must be true or false, got {_shown(value)}")
            return value
        return default

    def rate(self, key: str, *, default: float) -> float:
        """A share from 0 to below 1 under `key`; else (or if null) `default`."""
        value = self.config.get(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise self.error(key, f"must be from 0 to below 1, got {_shown(value)}")
        return float(value)

    def text(self, *keys: str, default: str) -> str:
        """A string under the first of `keys` that is there."""
        for key in keys:
            value = self.config.get(key)
            if value is None:
                continue
            if not isinstance(value, str):
                raise self.error(key, f"must be a string, got {_shown(value)}")
            return value
        return default

    def items(self, key: str, kind: type, length: int | None = None) -> list[Any] | None:
        """A list of `kind` (of `length` entries, where given) or None."""
        value = self.config.get(key)
        if value is None:
            return None
        if not isinstance(value, list | tuple) or not all(type(x) is kind for x in value):
            raise self.error(key, f"must be a list of {kind.__name__}, got {_shown(value)}")
        if length is not None and len(value) != length:
            raise self.error(key, f"has {len(value)} entries for {length} layers")
        return list(value)

    def partial_rotary_factor(self, default: float = 1.0, key: str = "partial_rotary_factor") -> float:
        """Share of head_dim that is rotated: under `key`, or in `rope_parameters` as transformers 5 writes it."""
        rope = self.config.get("rope_parameters")
        value = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
        value = self.config.get(key, default) if value is None else value
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self.error(key, f"must be above 0 and at most 1, got {_shown(value)}")
        return float(value)

    @property
    def hidden_size(self) -> int:
        """`hidden_size`, which must be there."""
        return self.count("hidden_size")

    def num_hidden_layers(self, *keys: str) -> int:
        """`num_hidden_layers` (or the older names in `keys`), which must be there."""
        return self.count("num_hidden_layers", *keys, high=MAX_LAYERS)

    def max_position_embeddings(self, *keys: str, default: int) -> int:
        """`max_position_embeddings` (or the older names in `keys`)."""
        return self.count("max_position_embeddings", *keys, default=default, high=MAX_POSITIONS)

    def per_head(self, width: int, heads: int) -> int:
        """width / heads, which must divide."""
        if width % heads:
            raise self.error("num_attention_heads", f"hidden_size {width} is not a multiple of {heads} heads")
        return width // heads

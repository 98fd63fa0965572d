"""Errors that a user can act on: what is wrong, where, and what to do. Everything else is a bug."""

from pathlib import Path


class AdviseError(Exception):
    """The one error that reaches the edges; the CLI prints it and exits with 2.

    `code` is stable for machines (kebab-case), `message` says what and where, `hint` says what to do.
    """

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def to_dict(self) -> dict[str, str]:
        """The `error` object of every JSON answer."""
        return {"code": self.code, "message": self.message, "hint": self.hint}


class UnknownNameError(AdviseError):
    """A name that the catalogue (or a registry) does not hold; the hint suggests near ones."""

    def __init__(self, kind: str, name: str, suggestions: tuple[str, ...], listing: str) -> None:
        near = f"Did you mean {', '.join(suggestions)}? " if suggestions else ""
        super().__init__(f"unknown-{kind}", f"unknown {kind} {name!r}", f"{near}{listing}")
        self.suggestions = suggestions


class InvalidInputError(AdviseError):
    """A value that cannot be: names the place in the input, as `seq_len` or `data.jsonl:17`."""

    def __init__(self, where: str, message: str, hint: str = "") -> None:
        super().__init__("invalid-input", f"{where}: {message}", hint)
        self.where = where


class InvalidModelError(AdviseError):
    """A config.json that is broken, hostile, or of an architecture that cannot be described."""

    def __init__(self, where: str | Path, message: str, hint: str = "") -> None:
        super().__init__("invalid-model", f"{where}: {message}", hint)


class UnsupportedError(AdviseError):
    """A combination that is well-formed but does not exist; the message is the reason."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__("unsupported", message, hint)

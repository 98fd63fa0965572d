"""Unsloth: known as a platform, not written out yet."""

from advisor.emit.base import Emitter, Source
from profiles.model import ModelSpec
from profiles.plan import Plan


class Unsloth(Emitter):
    """Refuses every plan, honestly."""

    id = "unsloth"

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """Say that nothing is emitted."""
        return "plans for Unsloth are not emitted yet; --platform hf writes the same method for Hugging Face"


EMITTER = Unsloth()

"""LLaMA-Factory: known as a platform, not written out yet."""

from advisor.emit.base import Emitter, Source
from profiles.model import ModelSpec
from profiles.plan import Plan


class LlamaFactory(Emitter):
    """Refuses every plan, honestly."""

    id = "llamafactory"

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """Say that nothing is emitted."""
        return "plans for LLaMA-Factory are not emitted yet; --platform hf writes the same method for Hugging Face"


EMITTER = LlamaFactory()

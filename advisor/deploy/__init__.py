"""Deploy a finished run: merge, GGUF, vLLM, model card."""

from advisor.deploy.write import Deployed, Tools, deploy

__all__ = ["Deployed", "Tools", "deploy"]

"""Print, as JSON, the keywords that the installed Unsloth and what it patches take.

PYTHON_OF_UNSLOTH tests/unsloth/signatures.py > tests/golden/unsloth_signatures.json
"""

import contextlib
import inspect
import json
import sys
from importlib.metadata import version

with contextlib.redirect_stdout(sys.stderr):
    import without_gpu  # noqa: F401
    from peft import LoraConfig
    from transformers.training_args import OptimizerNames
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel


def keywords(function):
    """Named parameters; what `**kwargs` would swallow is none."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return sorted(p.name for p in inspect.signature(function).parameters.values() if p.kind in named)


found = {
    "command": "PYTHON_OF_UNSLOTH tests/unsloth/signatures.py",
    "versions": {name: version(name) for name in ("unsloth", "unsloth_zoo", "trl", "peft", "transformers")},
    "from_pretrained": keywords(FastLanguageModel.from_pretrained),
    "get_peft_model": keywords(FastLanguageModel.get_peft_model),
    "LoraConfig": keywords(LoraConfig),
    "SFTConfig": keywords(SFTConfig),
    "SFTTrainer": keywords(SFTTrainer),
    "optim": sorted(name.value for name in OptimizerNames),
}
if __name__ == "__main__":
    print(json.dumps(found, indent=1))

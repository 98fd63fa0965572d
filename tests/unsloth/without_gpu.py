"""Import Unsloth on a machine without a GPU, with everything patched that it patches on one. Needs its environment."""

import os

os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # lets the import pass, but leaves TRL as it is

import unsloth  # noqa: F401
import unsloth.models.rl as rewriting
import unsloth.trainer as wrapping

os.environ["UNSLOTH_ALLOW_CPU"] = "0"
rewriting.patch_trl_rl_trainers()
wrapping._patch_trl_trainer()

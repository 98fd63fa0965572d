"""Merge a run's adapter into its base: in the platform's environment, by a child process on the CPU."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from advisor.detection import detect_cpu
from advisor.launch.outcome import last_error
from profiles.errors import AdviseError
from profiles.record import Record
from profiles.units import bytes_from_gib, format_bytes

SCRIPT = Path(__file__).parent / "data" / "merge.py"
# Mean Kullback-Leibler divergence, nats a token. Rounding merged weights to 16 bits may cost no more than storing them
# in 8 bits does: .00136 for Llama 3 8B in q8_0 (llama.cpp, tools/perplexity/README.md; bf16 against fp16: .00003).
TOLERANCE = 0.00136
BYTES = 4  # of a parameter in fp32: in bf16 the rounding of the activations alone comes to .001 (SmolLM2-135M)


class MergeCheck(Record):
    """The saved weights against the adapter over its base, on `tokens` of a sample.

    divergence: mean Kullback-Leibler divergence of the next token's distribution, nats. same_choice: share of tokens
    for which both find the same one likeliest. dtype: that of the saved weights.
    """

    base: str
    dtype: str
    tokens: int
    divergence: float
    same_choice: float

    @property
    def holds(self) -> bool:
        """Whether the two say the same, within what 8-bit storage would cost."""
        return self.divergence <= TOLERANCE


def merge(python: str, base: str, adapter: Path, out: Path, texts: Sequence[str], *, parameters: int) -> MergeCheck:
    """Write the merged model and its tokenizer into `out`.

    Raises:
        AdviseError: main memory is short (code 'memory-short'), or the merge failed (code 'merge-failed').
    """
    _check_memory(parameters)
    arguments = json.dumps({"base": base, "adapter": str(adapter), "out": str(out), "texts": list(texts)})
    ended = subprocess.run(
        [python, str(SCRIPT), arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "false"},
    )
    if ended.returncode != 0:
        raise AdviseError("merge-failed", f"the merge failed: {last_error(ended.stderr)}", f"It was run by {python}.")
    return MergeCheck(base=base, **json.loads(ended.stdout.splitlines()[-1]))


def _check_memory(parameters: int) -> None:
    needed, free = BYTES * parameters, detect_cpu().free_gib
    if free is not None and needed > bytes_from_gib(free):
        raise AdviseError(
            "memory-short",
            f"merging needs {format_bytes(needed)} of main memory, {format_bytes(bytes_from_gib(free))} are free",
            "Merge on a larger machine, or deploy the adapter: `--to adapter` needs no memory.",
        )

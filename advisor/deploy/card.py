"""The model card of a deployed result: Hugging Face's header, and what was measured."""

import re
from collections.abc import Sequence
from pathlib import PurePath

import yaml

from advisor.deploy.merge import MergeCheck
from advisor.deploy.result import Result
from advisor.emit.readme import code_span
from advisor.render.plan import describe_plan
from advisor.retention import describe_retention, show_perplexity
from profiles.measurement import Measurement
from profiles.plan import QUANTIZED
from profiles.units import format_bytes, format_count

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
RELATIONS = {"adapter": "adapter", "gguf": "quantized"}  # to the base, in the hub's words; of others: finetune
PEAKS = (("peak_allocated", "allocated"), ("peak_reserved", "reserved"), ("peak_process", "of the process"))


def model_card(result: Result, kind: str, check: MergeCheck | None, use: str, notes: Sequence[str]) -> str:
    """README.md as Markdown. `kind`: adapter, merged or gguf. `use`: code or a command that loads it. Pure."""
    run, plan = result.run, result.run.plan
    return "\n".join(
        [
            "---",
            yaml.safe_dump(header(result, kind), sort_keys=False, allow_unicode=True).rstrip(),
            "---",
            "",
            f"# {code_span(name_of(result))}",
            "",
            f"{code_span(_shown(result.base))}, fine-tuned ({plan.task}) by {run.platform}: {plan.method}, "
            f"{format_count(run.trainable_parameters)} of {format_count(run.model_parameters)} parameters trained.",
            "",
            "## Use",
            "",
            "```",
            use,
            "```",
            "",
            "## Measured",
            "",
            *measured(result.measurement),
            *([f"- merged weights: {_checked(check)}"] if check is not None else []),
            "",
            "The losses tell how well the model predicts texts like those held out, not whether its answers are right.",
            "",
            "## Trained",
            "",
            *(f"- {name.lower()}: {code_span(value)}" for name, value in describe_plan(plan)),
            *(f"- {data.name}: {data.rows} rows, sha256 `{data.sha256}`" for data in result.data),
            *_versions(result.measurement),
            *([f"- note: {note}" for note in notes]),
            "",
            "Licence and terms of the base model apply.",
            "",
        ]
    )


def header(result: Result, kind: str) -> dict[str, object]:
    """The hub's metadata. A base that lies in a folder of this machine has no name there."""
    base = result.base
    known = (
        {"base_model": base, "base_model_relation": RELATIONS.get(kind, "finetune")} if HUB_ID.fullmatch(base) else {}
    )
    library = {"adapter": "peft", "gguf": "gguf"}.get(kind, "transformers")
    tags = ["ftadvise", result.run.plan.method, result.run.plan.task]
    return {**known, "library_name": library, "pipeline_tag": "text-generation", "tags": tags}


def name_of(result: Result) -> str:
    """The run's folder names what came of it."""
    return PurePath(result.folder).name


def measured(found: Measurement) -> list[str]:
    """Losses, retention, memory, speed and hardware, a line each."""
    lines = []
    if found.eval_loss_before is not None and found.eval_loss_after is not None:
        before, after = found.eval_loss_before, found.eval_loss_after
        lines.append(
            f"- held-out lines: loss {before:.4f} before, {after:.4f} after "
            f"(perplexity {show_perplexity(before)} and {show_perplexity(after)})"
        )
    if found.retention is not None:
        lines.append(f"- general text: {describe_retention(found.retention)}")
    for field, title in PEAKS:
        peak = getattr(found, field)
        if peak is not None:
            lines.append(f"- peak memory {title}: {format_bytes(peak)}")
    if found.step_seconds_median is not None:
        lines.append(f"- a step: {found.step_seconds_median:.3g} s, median")
    if found.tokens_per_second is not None:
        lines.append(f"- speed: {format_count(found.tokens_per_second)} tokens/s")
    return [*lines, f"- steps: {found.steps}", f"- hardware: {code_span(found.environment.hardware)}"]


def quantised_note(result: Result) -> str | None:
    """What merging into other weights than those trained over means."""
    stored = result.run.plan.quantization
    if result.adapter is None or stored not in QUANTIZED:
        return None
    return (
        f"the adapter was trained over the base in {stored}; here it stands over the 16-bit weights of the checkpoint, "
        "so outputs differ by the error of that quantization"
    )


def _versions(found: Measurement) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in found.environment.versions.items())
    return [f"- versions: {versions}"] if versions else []


def _checked(check: MergeCheck) -> str:
    verdict = "as the adapter over its base" if check.holds else "NOT as the adapter over its base"
    return (
        f"{verdict}: Kullback-Leibler divergence {check.divergence:.2g} nats a token, the same likeliest token in "
        f"{check.same_choice:.1%} of {check.tokens} ({check.dtype})"
    )


def _shown(base: str) -> str:
    return base if HUB_ID.fullmatch(base) else PurePath(base).name

"""Placement: what a file says of several cards - DeepSpeed's and accelerate's own configurations, FSDP keys."""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from advisor.readers.base import OpenFile
from advisor.readers.document import Document
from profiles.errors import InvalidInputError
from profiles.plan import Sharding

ZERO: tuple[Sharding, ...] = ("ddp", "zero1", "zero2", "zero3")
# trl 1.16.0 accelerate_configs/*.yaml: the names that --accelerate_config takes, each for 8 processes
TRL_CONFIGS: dict[str, Sharding] = {
    "fsdp1": "fsdp2",
    "fsdp2": "fsdp2",
    "multi_gpu": "ddp",
    "single_gpu": "none",
    "zero1": "zero1",
    "zero2": "zero2",
    "zero3": "zero3",
}
TRL_PROCESSES = 8
_STAGE_IN_NAME = re.compile(r"z(?:ero)?_?([0-3])(?!\d)", re.IGNORECASE)


class Placement(NamedTuple):
    """How the cards share the work; None where the file does not say."""

    n_gpus: int | None = None
    sharding: Sharding | None = None
    offload_optimizer: bool = False
    offload_parameters: bool = False


def read_placement(doc: Document, open_file: OpenFile) -> Placement:
    """Of the keys `deepspeed`, `fsdp` and `fsdp_config`, which all formats share.

    Raises:
        InvalidInputError: a value that cannot be.
    """
    deepspeed = doc.get("deepspeed")
    if deepspeed:
        return _deepspeed(doc, deepspeed, open_file)
    fsdp, config = doc.get("fsdp"), doc.get("fsdp_config")
    if not fsdp and not config:
        return Placement()
    settings = config if isinstance(config, dict) else {}
    if config and not settings:
        doc.leave("fsdp_config", "it is another file: full sharding without offloading is assumed")
    version = settings.get("fsdp_version", settings.get("version", doc.content.get("fsdp_version")))
    if str(version) == "1":
        doc.leave("fsdp_config", "FSDP 1 is counted as FSDP 2")
    offload = _is_true(settings.get("offload_params", settings.get("fsdp_offload_params"))) or "offload" in str(fsdp)
    return Placement(sharding="fsdp2", offload_optimizer=offload, offload_parameters=offload)


def _deepspeed(doc: Document, value: Any, open_file: OpenFile) -> Placement:
    """A mapping, or a file that holds it; where the file is not here its name may tell the stage."""
    if isinstance(value, dict):
        return parse_deepspeed(value)
    if not isinstance(value, str):
        raise doc.refusal("deepspeed", "is neither a file nor a mapping")
    text = open_file(value)
    if text is not None:
        try:
            content = json.loads(text)
        except (ValueError, RecursionError):
            raise InvalidInputError(value, "is no DeepSpeed configuration (JSON)") from None
        if not isinstance(content, dict):
            raise InvalidInputError(value, "holds no JSON object")
        return parse_deepspeed(content)
    name = value.replace("\\", "/").rsplit("/", 1)[-1]
    found = _STAGE_IN_NAME.search(name)
    if found is None:
        doc.leave("deepspeed", "the file is not here: ZeRO-2 is assumed")
        return Placement(sharding="zero2")
    stage, offload = ZERO[int(found[1])], "offload" in name.lower()
    doc.leave("deepspeed", f"the file is not here: {stage}{' with offloading' * offload} is taken from its name")
    return Placement(sharding=stage, offload_optimizer=offload, offload_parameters=offload and stage == "zero3")


def trl_placement(name: str) -> Placement | None:
    """Of a configuration that TRL ships under this name."""
    sharding = TRL_CONFIGS.get(name)
    if sharding is None:
        return None
    return Placement(1 if sharding == "none" else TRL_PROCESSES, sharding)


def parse_deepspeed(content: Mapping[str, Any]) -> Placement:
    """Of DeepSpeed's own configuration.

    Raises:
        InvalidInputError: a stage that does not exist.
    """
    zero = content.get("zero_optimization")
    zero = zero if isinstance(zero, dict) else {}
    stage = zero.get("stage", 0)
    if stage not in (0, 1, 2, 3):
        raise InvalidInputError("zero_optimization.stage", "is none of 0, 1, 2, 3")

    def offloads(key: str) -> bool:
        section = zero.get(key)
        return isinstance(section, dict) and section.get("device") in ("cpu", "nvme")

    return Placement(
        sharding=ZERO[int(stage)],
        offload_optimizer=offloads("offload_optimizer"),
        offload_parameters=offloads("offload_param"),
    )


def parse_accelerate(content: Mapping[str, Any]) -> Placement:
    """Of a file for `accelerate launch --config_file`.

    Raises:
        InvalidInputError: a value that cannot be.
    """
    count = content.get("num_processes")
    if count is not None and (isinstance(count, bool) or not isinstance(count, int) or count < 1):
        raise InvalidInputError("num_processes", "is no number of processes")
    kind = str(content.get("distributed_type", "NO")).upper()
    settings = content.get("fsdp_config" if kind == "FSDP" else "deepspeed_config")
    settings = settings if isinstance(settings, dict) else {}
    if kind == "FSDP":
        offload = _is_true(settings.get("fsdp_offload_params"))
        return Placement(count, "fsdp2", offload, offload)
    if kind == "DEEPSPEED":
        stage = settings.get("zero_stage", 2)
        if stage not in (0, 1, 2, 3):
            raise InvalidInputError("deepspeed_config.zero_stage", "is none of 0, 1, 2, 3")
        optimizer, parameters = (
            settings.get(f"offload_{part}_device") in ("cpu", "nvme") for part in ("optimizer", "param")
        )
        return Placement(count, ZERO[int(stage)], optimizer, parameters)
    if kind in ("MEGATRON_LM", "TPU", "XLA"):
        raise InvalidInputError("distributed_type", f"{kind} is not modelled")
    return Placement(1, "none") if kind == "NO" else Placement(count, "ddp")


def _is_true(value: Any) -> bool:
    return value is True or str(value).lower() == "true"

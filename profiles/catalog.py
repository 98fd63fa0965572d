"""The catalogue: typed rows of `profiles/data/`, found by any of their names.

Files are JSON, `{"sources": {key: Source}, "rows": [...]}`: a row names its sources by key or writes one out.
Each is read once. Unknown keys are refused, with the file and the row named.
"""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt

from profiles.errors import InvalidInputError, UnsupportedError
from profiles.gpu import GpuSpec, PriceRange
from profiles.margin import Margin
from profiles.name_index import NameIndex, normalize_name
from profiles.overhead import Overhead
from profiles.record import Record, RecordT, parse_record
from profiles.scheme import OptimizerSpec, QuantizationSpec
from profiles.source import Source

DATA = Path(__file__).parent / "data"


class ModelRow(Record):
    """A known model: `config` is its config.json (the keys that give shapes), so that it needs no network.

    `id` is its hub id; `variants` are hub ids of the same shapes (chat versions, mirrors); `parameters` is the
    published count that the description is tested against.
    """

    id: str
    aliases: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    parameters: PositiveInt
    config: dict[str, Any] = Field(repr=False)
    gated: bool = False
    license: str = ""
    released: str = ""
    source: Source


class _PriceRow(Record):
    id: str  # the card's
    low: PositiveFloat
    high: PositiveFloat
    source: Source
    note: str = ""


@cache
def load_gpus() -> Mapping[str, GpuSpec]:
    """Cards by id, with their prices. Those whose memory the catalogue does not know are left to `find_gpu`."""
    return MappingProxyType({gpu: _gpu(row) for gpu, row in _gpu_rows().items() if row["memory_gib"] is not None})


@cache
def load_quantizations() -> Mapping[str, QuantizationSpec]:
    """Storage formats of the base's weights, by id."""
    return _load(QuantizationSpec, "quantizations")


@cache
def load_optimizers() -> Mapping[str, OptimizerSpec]:
    """Optimizers by the id that transformers' `optim` argument takes."""
    return _load(OptimizerSpec, "optimizers")


@cache
def load_model_rows() -> Mapping[str, ModelRow]:
    """Known models by hub id."""
    return _load(ModelRow, "models")


def find_gpu(name: str, *, memory_gib: float | None = None) -> GpuSpec:
    """The card of that name; of a family of several sizes ('a100') the smallest, see `find_gpu_family`.

    `memory_gib` takes the place of the catalogue's figure. Raises UnknownNameError; UnsupportedError where the
    catalogue knows no memory size and none is given.
    """
    family = find_gpu_family(name)
    gpu = family[0].id if family else gpu_index().find(name)
    row = _gpu_rows()[gpu]
    if memory_gib is not None:
        return _gpu({**row, "memory_gib": memory_gib, "memory_gib_is_reported": False})
    if row["memory_gib"] is None:
        raise UnsupportedError(
            f"the catalogue has no memory size for {row['name']}: {row['notes']}",
            "Add --vram with the GiB that the card reports.",
        )
    return load_gpus()[gpu]


def find_gpu_family(name: str) -> tuple[GpuSpec, ...]:
    """The cards that a bare name covers ('a100': 40 and 80 GB), smallest first; empty where it means one card."""
    members = _families().get(normalize_name(name), ())
    return tuple(sorted((load_gpus()[gpu] for gpu in members), key=lambda gpu: gpu.memory_gib))


def find_gpus_by_marketed_size(gigabytes: float) -> tuple[GpuSpec, ...]:
    """Cards sold with that many GB, the one that reports least first."""
    cards = [gpu for gpu in load_gpus().values() if gpu.memory_marketing_gb == gigabytes]
    return tuple(sorted(cards, key=lambda gpu: (gpu.memory_gib, gpu.id)))


def find_model_row(name: str) -> ModelRow:
    """The model of that nickname or hub id. Raises UnknownNameError with near names."""
    return load_model_rows()[model_index().find(name)]


@cache
def find_exact_model_row(name: str) -> ModelRow | None:
    """The model listed under exactly `name`: reads one row, where `find_model_row` indexes every name of all."""
    content = _read("models")
    for row in content["rows"]:
        if name == row["id"] or name in row.get("aliases", ()) or name in row.get("variants", ()):
            where = f"models.json: {row['id']}"
            return parse_record(ModelRow, _with_sources(row, content["sources"], where), where)
    return None


def get_quantization(name: str) -> QuantizationSpec:
    """Raises UnknownNameError."""
    rows = load_quantizations()
    return rows[NameIndex("quantization", dict.fromkeys(rows, ()), f"Known: {', '.join(rows)}.").find(name)]


@cache
def get_optimizer(name: str) -> OptimizerSpec:
    """Raises UnknownNameError."""
    rows = load_optimizers()
    names = {row.id: row.aliases for row in rows.values()}
    return rows[NameIndex("optimizer", names, f"Known: {', '.join(rows)}.").find(name)]


@cache
def get_margin(quantity: str, case: str) -> Margin:
    """The fitted margin of a quantity, such as ("reserved", "eager"). KeyError is a bug, not an input error."""
    return _load(Margin, "margins")[f"{quantity}/{case}"]


@cache
def get_overhead(kind: str, capability: tuple[int, int]) -> Overhead:
    """What a process holds besides tensors ("context", "workspace"). KeyError is a bug, not an input error."""
    rows = _load(Overhead, "overheads")
    own = rows.get(f"{kind}/{capability[0]}.{capability[1]}")
    if own is not None:
        return own
    later = {
        tuple(map(int, row.id.split("/")[1].split("."))): row
        for row in rows.values()
        if row.from_here_on and row.id.startswith(f"{kind}/")
    }
    reached = [since for since in later if since <= capability]
    return later[max(reached)] if reached else rows[f"{kind}/any"]


@cache
def gpu_index() -> NameIndex:
    """Every name of every card, those of unknown memory size too."""
    names = {gpu: (row["name"], *row["aliases"]) for gpu, row in _gpu_rows().items()}
    return NameIndex("gpu", names, "`ftadvise gpus` shows all; --vram takes a memory size instead.")


@cache
def model_index() -> NameIndex:
    """Every name of every model: id, aliases, variants, and the id without its organisation where only one has it."""
    rows = load_model_rows().values()
    claims: dict[str, set[str]] = {}
    for row in rows:
        for hub_id in (row.id, *row.variants):
            claims.setdefault(normalize_name(hub_id.split("/")[-1]), set()).add(row.id)
    for row in rows:
        for alias in row.aliases:
            claims[normalize_name(alias)] = {row.id}
    names = {row.id: (*row.aliases, *row.variants) for row in rows}
    short = {row.id: tuple(key for key, owners in claims.items() if owners == {row.id}) for row in rows}
    return NameIndex(
        "model",
        {model: (*names[model], *short[model]) for model in names},
        "`ftadvise models` shows all; a hub id (org/name) or a folder with a config.json works too.",
    )


@cache
def _gpu_rows() -> dict[str, dict[str, Any]]:
    return {row["id"]: row for row in _rows("gpus")}


@cache
def _prices() -> dict[str, PriceRange]:
    prices = {}
    for row in _load(_PriceRow, "prices").values():
        note = "; ".join(text for text in (row.source.note, row.note) if text)
        prices[row.id] = PriceRange(low=row.low, high=row.high, source=row.source.replace(note=note))
    return prices


@cache
def _families() -> dict[str, tuple[str, ...]]:
    return {normalize_name(name): tuple(members) for name, members in _read("gpus")["families"].items()}


def _gpu(row: dict[str, Any]) -> GpuSpec:
    return parse_record(GpuSpec, {**row, "price_usd_per_hour": _prices().get(row["id"])}, f"gpus.json: {row['id']}")


def _load(kind: type[RecordT], stem: str) -> Mapping[str, RecordT]:
    return MappingProxyType({row["id"]: parse_record(kind, row, f"{stem}.json: {row['id']}") for row in _rows(stem)})


@cache
def _read(stem: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((DATA / f"{stem}.json").read_text(encoding="utf-8"))
    return content


def _rows(stem: str) -> list[dict[str, Any]]:
    """The file's rows, each source key replaced by the source that it names. Raises InvalidInputError."""
    content, rows, seen = _read(stem), [], set()
    for row in content["rows"]:
        if "id" not in row or row["id"] in seen:
            raise InvalidInputError(f"{stem}.json", f"a row has no id, or one that is taken: {row.get('id')!r}")
        seen.add(row["id"])
        rows.append(_with_sources(row, content["sources"], f"{stem}.json: {row['id']}"))
    return rows


def _with_sources(row: dict[str, Any], sources: dict[str, Any], where: str) -> dict[str, Any]:
    def written_out(source: Any) -> Any:
        if isinstance(source, str) and source not in sources:
            raise InvalidInputError(where, f"source {source!r} is not among the file's sources")
        return sources[source] if isinstance(source, str) else source

    if "source" in row:
        return {**row, "source": written_out(row["source"])}
    return {**row, "sources": [written_out(source) for source in row.get("sources", [])]}

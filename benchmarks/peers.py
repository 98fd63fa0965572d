"""What other estimators say of a measured run: their own recorded figures, and their published formulas.

Formulas as read in the packages' sources in November 2026: canifinetune 0.4.1, fitcheck-llm 0.3.1, vramcalc 0.1.2,
fitscout 0.1.1, ftuneai 0.4.1, tinyforge 0.1.2, llmcalculator 0.2.3 (all on PyPI). Of each the part for tensors, set
against peak allocated memory; a plan that a tool refuses gets nothing. Totals that a source recorded beside its own
run (`competitor_pred_total_*`: fitcheck's for the process, canifinetune's for reserved memory) stand as they are. One
card, causal models, the full loss.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt

from benchmarks.model_configs import model_spec
from benchmarks.rows import MeasuredRow
from estimators.methods import get_method
from profiles.plan import FOUR_BIT, Plan
from profiles.units import GIB, MIB

QKVO = {"q_proj", "k_proj", "v_proj", "o_proj"}


@dataclass(frozen=True, slots=True)
class _Case:
    """The symbols of the formulas: b batch, s length, h hidden, q and k widths, f MLP, n layers, v vocabulary, a heads,
    r rank; all parameters, those of 4-bit linears, trained ones."""

    plan: Plan
    b: int
    s: int
    h: int
    q: int
    k: int
    f: int
    n: int
    v: int
    a: int
    r: int
    parameters: float
    linears: float
    trained: float
    checkpointed: bool
    four_bit: bool
    eager: bool

    @property
    def tokens(self) -> int:
        return self.b * self.s

    @property
    def full(self) -> bool:
        return self.plan.method == "full"

    def weights(self, *, absmax: float, rest: float) -> float:
        """16 bits, or 4-bit linears with `absmax` bytes an element and `rest` bytes for everything else."""
        if not self.four_bit:
            return 2 * self.parameters
        return (0.5 + absmax) * self.linears + rest * (self.parameters - self.linears)


def peer_figures(row: MeasuredRow) -> Iterator[tuple[str, dict[str, float]]]:
    """(tool, bytes by kind of memory) for every tool that answers this row."""
    for key, unit in (("competitor_pred_total_mib", MIB), ("competitor_pred_total_gib", GIB)):
        if row.raw.get(key) is not None:
            kind = "device" if row.source == "fitcheck" else "reserved"
            yield "own figure", {kind: row.raw[key] * unit}
    case = _case(row)
    if case is not None:
        for name, formula in FORMULAS.items():
            n_bytes = formula(case)
            if n_bytes is not None:
                yield name, {"allocated": n_bytes}


def _case(row: MeasuredRow) -> _Case | None:
    plan = row.plan
    if plan is None or row.model_ref is None or row.n_gpus > 1 or plan.method not in ("full", "lora", "qlora"):
        return None
    model = model_spec(row.model_ref)
    block = model.layers[0].block
    if block.mlp.experts or plan.method_options or plan.loss_kernel != "full":  # none of them knows another loss
        return None
    return _Case(
        plan=plan, b=plan.micro_batch_size, s=plan.seq_len, h=model.hidden_size, q=block.attention.q_width,
        k=block.attention.kv_width, f=block.mlp.intermediate_size, n=model.num_hidden_layers, v=model.vocab_size,
        a=block.attention.num_heads, r=plan.lora_rank, parameters=model.parameters,
        linears=sum(g.count * x.weight_parameters for g in model.layers for x in g.block.linears),
        trained=get_method(plan.method).trainable_parameters(model, plan),
        checkpointed=plan.gradient_checkpointing != "none", four_bit=plan.quantization in FOUR_BIT,
        eager=plan.attention == "eager",
    )  # fmt: skip


def _canifinetune(c: _Case) -> float:
    layer = c.tokens * (18 * c.h + 4.5 * c.f * (4 if c.four_bit else 2))
    layer += 5 * c.a * c.s**2 * c.b * 2 if c.eager else 0
    kept = c.n * 4 * c.h * c.tokens + layer if c.checkpointed else c.n * layer
    dequantized = 4 * c.h * c.f if c.four_bit else 0
    absmax = 0.017 if c.plan.quantization.endswith("-dq") else 0.0625
    optimizer = 2.5 if "8bit" in c.plan.optimizer else 8 if "fused" in c.plan.optimizer else 12
    states = c.trained * (4 + 4 + optimizer)
    return c.weights(absmax=absmax, rest=4) + states + kept + dequantized + 14 * c.tokens * c.v


def _fitcheck(c: _Case) -> float:
    layer = 2 * c.tokens * (12 * c.h + 3 * c.q + c.k + 3 * c.f)
    eager = 2 * c.b * c.a * c.s**2 if c.eager else 0
    logits = (4 if c.four_bit else 3.5) * 4 * c.tokens * c.v
    absmax = 0.0625 * (0.254 if c.plan.quantization.endswith("-dq") else 1)
    states = c.trained * (4 + 4 + (2 if "8bit" in c.plan.optimizer else 8) + (4 if c.full else 0))
    if c.checkpointed:
        moving = c.n * c.tokens * c.h * (4 if c.four_bit else 2) + max(logits, layer + 7.4 * eager)
    else:
        moving = c.n * (layer + 2.9 * eager) + logits
    return c.weights(absmax=absmax, rest=4) + states + moving


def _vramcalc(c: _Case) -> float | None:
    targets = set(c.plan.target_modules)
    if c.four_bit or c.checkpointed or not (c.full or targets == QKVO):
        return None
    repeated = 2 * c.q if c.k < c.q else 0
    layer = 2 * c.tokens * (2 * c.h + c.q + 2 * c.k + c.q + c.h + 4 * c.f + 2 * c.h + repeated)
    layer += 8 * c.tokens * c.h + (0 if c.full else 16 * c.tokens * c.r)
    size = 2 if c.full else 4
    copies = 0 if c.full else 2 * c.trained
    states = c.trained * size * (3 if c.full else 4)  # gradients and two states; adapters as well
    moving = max(c.n * layer + 14 * c.tokens * c.v + copies, c.trained * size)
    return 2 * c.parameters + states + moving


def _fitscout(c: _Case) -> float:
    layer = c.tokens * c.h * (34 + 5 * c.a * c.s / c.h)
    kept = c.n * (2 * c.tokens * c.h if c.checkpointed else layer)
    per_layer = c.linears / c.n
    dequantized = 2 * 2 * per_layer if c.four_bit else 0
    return c.weights(absmax=0, rest=2) + 12 * c.trained + kept + 14 * c.tokens * c.v + dequantized


def _ftuneai(c: _Case) -> float:
    kept = c.tokens * c.h * c.n * 2 * (4 if c.checkpointed else 10) * (1 if c.eager else 0.5) * (2 if c.four_bit else 1)
    weights = c.parameters * (0.5 * 1.02 if c.four_bit else 2)
    return weights + 8 * c.trained + kept


def _tinyforge(c: _Case) -> float | None:
    if c.full:
        return None
    kept = c.tokens * ((2 * c.n + 68) * c.h if c.checkpointed else 80 * c.h * c.n)
    return c.parameters * (0.55 if c.four_bit else 2) + 16 * c.trained + kept + 10 * c.tokens * c.v


def _llmcalculator(c: _Case) -> float:
    kept = c.tokens * (20 * c.h * (sqrt(c.n) if c.checkpointed else c.n) + 4 * c.v)
    trained = c.parameters if c.full else 0.005 * c.parameters
    return c.parameters * (0.55 if c.four_bit else 2) + 10 * trained + kept


FORMULAS: dict[str, Callable[[_Case], float | None]] = {
    "canifinetune": _canifinetune,
    "fitcheck": _fitcheck,
    "vramcalc": _vramcalc,
    "fitscout": _fitscout,
    "ftuneai": _ftuneai,
    "tinyforge": _tinyforge,
    "llmcalculator": _llmcalculator,
}

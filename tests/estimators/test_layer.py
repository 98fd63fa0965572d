"""The tape against the coefficients that a simulation of the real code gave (tests/golden/block_coefficients.csv).

Coefficients are bytes per token and layer of hidden, query, key-value and MLP width and of rank; they are read off by
changing one width at a time, so a wrong saved tensor anywhere shows.
"""

import csv
from dataclasses import replace
from pathlib import Path

import pytest

from estimators.layer import LayerSetup, profile_layer
from estimators.regime import Regime
from profiles.model import Attention, Block, Linear, Mlp, Norm
from profiles.plan import FusedOp

GOLDEN = list(csv.DictReader((Path(__file__).parents[1] / "golden" / "block_coefficients.csv").open()))
HEAD_DIM = 128
BASE = {"h": 1536, "q": 1024, "k": 256, "f": 5376, "r": 16}
CHANGED = {"h": 1920, "q": 1536, "k": 512, "f": 6144, "r": 32}
QV = ("q_proj", "v_proj")
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

PLAIN = Regime(
    compute=2, autocast=False, quantized=0, nested=False, base=2, residual=2, entry=2, stream=2, mask=2,
    adapter=4, trained=2, kernel="flash", windowed="efficient", own_flash=False, masked=False, several=False,
    grouped=True, loss="full", keep_outputs=False,
    outputs_to_fp32=False, checkpointing=False,
    reentrant=False, offload_checkpoints=False, fused_kernels=False, fused_layers=False, fused_ops=frozenset(),
    norms_in_place=True, loss_budget=0.0, equal_lengths=True, evaluates_logits=False,
    use_cache=False, compute_dtype="bf16",
)  # fmt: skip
FOUR_BIT = replace(PLAIN, autocast=True, quantized=4, nested=True)
WIDE = {"base": 4, "residual": 4, "entry": 4, "stream": 4, "mask": 4}
VARIANTS: dict[str, tuple[Regime, tuple[str, ...], bool]] = {
    "full bf16": (PLAIN, (), False),
    "full fp32 master + autocast": (
        replace(PLAIN, autocast=True, base=4, residual=4, entry=4, stream=4, mask=4),
        (),
        False,
    ),
    "lora qv fp32": (PLAIN, QV, False),
    "lora all fp32": (PLAIN, ALL, False),
    "lora all fp32 dropout": (PLAIN, ALL, True),
    "lora qv autocast": (replace(PLAIN, autocast=True), QV, False),
    "lora all autocast": (replace(PLAIN, autocast=True), ALL, False),
    "lora all autocast dropout": (replace(PLAIN, autocast=True), ALL, True),
    "lora all bf16 adapters": (replace(PLAIN, adapter=2), ALL, False),
    "qlora all k-bit prepared autocast": (replace(FOUR_BIT, **WIDE), ALL, False),
    "qlora all autocast": (FOUR_BIT, ALL, False),
    "qlora all bf16 adapters autocast": (replace(FOUR_BIT, adapter=2), ALL, False),
}


def llama_block(h: int, q: int, k: int, f: int) -> Block:
    def linear(name: str, role: str, n_in: int, n_out: int) -> Linear:
        return Linear.model_validate({"name": name, "role": role, "in_features": n_in, "out_features": n_out})

    return Block(
        attention=Attention(
            num_heads=q // HEAD_DIM, num_key_value_heads=k // HEAD_DIM, head_dim=HEAD_DIM, v_head_dim=HEAD_DIM
        ),
        mlp=Mlp(intermediate_size=f),
        linears=(
            linear("q_proj", "q", h, q),
            linear("k_proj", "k", h, k),
            linear("v_proj", "v", h, k),
            linear("o_proj", "o", q, h),
            linear("gate_proj", "gate", h, f),
            linear("up_proj", "up", h, f),
            linear("down_proj", "down", f, h),
        ),
        norms=(Norm(name="a", size=h, place="pre_attention"), Norm(name="b", size=h, place="pre_mlp")),
    )


def bytes_per_token(variant: str, checkpointing: bool, widths: dict[str, int]) -> float:
    regime, targets, dropout = VARIANTS[variant]
    setup = LayerSetup(
        ranks=tuple((name, widths["r"]) for name in targets), dropout=dropout, trains_weights=not targets
    )
    block = llama_block(widths["h"], widths["q"], widths["k"], widths["f"])
    profile = profile_layer(block, replace(regime, checkpointing=checkpointing), setup, 2048)
    return profile.backward[0][0] if checkpointing else profile.saved[0]


@pytest.mark.parametrize("row", GOLDEN, ids=lambda row: f"{row['variant']}-{row['checkpointing']}")
def test_bytes_per_token_and_layer(row: dict[str, str]) -> None:
    variant, checkpointing = row["variant"], row["checkpointing"] == "1"
    at_base = bytes_per_token(variant, checkpointing, BASE)
    for width, changed in CHANGED.items():
        slope = (bytes_per_token(variant, checkpointing, {**BASE, width: changed}) - at_base) / (changed - BASE[width])
        heads = 4 / HEAD_DIM if width == "q" else 0.0  # the log-sum-exp: 4 bytes a head
        assert slope == pytest.approx(float(row[width]) + heads, abs=1e-9), width


def test_all_variants_are_covered_twice() -> None:
    assert len(GOLDEN) == 24
    assert {row["variant"] for row in GOLDEN} == set(VARIANTS)


@pytest.mark.parametrize(
    ("ops", "checkpointing", "h", "f"),
    [
        # RMSNorm in Python keeps an fp32 copy of its input (4 h), a kernel the input; the first one is the layer's own
        ((), False, 16, 6),
        (("norm",), False, 12, 6),
        (("rotary",), False, 16, 6),
        # act(gate), gate, up kept; then gate and up alone, which become their own gradients
        (("activation",), False, 16, 4),
        ((), True, 18, 12),
        (("norm", "rotary", "activation"), True, 14, 6),
    ],
)
def test_bytes_of_liger_s_kernels(ops: tuple[FusedOp, ...], checkpointing: bool, h: float, f: float) -> None:
    regime = replace(PLAIN, fused_ops=frozenset(ops), checkpointing=checkpointing)
    setup = LayerSetup(ranks=tuple((name, BASE["r"]) for name in QV))

    def size(**widths: int) -> float:
        profile = profile_layer(llama_block(**{k: (BASE | widths)[k] for k in "hqkf"}), regime, setup, 2048)
        return profile.backward[0][0] if checkpointing else profile.saved[0]

    for width, expected in (("h", h), ("f", f)):
        slope = (size(**{width: CHANGED[width]}) - size()) / (CHANGED[width] - BASE[width])
        assert slope == pytest.approx(expected, abs=1e-9), width


def test_reentrant_checkpointing_holds_the_output() -> None:
    regime = replace(PLAIN, autocast=True, checkpointing=True)
    setup = LayerSetup(ranks=tuple((name, 16) for name in ALL))
    block = llama_block(**{key: BASE[key] for key in "hqkf"})
    early = profile_layer(block, regime, setup, 2048).backward[0][0]
    whole = profile_layer(block, replace(regime, reentrant=True), setup, 2048).backward[0][0]
    assert whole > early

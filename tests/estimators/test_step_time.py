"""Work items: what is counted, and curves against published kernel measurements."""

import pytest

from estimators.efficiency import (
    Rates,
    best_matmul_flops,
    default_constants,
    flash_share_of_peak,
    matmul_seconds,
    rates_of,
    smooth_max,
)
from estimators.flops import head_weights, layer_matmul_weights
from estimators.methods import get_method
from estimators.regime import resolve_regime
from estimators.step_time import micro_batch, optimizer_items
from estimators.work import BARE_LAUNCH, Batch, MicroBatch
from profiles.catalog import find_gpu, get_optimizer
from profiles.families import describe_model
from profiles.plan import Plan

LLAMA_8B = describe_model(
    {
        "model_type": "llama",
        "hidden_size": 4096,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 14336,
        "vocab_size": 128256,
    },
    "llama-8b",
)
A100 = find_gpu("a100-80-sxm")


def rates(gpu: str = "a100-80-sxm") -> Rates:
    found = rates_of(find_gpu(gpu), "bf16")
    assert found is not None
    return found


def work(gpu: str = "a100-80-sxm", **fields: object) -> MicroBatch:
    plan = Plan.model_validate({"model": "m", "seq_len": 2048, "micro_batch_size": 4, **fields})
    method, regime = get_method(plan.method), resolve_regime(plan, LLAMA_8B, find_gpu(gpu))
    batch = Batch(sequences=plan.micro_batch_size, length=plan.seq_len, attended=plan.seq_len)
    return micro_batch(plan, LLAMA_8B, method, regime, rates(gpu), batch)


@pytest.mark.parametrize(
    ("gpu", "tokens", "measured"),
    [  # percent of the dense peak, fp16, 7-8B layer shapes: Vidur's profiles (github.com/microsoft/vidur)
        ("a100-80-sxm", 64, 30),
        ("a100-80-sxm", 128, 47),
        ("a100-80-sxm", 256, 66),
        ("a100-80-sxm", 2048, 69.5),
        ("a100-80-sxm", 4096, 72),
        ("h100-sxm", 64, 16),
        ("h100-sxm", 128, 29),
        ("h100-sxm", 512, 64),
        ("h100-sxm", 1024, 74),
        ("h100-sxm", 4096, 75),
    ],
)
def test_matmul_curve_follows_measured_kernels(gpu: str, tokens: int, measured: float) -> None:
    peak = find_gpu(gpu).peak_flops("bf16")
    assert peak is not None
    seconds = matmul_seconds(rates(gpu), tokens=tokens, n_in=4096, n_out=14336, itemsize=2)
    percent = 100 * 2 * tokens * 4096 * 14336 / seconds / peak
    assert percent == pytest.approx(measured, rel=0.28)


def test_geforce_reaches_its_peak_and_the_t4_is_held_by_its_power() -> None:
    constants = default_constants()
    rtx4090, t4 = find_gpu("rtx4090"), find_gpu("t4")
    assert best_matmul_flops(rtx4090, "bf16", constants) == rtx4090.peak_flops("bf16")
    assert best_matmul_flops(t4, "fp16", constants) == 24e12


def test_matmul_flops_are_the_exact_count() -> None:
    tokens = 4 * 2048
    done = work(method="full", gradient_checkpointing="none", loss_kernel="chunked").work
    assert done["matmul"].flops == pytest.approx(6 * tokens * layer_matmul_weights(LLAMA_8B))
    assert done["head"].flops == pytest.approx(6 * tokens * head_weights(LLAMA_8B))
    frozen = work(method="lora", gradient_checkpointing="full", loss_kernel="chunked").work
    assert frozen["matmul"].flops == pytest.approx(6 * tokens * layer_matmul_weights(LLAMA_8B))
    assert frozen["head"].flops == pytest.approx(4 * tokens * head_weights(LLAMA_8B))


def test_trl_s_fused_loss_makes_the_logits_again_in_the_backward_pass() -> None:
    passes = 8192 * 2 * head_weights(LLAMA_8B)
    assert work(method="lora", loss_kernel="fused").work["head"].flops == pytest.approx(3 * passes)
    assert work(method="full", loss_kernel="fused").work["head"].flops == pytest.approx(4 * passes)


def test_recomputation_stops_before_a_last_product_that_nothing_needs() -> None:
    """As traced: non-reentrant checkpoints of full fine-tuning leave the down projection out."""
    down = sum(g.count * x.weight_parameters for g in LLAMA_8B.layers for x in g.block.linears if x.role == "down")
    whole = work(method="full", gradient_checkpointing="full", platform="llamafactory").work["matmul"].flops
    stopped = work(method="full", gradient_checkpointing="full").work["matmul"].flops
    assert whole - stopped == pytest.approx(2 * 8192 * down)
    adapted = work(method="lora", gradient_checkpointing="full").work["matmul"].flops
    assert adapted == work(method="lora", gradient_checkpointing="full", platform="llamafactory").work["matmul"].flops


def test_dequantising_costs_the_same_whatever_the_batch() -> None:
    one, many = (work(method="qlora", micro_batch_size=b).work["dequantize"].seconds for b in (1, 8))
    assert one == many
    # three passes over 6.98e9 weights; bitsandbytes 0.41 on an A100 took 6.1 to 7.5 ps a weight and pass (litgpt)
    assert 2e-12 < one / 3 / layer_matmul_weights(LLAMA_8B) < 7.5e-12


def test_checkpointing_reads_quantised_weights_a_third_time() -> None:
    kept = work(method="qlora", gradient_checkpointing="none").work["dequantize"].seconds
    assert work(method="qlora").work["dequantize"].seconds == pytest.approx(1.5 * kept)


def test_eager_attention_moves_the_scores() -> None:
    flash, eager = work(), work(attention="eager")
    assert eager.work["attention"].flops > 1.5 * flash.work["attention"].flops
    assert eager.work["attention"].n_bytes > 10 * flash.work["attention"].n_bytes


def test_fused_kernels_move_and_launch_less() -> None:
    hf, unsloth = work(), work(platform="unsloth")
    for kind in ("elementwise", "adapters"):
        assert unsloth.work[kind].n_bytes < hf.work[kind].n_bytes
    assert unsloth.launches < hf.launches


def test_the_host_s_work_is_what_traced_steps_launch() -> None:
    """Kernels a layer of Llama-3.2-1B, as the simulated tier traced them; those of the backward pass are bare."""
    traced = {  # forward (with recomputation), backward
        ("lora", "none"): (97.9, 129.9), ("full", "none"): (41.9, 73.5), ("ia3", "none"): (51.9, 77.9),
        ("dora", "none"): (202.9, 220.1), ("vera", "none"): (118.9, 171.3), ("miss", "none"): (83.9, 108.7),
        ("prompt", "none"): (42.8, 62.6),
    }  # fmt: skip
    for (name, saving), (forward, backward) in traced.items():
        launches = work(method=name, gradient_checkpointing=saving).launches / 32
        assert launches == pytest.approx(forward + BARE_LAUNCH * backward, rel=0.12), name


def test_checkpoints_cost_the_host_more_than_the_layer_once_more() -> None:
    """Hooks of non-reentrant ones are called for each saved tensor, three times."""
    none, full = (work(gradient_checkpointing=x).launches for x in ("none", "full"))
    reentrant = work(platform="llamafactory").launches
    again = 32 * (38 + 7 * 8)
    assert none + again < reentrant < full < none + 2.2 * again


def test_frozen_layers_below_the_trained_ones() -> None:
    """Backward ends above them, but where checkpoints let the embedding's output require a gradient."""
    plain = work(method="freeze", gradient_checkpointing="none").work["matmul"].flops
    checkpointed = work(method="freeze").work["matmul"].flops
    apart = work(method="freeze", platform="llamafactory").work["matmul"].flops
    assert checkpointed > 2 * plain
    assert plain < apart < 1.2 * plain


def test_optimizers_that_walk_through_tensors_take_the_host_s_time() -> None:
    def host(**fields: object) -> float:
        plan = Plan.model_validate({"model": "m", "method": "full", "max_grad_norm": 0.0, **fields})
        method, regime = get_method(plan.method), resolve_regime(plan, LLAMA_8B, A100)
        (item,) = optimizer_items(plan, LLAMA_8B, method, regime, rates(), get_optimizer(plan.optimizer))
        return item.launches

    assert host(optimizer="adamw_torch_fused") < host(optimizer="adamw_8bit") < host(optimizer="adafactor")
    assert host() < host(method="galore") < host(method="apollo")


def test_optimizer_by_states_and_sharding() -> None:
    def seconds(optimizer: str, **fields: object) -> float:
        plan = Plan.model_validate({"model": "m", "method": "full", "max_grad_norm": 0.0, **fields})
        method, regime = get_method("full"), resolve_regime(plan, LLAMA_8B, A100)
        items = optimizer_items(plan, LLAMA_8B, method, regime, rates(), get_optimizer(optimizer))
        return sum(item.seconds for item in items)

    fused, foreach, eight_bit = (seconds(o) for o in ("adamw_torch_fused", "adamw_torch", "adamw_8bit"))
    assert foreach == pytest.approx(3 * fused)
    assert eight_bit < fused
    assert seconds("adamw_torch_fused", n_gpus=8, sharding="fsdp2") == pytest.approx(fused / 8)
    assert seconds("adamw_torch_fused", offload_optimizer=True) > 10 * fused


@pytest.mark.parametrize(("length", "share"), [(512, 0.57), (16384, 1.0)])
def test_flash_attention_needs_length(length: int, share: float) -> None:
    assert flash_share_of_peak(length) == pytest.approx(share, abs=0.08)


def test_smooth_max_lies_at_or_little_above_the_larger() -> None:
    assert smooth_max(3.0, 0.0) == 3.0
    assert 3.0 < smooth_max(3.0, 1.0) < 3.02
    assert smooth_max(1.0, 1.0) == pytest.approx(2 ** (1 / 4))


def test_freezing_lower_layers_leaves_their_forward_pass_only() -> None:
    plan = {"method": "freeze", "gradient_checkpointing": "none", "method_options": {"freeze_trainable_layers": 8}}
    tokens, weights = 4 * 2048, layer_matmul_weights(LLAMA_8B)
    expected = 2 * tokens * weights * (24 / 32 * 1 + 8 / 32 * 3)
    assert work(**plan).work["matmul"].flops == pytest.approx(expected)

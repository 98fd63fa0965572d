"""The simulated tier without torch: kernel rules, stretching, replay, snapshot, plot, and the parent's side."""

import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from estimators.allocator import CachingAllocator, DeviceOutOfMemoryError
from estimators.batches import DISTINCT_MICRO_STEPS, optimizer_steps
from estimators.overhead import cublas_workspace
from estimators.simulate import Simulation, simulate
from estimators.simulate.estimate import memory_from_simulation
from estimators.simulate.kernels import attention_kernel, scratch
from estimators.simulate.plot import plot_timeline
from estimators.simulate.replay import PHASE_OF, replay
from estimators.simulate.snapshot import write_snapshot
from estimators.simulate.stretch import BASE_LAYERS, stretch
from estimators.simulate.trace import Mark, Storage, Trace
from profiles.catalog import find_gpu
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.gpu import Hardware
from profiles.plan import Plan
from profiles.units import MIB

TINY = {
    "model_type": "llama", "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 7,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}  # fmt: skip


def toy_trace(layers: int) -> Trace:
    """A step of a toy model: weights, kept activations, a hidden state handed on, gradients, an optimizer's list."""
    trace = Trace()

    def mark(stage, layer=-1, step=0):
        trace.marks.append(Mark(len(trace.events), step, stage, layer))

    def born(n_bytes, layer, label="", width=0):
        trace.storages.append(Storage(n_bytes, "op", f"layer {layer}", layer, width, label))
        trace.events.append(len(trace.storages) - 1)
        return len(trace.storages) - 1

    def gone(index):
        trace.events.append(~index)

    mark("load")
    for i in range(layers):
        born(3 * MIB, i, "base_weights")
    mark("forward")
    hidden = born(2 * MIB, -1)
    kept, handed = [], [hidden]
    for i in range(layers):
        mark("forward", i)
        temporary = born(5 * MIB, i)
        kept.append(born(4 * MIB, i))
        handed.append(born(2 * MIB, i))
        gone(temporary)
    mark("loss")
    logits = born(30 * MIB, -1, width=1000)
    mark("loss_backward")
    gradient = born(2 * MIB, -1)
    gone(logits)
    gradients = []
    for i in reversed(range(layers)):
        mark("backward", i)
        new = born(2 * MIB, i)
        gone(gradient)
        gone(handed[i + 1])
        gone(kept[i])
        gradients.append(born(3 * MIB, i, "gradients"))
        gradient = new
    gone(gradient)
    gone(hidden)
    mark("optimizer")
    temporaries = [born(3 * MIB, i) for i in range(layers)]
    for index in temporaries:
        gone(index)
    mark("zero")
    for index in reversed(gradients):
        gone(index)
    return trace


@pytest.mark.parametrize("layers", [BASE_LAYERS, 5, 9, 40])
def test_a_stretched_trace_is_the_trace_of_the_deeper_model(layers):
    made, true = stretch(toy_trace(BASE_LAYERS), layers), toy_trace(layers)
    assert len(made.events) == len(true.events)
    sizes = [[(t.storages[e].n_bytes if e >= 0 else -t.storages[~e].n_bytes) for e in t.events] for t in (made, true)]
    assert sizes[0] == sizes[1]
    found = [replay(t, CachingAllocator(), vocab_size=1000) for t in (made, true)]
    assert found[0].peak_allocated == found[1].peak_allocated
    assert found[0].peak_reserved == found[1].peak_reserved
    assert [p.components for p in found[0].phases] == [p.components for p in found[1].phases]


def test_what_comes_and_goes_in_the_making_of_layers_is_all_gone():
    """Its end may stand apart from its beginning, where something of the next layer comes between them."""
    trace = Trace(marks=[Mark(0, 0, "load", -1)])

    def born(n_bytes, layer):
        trace.storages.append(Storage(n_bytes, "op", "", layer, 0))
        trace.events.append(len(trace.storages) - 1)
        return len(trace.storages) - 1

    before = born(MIB, -1)
    for layer in range(BASE_LAYERS):
        copy = born(6 * MIB, -1)
        born(3 * MIB, layer)
        trace.events.append(~before)
        before = born(MIB, -1)
        trace.events.append(~copy)
    trace.events.append(~before)
    made = stretch(trace, 9)
    live = {e for e in made.events if e >= 0} - {~e for e in made.events if e < 0}
    assert [made.storages[i].n_bytes for i in live] == [3 * MIB] * 9


def test_stretching_never_shortens():
    with pytest.raises(ValueError, match="cannot stretch"):
        stretch(toy_trace(BASE_LAYERS), BASE_LAYERS - 1)


def test_replay_names_the_phases_and_what_they_hold():
    layers = 6
    found = replay(toy_trace(layers), CachingAllocator(), vocab_size=1000)
    assert [p.name for p in found.phases] == ["load", "forward_end", "loss", "layer_backward", "optimizer_step"]
    by_name = {p.name: {c.name: c.n_bytes for c in p.components} for p in found.phases}
    assert by_name["load"] == {"base_weights": 3 * layers * MIB}
    assert by_name["loss"]["logits"] == 32 * MIB  # with the gradient that the loss hands to the layers
    kept = by_name["loss"]["saved_activations"]
    assert kept == pytest.approx((2 + 6 * layers) * MIB, abs=MIB)  # a block may keep a rest of up to 1 MiB
    for name in ("gradients", "optimizer_temporary"):
        assert by_name["optimizer_step"][name] == pytest.approx(3 * layers * MIB, abs=2 * MIB)
    for phase in found.phases:
        assert sum(c.n_bytes for c in phase.components) == phase.allocated
    assert found.after_load == found.end == pytest.approx(3 * layers * MIB, abs=2 * MIB)
    assert set(PHASE_OF.values()) == {*by_name, "evaluation"}


def test_replay_within_a_limit_says_where_memory_ended():
    with pytest.raises(DeviceOutOfMemoryError, match=r"in op \(loss of step 1\)"):
        replay(toy_trace(6), CachingAllocator(limit=95 * MIB), vocab_size=1000)


def test_a_snapshot_holds_every_allocation_and_what_is_left(tmp_path):
    trace = toy_trace(5)
    write_snapshot(trace, tmp_path / "snapshot.pickle")
    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    actions = [a["action"] for a in snapshot["device_traces"][0]]
    assert actions.count("alloc") == len(trace.storages)
    assert actions.count("free_completed") == sum(e < 0 for e in trace.events)
    assert sum(s["allocated_size"] for s in snapshot["segments"]) == 5 * 3 * MIB


@pytest.mark.parametrize(
    ("kernel", "changes"),
    [
        ("flash", {}),
        ("math", {"masked": True}),  # grouped key heads
        ("efficient", {"masked": True, "kv_heads": 32}),
        ("math", {"capability": (7, 5), "bf16": True, "kv_heads": 32}),
        ("efficient", {"capability": (7, 5), "bf16": False, "kv_heads": 32}),
        ("math", {"dims": (512, 512)}),
        ("math", {"kv_heads": 1, "gqa": False}),  # Falcon's one key head
        ("flash", {"kv_heads": 32, "gqa": False}),
        ("efficient", {"half": False, "bf16": False, "kv_heads": 32}),
        ("efficient", {"dims": (192, 128), "kv_heads": 32}),
    ],
)
def test_the_attention_kernel_follows_the_card_and_the_mask(kernel, changes):
    usual = {
        "capability": (8, 9), "half": True, "bf16": True, "masked": False, "heads": 32, "kv_heads": 8,
        "gqa": True, "dims": (128, 128),
    }  # fmt: skip
    assert attention_kernel(**{**usual, **changes}) == kernel


def test_scratch_inside_kernels():
    def tensor(*shape, itemsize=2):
        count = 1
        for n in shape:
            count *= n
        return SimpleNamespace(shape=shape, dtype=SimpleNamespace(itemsize=itemsize), numel=lambda: count)

    q, k = tensor(2, 8, 100, 64), tensor(2, 2, 100, 64)
    name = "aten::_scaled_dot_product_flash_attention_backward"
    assert scratch(name, (None, q, q), {}) == (4 * 2 * 8 * 128, 4 * 2 * 8 * 128 * 64)
    assert scratch(name, (None, q, k), {})[2:] == (2 * 2 * 100 * 8 * 64,) * 2
    softmax = scratch("aten::_softmax_backward_data", (tensor(10, 10, itemsize=4), tensor(10, 10)), {})
    assert softmax == (400,)
    few, many = tensor(4, 128, 256), tensor(5, 128, 256)
    arguments = (None, (512, 256), None, 64)
    assert scratch("bitsandbytes::gemm_4bit", (few, *arguments), {}) == ()
    assert scratch("bitsandbytes::gemm_4bit", (many, *arguments), {}) == (2 * 512 * 256,)
    nested = scratch("bitsandbytes::gemm_4bit", (many, *arguments), {"absmax_8bit": object()})
    assert nested == (4 * 512 * 256 // 64, 2 * 512 * 256)
    assert scratch("aten::mm", (q, k), {}) == ()


def test_hopper_takes_a_larger_workspace():
    assert cublas_workspace((8, 9)) == 8_519_680
    assert cublas_workspace((9, 0)) == cublas_workspace((10, 0)) == 32 * MIB


def toy_simulation() -> Simulation:
    found = replay(toy_trace(6), CachingAllocator(), vocab_size=1000)
    return Simulation(
        phases=found.phases, stages=found.stages, peak_allocated=found.peak_allocated,
        peak_reserved=found.peak_reserved, after_load=found.after_load, end_allocated=found.end,
        end_reserved=found.end_reserved, trainable_parameters=1, layers=6, layers_traced=4, seconds=1.0, rss=1,
        versions={"torch": "2.13"}, timeline=found.timeline,
    )  # fmt: skip


def test_a_simulation_becomes_a_memory_estimate():
    simulation = toy_simulation()
    model, hardware = describe_model(TINY, "tiny"), Hardware(gpu=find_gpu("l40s"))
    estimate = memory_from_simulation(simulation, Plan(model="m"), model, hardware)
    assert estimate.basis == "simulated"
    assert estimate.allocated.expected == simulation.peak_allocated == estimate.peak.n_bytes
    assert estimate.allocated.low < estimate.allocated.expected < estimate.allocated.high
    assert estimate.reserved.expected >= estimate.allocated.expected
    assert estimate.device.expected > estimate.reserved.expected
    assert estimate.verdict == "fits"
    assert any("4 of 6" in a for a in estimate.assumptions)


def test_the_plot_is_svg_with_a_band_for_every_phase():
    document = ElementTree.fromstring(plot_timeline(toy_simulation(), "a < b"))
    titles = {t.text for t in document.iter("{http://www.w3.org/2000/svg}title")}
    assert titles == set(PHASE_OF.values()) - {"evaluation"}
    assert "a < b" in {t.text for t in document.iter("{http://www.w3.org/2000/svg}text")}


def test_given_batches_fill_steps_as_the_plan_accumulates():
    plan = Plan(model="m", micro_batch_size=2, seq_len=64, gradient_accumulation_steps=3)
    assert optimizer_steps(plan) == [((2, 64),) * 3] * 2
    assert optimizer_steps(plan.replace(gradient_accumulation_steps=9)) == [((2, 64),) * DISTINCT_MICRO_STEPS] * 2
    batches = ((2, 8), (2, 16), (1, 5), (2, 9))
    assert optimizer_steps(plan, batches) == [batches[:3], batches[3:]]


def test_importing_the_tier_does_not_import_torch():
    code = "import sys, estimators.simulate, estimators.simulate.worker; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2]).returncode == 0


def test_the_child_is_stopped_when_it_takes_too_long():
    plan = Plan(model=TINY, method="lora", seq_len=64)
    with pytest.raises(AdviseError) as caught:
        simulate(plan, describe_model(TINY, "tiny"), Hardware(gpu=find_gpu("l40s")), seconds=0.01)
    assert caught.value.code == "simulation-limit"


@pytest.mark.thorough
def test_what_cannot_be_traced_is_refused_before_torch_is_needed():
    refused = {
        "ZeRO-3": {"n_gpus": 2, "sharding": "zero3"},
        "checkpoints": {"gradient_checkpointing": "unsloth"},
    }
    for reason, changes in refused.items():
        plan = Plan(model=TINY, method="lora", seq_len=64, **changes)
        with pytest.raises(AdviseError, match=reason) as caught:
            simulate(plan, describe_model(TINY, "tiny"), Hardware(gpu=find_gpu("l40s"), n_gpus=plan.n_gpus))
        assert caught.value.code == "unsupported"

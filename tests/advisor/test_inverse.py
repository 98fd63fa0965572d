"""Inverse questions against trying every value, and their command."""

import json

import pytest

from advisor.api import advise
from advisor.assess import assess
from advisor.cli.main import run
from advisor.decide import decide
from advisor.inverse import ANY_MODEL, MOST_CARDS, fit, last_that, sound_methods
from advisor.render.fit import render_fit
from advisor.request import Request
from profiles.catalog import load_gpus, load_model_rows
from profiles.errors import AdviseError, InvalidInputError


def fits(**request):
    """Whether the forward question finds a plan with a method that has good evidence (where none was named)."""
    try:
        asked = Request(**{"methods": ("full", "lora", "qlora"), **request})
        return decide(asked, assess(asked), concede=False).best is not None
    except AdviseError:
        return False


@pytest.mark.parametrize("high", [1, 2, 7, 64])
def test_bisection_is_exact(high):
    for last in range(high + 1):
        asked = []

        def holds(n, last=last, asked=asked):
            asked.append(n)
            return n <= last

        assert last_that(holds, 1, high) == (last or None)
        assert len(asked) <= high.bit_length() + 1


@pytest.mark.thorough
@pytest.mark.parametrize("gib", [2.5, 3, 3.2, 3.5, 4])
def test_longest_sequence_equals_trying_all(stand_ins, gib):
    base = {"model": "tinyllama", "vram_gib": gib, "methods": ("lora",), "quantizations": ("bf16",), "offline": True}
    answer = fit("seq_len", Request(**base))
    good = [n for n in range(64, 2049, 64) if fits(**base, seq_len=n)]
    assert answer.value == (max(good) if good else None)
    assert answer.why_not
    if answer.value is None:
        assert answer.next_value == 64
    else:
        assert answer.best.plan.seq_len == answer.value
        assert answer.next_value == (answer.value + 64 if answer.value < 2048 else None)


def test_the_longest_sequence_ends_at_the_models_positions(stand_ins):
    answer = fit("seq_len", Request(model="gpt2", vram_gib=80, offline=True))
    assert (answer.value, answer.next_value) == (1024, None)
    assert "1024 positions" in answer.why_not


def test_longest_sequence_within_a_time(stand_ins):
    base = {"model": "llama-1b", "vram_gib": 24, "examples": 5000, "offline": True}
    free, limited = fit("seq_len", Request(**base)), fit("seq_len", Request(**base, max_hours=1))
    assert limited.value < free.value
    assert limited.best.run.seconds.expected <= 3600
    assert "limit" in limited.why_not
    assert fits(**base, max_hours=1, seq_len=limited.value)
    assert not fits(**base, max_hours=1, seq_len=limited.next_value)


def test_the_real_estimators_are_monotone_around_the_answer():
    """Eager, flash and checkpointed plans change places along the way; whatever fits longest, all shorter ones do."""
    base = {"model": "smollm2-1.7b", "vram_gib": 10, "platforms": ("hf",), "micro_batch_size": 8, "offline": True}
    base |= {"methods": ("lora",)}
    answer = fit("seq_len", Request(**base))
    assert answer.next_value == answer.value + 64 < 8192
    lengths = range(answer.value - 5 * 64, answer.value + 6 * 64, 64)
    assert [fits(**base, seq_len=n) for n in lengths] == [n <= answer.value for n in lengths]
    assert all(fits(**base, seq_len=n) for n in range(64, answer.value, 512))


@pytest.mark.thorough
@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("gib", [4, 15])
def test_largest_batch_equals_trying_all(stand_ins, method, gib):
    base = {"model": "llama-1b", "vram_gib": gib, "methods": (method,), "seq_len": 2048, "offline": True}
    answer = fit("batch", Request(**base))
    facts = assess(Request(**base))
    good = [
        n for n in range(1, 100) if decide(Request(**base, micro_batch_size=n), facts, concede=False).best is not None
    ]
    assert answer.value == (max(good) if good else None)
    if answer.value:
        assert answer.next_value == answer.value + 1
        assert answer.best.plan.micro_batch_size == answer.value


@pytest.mark.thorough
def test_largest_batch_of_the_real_estimators_where_accumulation_costs_memory():
    """Full fine-tuning keeps gradients between micro-batches, so a batch in one piece may fit where pieces do not."""
    base = {"model": "smollm2-135m", "gpu": "rtx3060-12gb", "methods": ("full",), "offline": True, "seq_len": 1024}
    answer = fit("batch", Request(**base))
    facts = assess(Request(**base))
    around = range(max(1, answer.value - 4), answer.value + 8)
    found = [n for n in around if decide(Request(**base, micro_batch_size=n), facts, concede=False).best is not None]
    assert max(found) == answer.value


@pytest.mark.thorough
def test_a_limit_that_no_batch_meets_is_answered_soon(stand_ins):
    base = {"model": "tinyllama", "vram_gib": 80, "examples": 10**7, "seq_len": 64, "max_hours": 0.001, "offline": True}
    answer = fit("batch", Request(**base))
    assert answer.value is None
    assert "the limit is" in answer.why_not
    assert any("were tried" in said for said in answer.assumptions)


@pytest.mark.thorough
def test_a_limit_holds_for_the_batch(stand_ins):
    base = {"model": "llama-1b", "vram_gib": 7, "examples": 1000, "mean_len": 200, "seq_len": 512, "offline": True}
    base |= {"methods": ("lora",), "quantizations": ("bf16",)}
    free = fit("batch", Request(**base))
    limit = free.best.run.seconds.expected / 3600 * 0.9  # padding makes large batches slower here
    answer = fit("batch", Request(**base, max_hours=limit))
    facts = assess(Request(**base))
    good = [
        n
        for n in range(1, free.value + 2)
        if decide(Request(**base, max_hours=limit, micro_batch_size=n), facts).best is not None
    ]
    assert answer.value == (max(good) if good else None)


@pytest.mark.parametrize(("gib", "more"), [(6, {"methods": ("qlora",)}), (16, {"quantizations": ("bf16",)})])  # fmt: skip # noqa: E501
@pytest.mark.thorough
def test_largest_model_equals_trying_the_catalogue(stand_ins, gib, more):
    base = {"vram_gib": gib, "seq_len": 512, "offline": True, **more}
    answer = fit("model", Request(model=ANY_MODEL, **base))
    rows = sorted(load_model_rows().values(), key=lambda row: -row.parameters)
    causal = [row for row in rows if not fits_only_as_encoder(row.id)]
    good = [row for row in causal if fits(model=row.id, **base)]
    assert answer.value == good[0].id
    assert answer.next_value == causal[causal.index(good[0]) - 1].id
    assert answer.why_not
    assert len(rows) > 100


def fits_only_as_encoder(model):
    from advisor.facts import resolve_model

    return resolve_model(model, offline=True).kind == "encoder"


@pytest.mark.thorough
def test_cheapest_and_smallest_card_equal_trying_the_catalogue():
    base = {"model": "qwen2.5-7b", "seq_len": 1024, "examples": 2000, "mean_len": 300, "offline": True}
    base |= {"methods": ("lora", "qlora"), "platforms": ("hf",)}
    answer = fit("gpu", Request(**base))
    good = {}
    for gpu in load_gpus():
        best = advise(Request(**base, gpu=gpu)).best
        if best is not None:
            good[gpu] = best
    assert {option.gpu for option in answer.options} == set(good)
    priced = {gpu: best.run.usd.expected for gpu, best in good.items() if best.run and best.run.usd}
    assert answer.value == min(priced, key=priced.get)
    assert answer.options[0].usd == pytest.approx(priced[answer.value])
    memory = {gpu: load_gpus()[gpu].memory_gib for gpu in good}
    assert memory[answer.smallest] == min(memory.values())
    assert len(good) > 30


@pytest.mark.thorough
def test_a_card_for_a_model_that_needs_much():
    answer = fit("gpu", Request(model="llama-70b", quantizations=("bf16",), methods=("lora",), offline=True))
    assert load_gpus()[answer.smallest].memory_gib < 192
    assert load_gpus()[answer.next_value].memory_gib <= load_gpus()[answer.smallest].memory_gib
    assert "needs" in answer.why_not
    assert (
        fit("gpu", Request(model="llama-405b", quantizations=("bf16",), methods=("lora",), offline=True)).value is None
    )


@pytest.mark.parametrize(
    ("model", "methods"), [("llama-8b", ("full",)), ("llama-70b", ("lora",)), ("llama-1b", ("lora",))]
)
@pytest.mark.thorough
def test_fewest_cards_equal_trying_all(model, methods):
    base = {"model": model, "gpu": "rtx4090", "seq_len": 1024, "offline": True, "methods": methods}
    answer = fit("n_gpus", Request(**base))
    assert answer.value == next(n for n in range(1, MOST_CARDS + 1) if fits(**base, n_gpus=n))
    assert answer.next_value == (answer.value - 1 or None)


def test_more_cards_for_a_wanted_time():
    base = {"model": "llama-8b", "gpu": "rtx4090", "examples": 20000, "mean_len": 500, "offline": True}
    base |= {"methods": ("lora",), "platforms": ("hf",)}
    one = fit("n_gpus", Request(**base)).best
    hours = one.run.seconds.expected / 3600 / 3
    answer = fit("n_gpus", Request(**base, max_hours=hours))
    assert answer.value > 1
    assert answer.value == next(n for n in range(1, 65) if fits(**base, max_hours=hours, n_gpus=n))
    assert "limit" in answer.why_not


def test_only_sound_methods_count_unless_others_are_named(stand_ins):
    """A longer sequence or a smaller card for prompt tuning is no answer to anybody's question."""
    facts = assess(Request(model="llama-1b", vram_gib=24, offline=True))
    assert set(sound_methods(facts)) == {"full", "lora", "qlora"}
    encoder = assess(Request(model="bert-base", vram_gib=24, offline=True))
    assert {"adalora", "bitfit"} <= set(sound_methods(encoder))
    base = {"model": "llama-1b", "vram_gib": 4, "quantizations": ("bf16",), "offline": True}
    usual, named = fit("seq_len", Request(**base)), fit("seq_len", Request(**base, methods=("prompt",)))
    assert usual.best.plan.method == "lora"
    assert named.best.plan.method == "prompt"
    assert any("--method takes others" in said for said in usual.assumptions)


def test_the_reason_is_that_of_the_nearest(stand_ins):
    """Of all that are over the limit, the one that is least over it."""
    base = {"model": "llama-1b", "vram_gib": 24, "examples": 5000, "offline": True, "max_hours": 1}
    answer = fit("seq_len", Request(**base))
    facts = assess(Request(**base, seq_len=answer.next_value))
    over = [d for d in decide(Request(**base, methods=sound_methods(facts)), facts).dropped if d.times_limit]
    nearest = min(over, key=lambda d: d.times_limit)
    assert nearest.reason in answer.why_not
    assert nearest.times_limit > 1


@pytest.mark.parametrize(
    ("what", "request_fields", "words"),
    [
        ("seq_len", {"seq_len": 512}, "--seq-len"),
        ("batch", {"micro_batch_size": 2}, "--micro-batch"),
        ("gpu", {"gpu": "t4"}, "--gpu"),
        ("n_gpus", {"n_gpus": 2}, "--n-gpus"),
        ("n_gpus", {"gpu": "2x t4"}, "--gpu"),
        ("n_gpus", {"gpu": "cpu"}, "--gpu"),
        ("model", {}, "--model"),
    ],
)
def test_what_is_asked_for_cannot_be_set(what, request_fields, words):
    with pytest.raises(InvalidInputError, match=words):
        fit(what, Request(model="llama-1b", offline=True, **request_fields))


def test_the_command_and_its_exit_codes(capsys):
    ask = ["fit", "--what", "seq_len", "--gpu", "rtx4090", "--method", "qlora"]
    assert run([*ask, "--model", "llama-8b", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)["answer"]
    assert answer["best"]["plan"]["seq_len"] == answer["value"]
    assert run([*ask, "--model", "llama-405b"]) == 1
    assert "Nothing fits." in capsys.readouterr().out
    assert run(ask) == 2
    assert "--model: is missing" in capsys.readouterr().err
    assert run(["fit", "--what", "luck", "--model", "llama-8b"]) == 2


@pytest.mark.thorough
def test_pages_keep_their_width():
    answer = fit("gpu", Request(model="llama-1b", methods=("lora",), examples=100, mean_len=100, offline=True))
    for width in (60, 100):
        lines = [x for x in str(render_fit(answer, width)).splitlines() if not x.lstrip().startswith("ftadvise ")]
        assert max(map(len, lines)) <= width
        assert any("cheapest first" in line for line in lines)


def test_each_card_is_asked_with_its_own_calibration(monkeypatch, stand_ins):
    """A calibration of one card says nothing of another."""
    import advisor.inverse

    asked = []

    def find(hardware):
        asked.append(hardware.gpu.id)
        return None, ()

    monkeypatch.setattr(advisor.inverse, "stored_calibration", find)
    fit("gpu", Request(model="tinyllama", methods=("lora",), quantizations=("bf16",), offline=True))
    assert set(asked) == set(load_gpus())

from typing import get_args

import pytest

from advisor.assess import assess, resolve_task
from advisor.request import Request
from advisor.request_flags import flag_of, request_flags
from profiles.errors import AdviseError, InvalidInputError, UnknownNameError
from profiles.plan import Task


def facts(**request):
    return assess(Request(**{"model": "llama-8b", "vram_gib": 24, "offline": True, **request}))


def test_flags_repeat_the_request_without_its_defaults():
    request = Request(
        model="a b", gpu="2x a100-80g", seq_len=4096, methods=("lora", "qlora"), num_epochs=2.5, offline=True
    )
    flags = request_flags(request)
    assert flags == [
        "--model", "a b", "--gpu", "2x a100-80g", "--seq-len", "4096", "--epochs", "2.5",
        "--method", "lora", "--method", "qlora", "--offline",
    ]  # fmt: skip


def test_every_flag_is_an_option_of_the_command_line():
    from advisor.cli.options import REQUEST_OPTIONS

    def bare():
        pass

    bare.__click_params__ = []
    for option in REQUEST_OPTIONS:
        option(bare)
    options = {p.name: p.opts[0] for p in bare.__click_params__}
    assert set(options) == set(Request.model_fields)
    for field, flag in options.items():
        assert flag == flag_of(field)


def test_defaults_are_stated():
    found = facts()
    assert found.seq_len == 2048
    assert found.task == "sft"
    assert any("2048 tokens" in line for line in found.assumptions)


def test_length_never_exceeds_the_model():
    assert facts(model="gpt2").seq_len == 1024
    with pytest.raises(InvalidInputError, match="beyond the 1024 positions"):
        facts(model="gpt2", seq_len=1025)


def test_data_set_the_length_and_the_mean(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(f'{{"text": "{"word " * (10 + i % 90)}"}}\n' for i in range(200)))
    found = facts(data=str(path))
    assert found.data.examples == 200
    assert found.seq_len % 64 == 0
    assert found.data.mean_len <= found.seq_len
    assert found.lengths.truncated(found.seq_len).tokens_lost <= 0.01
    assert found.seq_len == 64 or found.lengths.truncated(found.seq_len - 64).tokens_lost > 0.01
    assert set(found.fingerprints) == {"model", "hardware", "data"}


def test_examples_without_a_mean_fill_the_length_and_say_so():
    found = facts(examples=1000)
    assert found.data.mean_len == 2048
    assert any("upper bound" in line for line in found.assumptions)
    with pytest.raises(InvalidInputError, match="more than seq_len"):
        facts(examples=1000, mean_len=3000)


def test_price_is_the_given_one_or_the_catalogues():
    assert facts(usd_per_hour=2.5).price.low == facts(usd_per_hour=2.5).price.high == 2.5
    assert facts(gpu="rtx4090", vram_gib=None).price is not None
    assert facts().price is None


def test_tasks():
    causal, encoder = facts().model, facts(model="bert-base").model
    assert resolve_task(None, causal) == "sft"
    assert resolve_task(None, encoder) == "classification"
    with pytest.raises(InvalidInputError, match="encoder"):
        resolve_task("sft", encoder)
    assert {resolve_task(task, causal) for task in get_args(Task)} == set(get_args(Task))


def test_unknown_and_unweighed_methods():
    with pytest.raises(UnknownNameError, match="lorra"):
        facts(methods=("lorra",))


@pytest.mark.parametrize("request_", [{}, {"model": "llama-8b", "vram_gib": float("nan")}, {"model": "m", "x": 1}])
def test_the_api_names_what_is_wrong_in_a_request(request_):
    from advisor.api import advise

    with pytest.raises(AdviseError, match="request"):
        advise(request_)


def test_fingerprints_follow_the_facts():
    assert facts().fingerprints == facts().fingerprints
    assert facts().fingerprints["hardware"] != facts(vram_gib=16).fingerprints["hardware"]
    assert facts().fingerprints["model"] != facts(model="gpt2").fingerprints["model"]

"""Token counts: against transformers where a tokenizer is at hand, and the stated assumption where none is."""

import json

import pytest

from advisor.dataset import lengths as lengths_module
from advisor.dataset import measure_lengths, read_dataset
from profiles.errors import AdviseError, InvalidInputError
from profiles.token_density import density_of

CHATML = (
    "{%- if tools %}tools {{ tools | tojson }} end\n{% endif -%}"
    "{% for message in messages %}<|im_start|> {{ message['role'] }} {% generation %}{{ message['content'] }}"
    "{% endgeneration %} <|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
)
ALPACA = [{"instruction": f"say {i}", "input": "", "output": "well " * i} for i in range(1, 40)]
PREFERENCE = [{"prompt": "one two", "chosen": "three", "rejected": "three four five"}]
TOOLS = [
    {
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "x"}}],
    }
]


def read(tmp_path, rows):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_dataset(path)


@pytest.fixture
def folder(tmp_path):
    """A word-level tokenizer that puts <s> in front, with a chat template."""
    tokenizers = pytest.importorskip("tokenizers")
    words = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "user", "assistant", "system", "well", "say"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_special_tokens(words[:5])
    folder = tmp_path / "model"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": {"__type": "AddedToken", "content": "</s>"},
        "unk_token": "<unk>",
        "chat_template": CHATML,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def test_plain_text_has_its_first_and_last_token(tmp_path, folder):
    d = measure_lengths(read(tmp_path, [{"text": "a b c"}]), folder)
    assert d.max == 1 + 3 + 1
    assert d.relative_uncertainty == 0
    assert "with its chat template" in d.counted_by


def test_a_classified_text_has_no_end_token(tmp_path, folder):
    assert measure_lengths(read(tmp_path, [{"text": "a b c", "label": 1}]), folder).max == 1 + 3


def test_a_preference_pair_counts_as_its_longer_side(tmp_path, folder):
    # "two" + "three" are one word: texts are joined without a space
    assert measure_lengths(read(tmp_path, PREFERENCE), folder).max == 1 + 4 + 1


def test_conversations_go_through_the_template(tmp_path, folder):
    d = measure_lengths(read(tmp_path, ALPACA[:1]), folder)
    assert d.max == len(
        ["<|im_start|>", "user", "say", "1", "<|im_end|>", "<|im_start|>", "assistant", "well", "<|im_end|>"]
    )


@pytest.mark.platform
@pytest.mark.parametrize("rows", [ALPACA, TOOLS, [{"text": "a b  c"}], [{"prompt": "a ", "completion": "b"}]])
def test_counts_are_those_of_transformers(tmp_path, folder, rows):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    dataset = read(tmp_path, rows)
    expected = []
    for example in dataset:
        turns = example.get("messages")
        if isinstance(example.get("prompt"), list):
            turns = [*example["prompt"], *example["completion"]]
        if turns:
            tools = json.loads(example["tools"]) if "tools" in example else None
            expected.append(len(tokenizer.apply_chat_template(turns, tools=tools, return_dict=True)["input_ids"]))
        else:
            text = example.get("text") or example["prompt"] + example["completion"]
            expected.append(len(tokenizer(text + tokenizer.eos_token)["input_ids"]))
    d = measure_lengths(dataset, folder)
    assert (d.quantile(0), d.max) == (min(expected), max(expected))
    assert d.mean == pytest.approx(sum(expected) / len(expected))


def test_without_a_template_five_tokens_a_message_are_assumed(tmp_path, folder):
    (folder / "tokenizer_config.json").unlink()
    d = measure_lengths(read(tmp_path, ALPACA[:1]), folder / "tokenizer.json")
    assert d.max == 2 * 5 + 2 + 1
    assert "5 tokens assumed around each message" in d.counted_by


def test_a_template_of_its_own_file_is_used(tmp_path, folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }} x x {% endfor %}")
    assert measure_lengths(read(tmp_path, ALPACA[:1]), folder).max == 3 + 4


def test_a_row_that_the_template_refuses_is_named(tmp_path, folder):
    (folder / "chat_template.jinja").write_text("{{ raise_exception('only users may speak') }}")
    with pytest.raises(InvalidInputError, match=r"data.jsonl:1: the model's chat template refuses .*only users"):
        measure_lengths(read(tmp_path, ALPACA), folder)


def test_a_hostile_template_stays_in_the_sandbox(tmp_path, folder):
    (folder / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    with pytest.raises(InvalidInputError, match="refuses this conversation"):
        measure_lengths(read(tmp_path, ALPACA), folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", "{}", "not a readable tokenizer"),
        ("tokenizer_config.json", "{", "cannot be read"),
        ("tokenizer_config.json", "[]", "must be a JSON object"),
        ("chat_template.jinja", "{% for %}", "the chat template is broken"),
    ],
)
def test_broken_tokenizer_files(tmp_path, folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(InvalidInputError, match=message):
        measure_lengths(read(tmp_path, ALPACA), folder)


def test_no_tokenizer_there(tmp_path):
    with pytest.raises(InvalidInputError, match=r"holds no tokenizer.json"):
        measure_lengths(read(tmp_path, ALPACA), tmp_path)
    with pytest.raises(InvalidInputError, match="does not exist"):
        measure_lengths(read(tmp_path, ALPACA), tmp_path / "x.json")


def test_without_the_tokenizers_library(tmp_path, folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    with pytest.raises(AdviseError, match="needs tokenizers") as caught:
        measure_lengths(read(tmp_path, ALPACA), folder)
    assert caught.value.code == "missing-package"


def test_the_assumption_states_itself_and_its_error(tmp_path):
    d = measure_lengths(read(tmp_path, [{"text": "hello world"}]), None)
    row = density_of("h")
    assert d.max == pytest.approx(11 * row.tokens_per_character + 1)
    assert "assumed" in d.counted_by
    assert d.relative_uncertainty == pytest.approx(row.residual, abs=0.06)
    chinese = measure_lengths(read(tmp_path, [{"text": "你好世界" * 50}]), None)
    assert chinese.relative_uncertainty > d.relative_uncertainty


# Counted with tokenizers 0.23.3 on 2026-11-24: Llama-3.1, Qwen3 and Gemma-3 agree.
ENGLISH = "The quick brown fox jumps over the lazy dog, and the dog, being lazy, does not mind at all. " * 4
ENGLISH_TOKENS = 93


def test_the_assumption_is_near_a_real_count(tmp_path):
    d = measure_lengths(read(tmp_path, [{"text": ENGLISH}]), None)
    assert d.max == pytest.approx(ENGLISH_TOKENS + 1, rel=d.relative_uncertainty)


def test_a_sample_is_repeatable_and_knows_the_longest(tmp_path):
    rows = [{"text": "a" * n} for n in range(1, 500)] + [{"text": "z" * 5000}]
    dataset = read(tmp_path, rows)
    full, sampled = measure_lengths(dataset, None), measure_lengths(dataset, None, sample=100)
    assert sampled == measure_lengths(dataset, None, sample=100)
    assert sampled.examples == 100
    assert sampled.max == full.max
    assert sampled.p50 == pytest.approx(full.p50, rel=0.25)


def test_progress_is_told_of_long_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(lengths_module, "PROGRESS_AFTER", 0)
    calls = []
    dataset = read(tmp_path, [{"text": str(i)} for i in range(2000)])
    measure_lengths(dataset, None, progress=lambda n, share: calls.append((n, share)))
    assert calls
    assert calls == sorted(calls)
    assert calls[-1][1] <= 1

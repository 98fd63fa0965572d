"""Training files of other platforms as plans: our own files of every format, and any text whatever."""

import ast
import json
from collections import Counter
from keyword import iskeyword
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from advisor.readers import Reading, get_reader, read_file, readers
from advisor.readers.default_targets import DEFAULT_TARGETS
from advisor.readers.placement import parse_accelerate, parse_deepspeed
from profiles.config_keys import load_key_tables
from profiles.errors import AdviseError, InvalidInputError

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
READING_FIELDS = {"n_gpus", "sharding", "offload_optimizer", "offload_parameters", "float_by_card", "targets_by_model",
                  "eval_batch_size"}  # fmt: skip


def expected(path):
    """What the first line of a file says that reading it gives."""
    return json.loads(path.read_text().splitlines()[0].removeprefix("# expect: "))


def test_the_files_are_seen():
    assert Counter(path.parent.name for path in FILES) == {"llamafactory": 13, "trl": 12, "axolotl": 12, "unsloth": 9}
    fields = {field for path in FILES for field in expected(path).get("plan", {})}
    assert len(fields) >= 20


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_file_is_told_by_its_keys_and_becomes_the_plan_that_it_means(path):
    wanted = expected(path)
    reading = read_file(path.read_text(), path.name)
    assert reading.format == path.parent.name
    assert reading == read_file(path.read_text(), path.name, form=path.parent.name)
    if "unjudged" in wanted:
        assert reading.unjudged.startswith(wanted["unjudged"])
    else:
        assert reading.unjudged == ""
    plan = {} if reading.plan is None else reading.plan.model_dump(mode="json")
    for field, value in wanted.get("plan", {}).items():
        assert (field, plan[field]) == (field, value)
    for field in READING_FIELDS & wanted.keys():
        assert (field, getattr(reading, field)) == (field, wanted[field])
    found = {level: sorted({f.key for f in reading.findings if f.level == level}) for level in ("error", "warning")}
    assert found["error"] == sorted(wanted.get("errors", []))
    fixes = {finding.key: finding.fix for finding in reading.findings}
    assert {key: fixes[key] for key in wanted.get("fixes", {})} == wanted.get("fixes", {})
    if "warnings" in wanted:
        assert found["warning"] == sorted(wanted["warnings"])
    if "unjudged_keys" in wanted:
        assert sorted(n.key for n in reading.keys if n.kind == "not judged") == sorted(wanted["unjudged_keys"])


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".yaml"], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_every_key_of_a_file_is_accounted_for(path):
    reading = read_file(path.read_text(), path.name)
    if reading.plan is not None:
        keys = list(yaml.safe_load(path.read_text()))
        assert [note.key for note in reading.keys if note.key in keys] == keys
        for note in reading.keys:
            assert bool(note.text) == (note.kind in ("not judged", "void")), note


def test_a_file_that_is_named_is_read_where_it_is_here():
    text = "model_name_or_path: a/b\nstage: sft\ndo_train: true\nbf16: true\ndeepspeed: ds.json\n"
    here = read_file(text, open_file=lambda name: '{"zero_optimization": {"stage": 1}}' if name == "ds.json" else None)
    assert here.sharding == "zero1"
    assert not [note for note in here.keys if note.kind == "not judged"]
    away = read_file(text)
    assert away.sharding == "zero2"
    assert [note.key for note in away.keys if note.kind == "not judged"] == ["deepspeed"]
    for wrong in ("[]", "{", '{"zero_optimization": {"stage": 7}}'):
        with pytest.raises(InvalidInputError):
            read_file(text, open_file=lambda name, wrong=wrong: wrong)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ({"distributed_type": "MULTI_GPU", "num_processes": 4}, (4, "ddp", False, False)),
        ({"distributed_type": "NO", "num_processes": 8}, (1, "none", False, False)),
        (
            {"distributed_type": "FSDP", "num_processes": 2, "fsdp_config": {"fsdp_offload_params": True}},
            (2, "fsdp2", True, True),
        ),
        (
            {"distributed_type": "DEEPSPEED", "deepspeed_config": {"zero_stage": 3, "offload_optimizer_device": "cpu"}},
            (None, "zero3", True, False),
        ),
    ],
)
def test_accelerates_own_files(content, wanted):
    assert tuple(parse_accelerate(content)) == wanted


def test_deepspeeds_own_files():
    assert parse_deepspeed({}).sharding == "ddp"
    offload = {"stage": 3, "offload_optimizer": {"device": "cpu"}, "offload_param": {"device": "none"}}
    assert tuple(parse_deepspeed({"zero_optimization": offload})) == (None, "zero3", True, False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no keys"),
        ("- a\n- b\n", "holds no keys"),
        ("a: [1\n", "is not YAML"),
        ("a: 1\nb: {\n", "file:3"),
        ("colour: blue\n", "no format that is known"),
        ("print('hello')\n", "no format that is known"),
        ("model_name_or_path: a/b\nuse_peft: true\nlora_r: many\n", "lora_r: 'many' is no number"),
        ("model_name_or_path: a/b\nuse_peft: true\nlora_r: 1.5\n", "lora_r: 1.5 is no whole number"),
        ("model_name_or_path: a/b\nuse_peft: true\nlora_r: 0\n", "lora_r: 0 should be greater"),
        ("model_name_or_path: a/b\nuse_peft: maybe\n", "use_peft: 'maybe' is neither"),
        ("model_name_or_path: [a]\nuse_peft: true\n", "is no text"),
        ("model_name_or_path: a/b\nuse_peft: true\nlearning_rate: .inf\n", "no finite number"),
        ("base_model: a/b\nlearning_rate: 1\nmicro_batch_size: -1\n", "micro_batch_size: -1"),
        ("base_model:\nlearning_rate: 1\n", "base_model: None is no model"),
    ],
)
def test_what_cannot_be_is_one_clear_error(text, words):
    with pytest.raises(InvalidInputError) as error:
        read_file(text)
    assert words in error.value.message


def test_a_table_says_one_thing_of_a_key():
    for table in load_key_tables().values():
        parts = (table.read, table.harmless, table.unjudged, table.void, table.removed)
        assert sum(map(len, parts)) == len(table.keys), table.id
        assert len(table.keys) > 20
    assert len(load_key_tables()) == 7


@pytest.mark.parametrize("path", [p for p in FILES if p.suffix == ".yaml"], ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_what_is_read_stands_in_the_table(path):
    reading = read_file(path.read_text(), path.name)
    table = load_key_tables()[reading.format]
    assert {note.key for note in reading.keys if note.kind == "read"} <= table.read


def test_an_unknown_format_names_those_that_there_are():
    with pytest.raises(AdviseError) as error:
        get_reader("torchtune")
    assert "axolotl" in error.value.hint
    assert set(readers()) == {"llamafactory", "trl", "axolotl", "unsloth", "accelerate"}


KEYS = sorted({key for table in load_key_tables().values() for key in table.keys})
CODE = sorted({
    node.value
    for path in Path(read_file.__code__.co_filename).parent.glob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier()
})  # fmt: skip
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(CODE)
    | st.sampled_from([0, 1, 4, 8, "1e-4", "4", "true", "no", "none", "auto", "all", 10**400, -1, 0.5])
)  # fmt: skip
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(CODE), inner, max_size=3)
)
MODELS = ("model_name_or_path", "base_model")
START = {"llamafactory": {"stage": "sft", "do_train": True}, "trl": {"use_peft": True}, "axolotl": {}}


def outcome(read, *args, **kwargs):
    """The reading, or the one error that may stand in its place."""
    try:
        return read(*args, **kwargs)
    except AdviseError as error:
        return error.message


@pytest.mark.thorough
@pytest.mark.parametrize("form", ["llamafactory", "trl", "axolotl", "accelerate"])
@given(st.dictionaries(st.sampled_from(KEYS + CODE), VALUES, max_size=12))
def test_any_keys_and_values_are_a_reading_or_one_error(form, content):
    model = MODELS[form == "axolotl"]
    for keys in (content, {model: "a/b", **START.get(form, {}), **content}):
        found = outcome(get_reader(form).read, keys, lambda path: None)
        assert found
        if isinstance(found, Reading):
            assert found == Reading.model_validate(found.model_dump())
            assert found.unjudged or found.plan is not None


@given(st.text(max_size=200) | st.binary(max_size=60).map(lambda raw: raw.decode("utf-8", "replace")))
def test_any_text_is_a_reading_or_one_error(text):
    for form in (None, *readers()):
        assert outcome(read_file, text, form=form)


@pytest.mark.parametrize(
    "text", ["a: " + "[" * 5000, "&a [*a]", "a: &a\n  b: *a\n", "x: " + "9" * 6000, "a: 2001-99-99", "a: 1:99",
             "f(" * 3000, "!!python/object:os.system x", "? {a: 1}\n: b", "\0", "a: !!binary '?'", "a: !!set {b}"]
)  # fmt: skip
def test_hostile_texts_are_a_reading_or_one_error(text):
    for prefix in ("", "base_model: a/b\nlearning_rate: 1\n"):
        for form in (None, *readers()):
            assert outcome(read_file, prefix + text, form=form)


CALLS = ("FastLanguageModel.from_pretrained", "FastLanguageModel.get_peft_model", "SFTConfig", "SFTTrainer")
LITERALS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(CODE)
ARGUMENTS = st.dictionaries(
    st.sampled_from([key for key in KEYS + CODE if key.isidentifier() and not iskeyword(key)]),
    LITERALS | st.lists(LITERALS, max_size=3),
    max_size=6,
)


@given(st.lists(st.tuples(st.sampled_from(CALLS), ARGUMENTS), max_size=5))
def test_any_script_of_these_calls_is_a_reading_or_one_error(calls):
    text = "m = FastLanguageModel.from_pretrained('a/b')\n"
    text += "".join(f"{name}({', '.join(f'{k}={v!r}' for k, v in values.items())})\n" for name, values in calls)
    assert outcome(read_file, text, form="unsloth")


def test_a_script_is_never_run(tmp_path):
    trap = tmp_path / "ran"
    text = (
        f"open({str(trap)!r}, 'w')\nfrom unsloth import FastLanguageModel\nFastLanguageModel.from_pretrained('a/b')\n"
    )
    assert read_file(text).format == "unsloth"
    assert not trap.exists()


@pytest.mark.platform
def test_default_targets_are_pefts():
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as PEFT

    assert {kind: tuple(PEFT[kind]) for kind in DEFAULT_TARGETS} == DEFAULT_TARGETS
    assert len(DEFAULT_TARGETS) >= 15


def test_kernels_and_reentrant_checkpoints_are_read():
    """axolotl turns Liger's kernels on one by one; LLaMA-Factory all of them with its loss."""
    axolotl = {"base_model": "a/b", "adapter": "lora", "liger_rms_norm": True, "liger_glu_activation": True,
               "gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}  # fmt: skip
    plan = get_reader("axolotl").read(axolotl, lambda path: None).plan
    assert (plan.fused_ops, plan.reentrant) == (("norm", "activation"), True)
    assert plan.loss_kernel == "full"
    factory = {"model_name_or_path": "a/b", "stage": "sft", "do_train": True, "finetuning_type": "lora",
               "enable_liger_kernel": True, "use_reentrant_gc": False}  # fmt: skip
    plan = get_reader("llamafactory").read(factory, lambda path: None).plan
    assert (plan.fused_ops, plan.reentrant, plan.loss_kernel) == (None, False, "chunked")
    unsloth = get_reader("llamafactory").read(factory | {"use_unsloth": True}, lambda path: None).plan
    assert (unsloth.platform, unsloth.reentrant) == ("unsloth", None)  # its checkpoints ask no one

"""`ftadvise check`: verdicts, findings on a card, the smallest changes that make a file fit, and what is not judged."""

import io
import json
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from advisor.api import estimate
from advisor.check import CheckAnswer, check, launched
from advisor.cli.commands.check import FORMATS
from advisor.cli.main import run
from advisor.hardware import resolve_hardware
from advisor.readers import read_file, readers
from advisor.remedies import STEPS, find_remedies, smaller_micro_batches
from advisor.render.check import render_check
from profiles.errors import AdviseError
from profiles.plan import Plan
from profiles.units import GIB

CONFIGS = Path(__file__).parents[1] / "golden" / "configs"
FILES = sorted(path for path in CONFIGS.rglob("*") if path.is_file())
NUMBERS = (
    *("lora_rank", "lora_r", "lora_alpha", "oft_block_size", "freeze_trainable_layers", "galore_rank"),
    *("cutoff_len", "max_length", "sequence_len", "per_device_train_batch_size", "micro_batch_size", "max_steps"),
    *("gradient_accumulation_steps", "num_processes", "zero_stage", "ray_num_workers", "quantization_bit"),
)
LORA = CONFIGS / "llamafactory" / "lora.yaml"
TRL = """model_name_or_path: meta-llama/Llama-3.1-8B
dtype: bfloat16
dataset_name: chat
use_peft: true
lora_target_modules: [all-linear]
output_dir: out
"""


@pytest.fixture
def ask(capsys, monkeypatch):
    """Run the command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*argv, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = run(["check", *map(str, argv)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def judge(text, **hardware):
    """The answer to a text, offline."""
    return check(read_file(text), offline=True, **hardware)


def findings(answer, level):
    return [finding.key for finding in answer.findings if finding.level == level]


def test_exit_codes_are_the_verdict(ask):
    assert ask(LORA, "--vram", "24")[0] == 0
    assert ask(LORA, "--vram", "16")[0] == 1
    assert ask(CONFIGS / "llamafactory" / "merge.yaml", "--vram", "24")[0] == 2
    assert ask(CONFIGS / "llamafactory" / "ppo.yaml", "--vram", "24")[0] == 2
    assert ask("no-such-file.yaml", "--vram", "24")[0] == 2
    code, out, err = ask("-", "--vram", "24", stdin="a: [")
    assert (code, out) == (2, "")
    assert err.startswith("error: stdin:")


def test_the_estimate_is_that_of_the_plan(ask):
    code, out, err = ask(LORA, "--gpu", "rtx4090", "--json")
    answer = CheckAnswer.model_validate(json.loads(out)["answer"])
    assert (code, err) == (0, "")
    assert answer.plan.gpu == "rtx4090"
    assert answer.memory == estimate(answer.plan).memory
    assert answer.speed.tokens_per_second.expected > 0


@pytest.fixture(scope="module")
def answers():
    """What is said of each of our files on a card of 24 GB."""
    return {path: check(read_file(path.read_text()), vram_gib=24, offline=True) for path in FILES}


@pytest.mark.thorough
def test_all_our_files_are_answered(answers):
    assert len(answers) == 46
    assert sum(answer.verdict is not None for answer in answers.values()) >= 25
    assert {answer.verdict for answer in answers.values()} >= {"fits", "does not fit", None}
    for path, answer in answers.items():
        assert answer.verdict is not None or answer.unjudged, path
        assert (answer.verdict is None) == (answer.memory is None)
        assert CheckAnswer.model_validate(answer.model_dump(mode="json")).model_dump() == answer.model_dump()


@pytest.mark.thorough
@pytest.mark.parametrize("width", [80, 120])
def test_screens_stay_within_their_width(answers, width):
    for path, answer in answers.items():
        page = render_check(answer, width, all_keys=True)
        assert max(map(len, str(page).splitlines())) <= width, path


@pytest.mark.thorough
@given(st.data())
@settings(max_examples=40)
def test_any_number_anywhere_is_an_answer_or_one_error(data):
    path = data.draw(st.sampled_from([path for path in FILES if path.suffix == ".yaml"]))
    content = yaml.safe_load(path.read_text())
    keys = data.draw(st.lists(st.sampled_from([*content, *NUMBERS]), min_size=1, max_size=3))
    values = st.integers(-2, 70_000) | st.sampled_from([0.5, 1e-9, 10**12, True, False, None, "all", "4"])
    content |= {key: data.draw(values) for key in keys}
    try:
        answer = check(read_file(yaml.safe_dump(content), form=path.parent.name), gpu="2x rtx4090", offline=True)
    except AdviseError as error:
        answer = error
    assert isinstance(answer, CheckAnswer) or answer.message


def test_pieces_are_not_so_small_that_no_plan_can_count_them():
    plan = Plan(model="llama-3.1-8b", method="lora", micro_batch_size=4096, gradient_accumulation_steps=65_536)
    assert [p.micro_batch_size for p in smaller_micro_batches(plan)] == [2048, 1024, 512, 256]


def test_the_same_training_in_smaller_pieces_comes_first():
    answer = judge(TRL + "per_device_train_batch_size: 32\nmax_length: 4096\n", gpu="rtx4090")
    assert answer.verdict == "does not fit"
    first = answer.changes[0]
    size, accumulation = (int(first.keys[k]) for k in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    assert size * accumulation == 32
    again = judge(TRL + f"per_device_train_batch_size: {size}\ngradient_accumulation_steps: {accumulation}\n"
                  "max_length: 4096\n", gpu="rtx4090")  # fmt: skip
    assert again.verdict == "fits"
    assert again.memory.device == first.device
    twice = answer.plan.replace(micro_batch_size=2 * size, gradient_accumulation_steps=accumulation // 2)
    assert estimate(twice, hardware=resolve_hardware("rtx4090")).memory.verdict != "fits"


KEEPS_ALL = LORA.read_text() + "disable_gradient_checkpointing: true\n"
SMALL = LORA.read_text().replace("Llama-3.1-8B", "Llama-3.2-3B") + "cutoff_len: 4096\n"
FULL = TRL.replace("use_peft: true\nlora_target_modules: [all-linear]\n", "") + "per_device_train_batch_size: 1\n"
LONG = (CONFIGS / "axolotl" / "qlora.yaml").read_text().replace("cut_cross_entropy: true", "sequence_len: 8192")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "gpu", "key"),
    [
        (KEEPS_ALL, "rtx4090", "disable_gradient_checkpointing"),
        (SMALL, "rtx3060", "enable_liger_kernel"),
        (TRL.replace("dtype: bfloat16", "dtype: float32"), "rtx4090", "dtype"),
        (FULL, "rtx4090", "use_peft"),
        (TRL + "per_device_train_batch_size: 1\n", "rtx4080", "load_in_4bit"),
        (LONG, "t4", "cut_cross_entropy"),
    ],
)
def test_changes_are_in_the_files_own_words(text, gpu, key):
    answer = judge(text, gpu=gpu)
    assert answer.verdict != "fits"
    assert key in {key for change in answer.changes for key in change.keys}
    for change in answer.changes:
        assert change.device.high <= answer.memory.budget
    assert "GiB" in answer.way_out[0]


@pytest.mark.thorough
def test_changes_add_up_where_no_single_one_is_enough():
    plan = Plan(model="llama-8b", gpu="rtx4090", method="lora", quantization="fp32", micro_batch_size=64, seq_len=4096)
    hardware = resolve_hardware("rtx4090")
    found = find_remedies(plan, lambda changed: estimate(changed, hardware=hardware))
    assert found
    assert all(estimate(remedy.plan, hardware=hardware).memory.verdict == "fits" for remedy in found)
    assert found[0].plan.micro_batch_size < 64
    assert found[0].plan.quantization != "fp32"
    assert len(STEPS) == 8


def test_nothing_helps_a_model_that_is_far_too_large():
    answer = judge(TRL.replace("Llama-3.1-8B", "Llama-3.1-405B"), gpu="rtx3060")
    assert answer.changes == ()
    assert "a card that offers" in answer.way_out[0]


def test_several_cards_come_from_the_option_the_file_or_accelerates_file(ask, tmp_path):
    launch = tmp_path / "fsdp2.yaml"
    launch.write_text("distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_version: 2}\n")
    reading = read_file(TRL)
    placed = launched(reading, read_file(launch.read_text()))
    as_said = check(placed, vram_gib=24, offline=True)
    assert as_said.plan.n_gpus == 4
    assert any("as the file says" in line for line in as_said.assumptions)
    assert any("means 4 cards" in line for line in check(placed, gpu="2x rtx4090", offline=True).assumptions)
    assert check(placed, gpu="2x rtx4090", offline=True).plan.n_gpus == 2
    assert check(placed, gpu="rtx4090", n_gpus=8, offline=True).plan.n_gpus == 8
    assert check(placed, gpu="rtx4090", n_gpus=1, offline=True).plan.sharding == "none"
    assert check(reading, gpu="2x rtx4090", offline=True).plan.sharding == "ddp"
    file = tmp_path / "sft.yaml"
    file.write_text(TRL)
    _, out, _ = ask(file, "--gpu", "rtx4090", "--accelerate", launch, "--json")
    plan = json.loads(out)["answer"]["plan"]
    assert (plan["n_gpus"], plan["sharding"]) == (4, "fsdp2")


def test_a_name_that_no_file_can_have_is_no_file(ask, tmp_path):
    (tmp_path / "train.yaml").write_text(LORA.read_text() + f"deepspeed: {'z3' * 3000}\n")
    assert ask(tmp_path / "train.yaml", "--gpu", "a100-80g")[0] == 0


def test_a_deepspeed_file_beside_the_yaml_is_read(ask, tmp_path):
    (tmp_path / "ds.json").write_text('{"zero_optimization": {"stage": 1}}')
    (tmp_path / "train.yaml").write_text(LORA.read_text() + "deepspeed: ds.json\n")
    _, out, _ = ask(tmp_path / "train.yaml", "--gpu", "2x a100-80g", "--json")
    assert json.loads(out)["answer"]["plan"]["sharding"] == "zero1"


TEXT = LORA.read_text()
NO_TARGETS = TRL.replace("lora_target_modules: [all-linear]\n", "")
NOTEBOOK = (CONFIGS / "unsloth" / "notebook.py").read_text()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("text", "gpu", "level", "key"),
    [
        (TEXT, "t4", "warning", "bf16"),
        (TRL + "fp16: true\n", "rtx4090", "warning", "fp16"),
        (TRL + "attn_implementation: flash_attention_2\n", "t4", "error", "attn_implementation"),
        (TRL + "attn_implementation: flash_attention_2\n", "rtx4090", "warning", "attn_implementation"),
        (TEXT + "eval_strategy: steps\nval_size: 0.1\n", "a100-80g", "warning", "per_device_eval_batch_size"),
        (TEXT + "cutoff_len: 200000\n", "a100-80g", "warning", "cutoff_len"),
        (TEXT + "deepspeed: ds_z3.json\n", "a100-80g", "warning", "sharding"),
        (TEXT + "num_train_epochs: 10\n", "a100-80g", "warning", "num_train_epochs"),
        (TEXT.replace("1.0e-4", "1.0e-6"), "a100-80g", "warning", "learning_rate"),
        (NO_TARGETS, "a100-80g", "warning", "lora_target_modules"),
        (NO_TARGETS.replace("meta-llama/Llama-3.1-8B", "microsoft/phi-4"), "a100-80g", "error", "lora_target_modules"),
        (TEXT + "quantization_bit: 8\ndeepspeed: ds_z3.json\n", "2x a100-80g", "error", "quantization"),
        (NOTEBOOK.replace("lora_dropout=0,", "lora_dropout=0.1,"), "t4", "warning", "get_peft_model.lora_dropout"),
    ],
)
def test_findings_on_a_card(text, gpu, level, key):
    assert key in findings(judge(text, gpu=gpu), level)
    assert key not in findings(judge(LORA.read_text(), gpu="a100-80g"), level)


def test_what_the_card_decides():
    notebook = NOTEBOOK.replace("load_in_4bit = True", "load_in_4bit = False")
    assert judge(notebook, gpu="t4").plan.quantization == "fp16"
    assert judge(notebook, gpu="rtx4090").plan.quantization == "bf16"
    assert "needs a GPU" in judge(notebook, gpu="cpu").unjudged


def test_pefts_default_targets_are_few():
    few = judge(NO_TARGETS, gpu="rtx4090")
    assert few.plan.target_modules == ("q_proj", "v_proj")
    assert few.memory.trainable_parameters < judge(TRL, gpu="rtx4090").memory.trainable_parameters / 4


def test_models_are_looked_up_stood_in_for_and_taken_by_name():
    copied = judge(NOTEBOOK, gpu="t4")
    assert copied.plan.model == "meta-llama/Llama-3.1-8B"
    assert any("is taken for meta-llama/Llama-3.1-8B" in line for line in copied.assumptions)
    unknown = judge(TRL.replace("meta-llama/Llama-3.1-8B", "someone/else"), gpu="t4")
    assert unknown.verdict is None
    assert "--model" in unknown.hint
    assert unknown.plan.method == "lora"
    stood = judge(TRL.replace("meta-llama/Llama-3.1-8B", "someone/else"), gpu="t4", model="qwen2.5-0.5b")
    assert stood.verdict == "fits"
    assert any("stands in for someone/else" in line for line in stood.assumptions)
    stored = judge(TRL.replace("Llama-3.1-8B", "Llama-3.1-8B-GPTQ"), gpu="t4", model="llama-8b")
    assert stored.verdict is None
    assert "GPTQ" in stored.unjudged


def test_a_model_that_the_script_computes_is_asked_for():
    text = NOTEBOOK.replace('"unsloth/Meta-Llama-3.1-8B-bnb-4bit"', "sys.argv[1]")
    assert "--model" in judge(text, gpu="t4").hint
    assert judge(text, gpu="t4", model="llama-8b").memory == judge(NOTEBOOK, gpu="t4").memory


def test_what_is_not_estimated_is_said_with_what_was_read(ask):
    code, out, err = ask(CONFIGS / "llamafactory" / "ppo.yaml", "--vram", "24")
    assert (code, err) == (2, "")
    assert "Not judged" in out
    assert "ppo" in out
    assert "rank 8" in out


def test_preference_training_is_judged_as_pairs_with_a_reference(ask):
    code, out, err = ask(CONFIGS / "llamafactory" / "dpo.yaml", "--vram", "24")
    assert (code, err) == (1, "")
    assert "an example becomes 2 sequences" in out
    assert "without its adapter" in out


def test_the_formats_of_the_command_are_the_readers():
    assert set(FORMATS) == set(readers())


def test_hardware_that_does_not_exist_is_the_askers_mistake():
    with pytest.raises(AdviseError, match="rtx4900"):
        judge(TRL, gpu="rtx4900")


def test_the_budget_is_the_cards():
    assert judge(TRL, gpu="rtx4090").memory.budget < 24 * GIB


def test_under_liger_an_evaluation_makes_whole_logits():
    """An H200 held 4.89 GiB of them for four such rows, where training needed 0.8 beside the weights."""
    text = """model_name_or_path: meta-llama/Llama-3.2-1B
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
dataset: alpaca_en_demo
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 4
per_device_eval_batch_size: 4
enable_liger_kernel: true
bf16: true
val_size: 0.1
eval_strategy: steps
output_dir: out
"""
    told = judge(text, gpu="rtx4090")
    (finding,) = (f for f in told.findings if f.key == "per_device_eval_batch_size")
    assert "4.89 GiB of logits" in finding.text
    assert told.memory.peak_phase == "evaluation"
    quiet = judge(text.replace("eval_strategy: steps\n", ""), gpu="rtx4090")
    assert quiet.memory.peak_phase != "evaluation"
    assert "per_device_eval_batch_size" not in [f.key for f in quiet.findings]

"""Real training with LLaMA-Factory on the CPU, through emit and launch: its methods, tasks and forms of rows."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from advisor.dataset import read_dataset, split, write_normalised
from advisor.emit import Source, emit, emitters, write_emission
from advisor.facts import resolve_model
from advisor.feedback import measure_run
from advisor.launch import RunState, launchers, load_run_file
from advisor.launch.metrics import Course, read_course
from advisor.launch.monitor import PlainLog
from profiles.plan import Plan
from profiles.platform import load_platforms
from tests.advisor.reporters import AtStep

pytestmark = [pytest.mark.platform, pytest.mark.slow]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
STEPS = 12
PAIRS = [(i, j) for i in range(10) for j in range(10)]


def build_model(folder: Path) -> Path:
    """A Llama of 90 000 random weights, with a tokenizer of bytes that begins each text with a token of its own."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    tokens = ["<|begin|>", "<|im_start|>", "<|im_end|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>", eos_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(tokens), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_model(tmp_path_factory.mktemp("model") / "tiny")


def question(i: int, j: int) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"{i} plus {j}?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def rows_of(form: str) -> list[dict[str, Any]]:
    """A hundred sums in one of the layouts that are read."""
    make = {
        "alpaca": lambda i, j: {"instruction": f"{i} plus {j}?", "output": f"The sum is {i + j}."},
        "plain": lambda i, j: {"prompt": f"{i} plus {j}? ", "completion": f"The sum is {i + j}."},
        "chat": lambda i, j: {"messages": question(i, j) + answer(f"{i + j}") + question(j, i) + answer(f"{i + j}")},
        "text": lambda i, j: {"text": f"{i} plus {j} is {i + j}"},
        "preference": lambda i, j: {
            "prompt": question(i, j), "chosen": answer(f"The sum is {i + j}."), "rejected": answer("No idea, sorry."),
        },
        "label": lambda i, j: {
            "prompt": question(i, j), "completion": answer(f"The sum is {i + j}." if (i + j) % 2 else "No idea."),
            "label": bool((i + j) % 2),
        },
    }[form]  # fmt: skip
    return [make(i, j) for i, j in PAIRS]


def write_run(folder: Path, model: Path, form: str, values: dict[str, Any]) -> Path:
    rows = folder.parent / f"{folder.name}.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in rows_of(form)))
    plan = Plan.model_validate(
        {
            "model": str(model), "platform": "llamafactory", "gpu": "cpu", "quantization": "fp32", "seq_len": 96,
            "micro_batch_size": 8, "max_steps": STEPS, "learning_rate": 1e-2, "eval_fraction": 0.1, **values,
        }
    )  # fmt: skip
    parts = split(read_dataset(rows), plan.eval_fraction, plan.seed)
    adapt = emitters()["llamafactory"].adapt_row

    def add_data(out: Path) -> None:
        write_normalised(parts.train, out / "data" / "train.jsonl", adapt=adapt)
        write_normalised(parts.evaluation, out / "data" / "eval.jsonl", adapt=adapt)

    source = Source(model_ref=str(model), form=parts.train.format.form, conversational=form not in ("plain", "text"))
    return write_emission(emit(plan, resolve_model(plan.model), source), folder, add_data=add_data)


def launch(folder: Path, python: str, **options: Any) -> tuple[RunState, Course]:
    state = launchers()["local"].run(folder, options.pop("reporter", PlainLog()), python=python, **options)
    return state, read_course(folder / "runs" / "metrics.jsonl")


def log(folder: Path) -> str:
    return (folder / "runs" / "train.log").read_text()


METHODS: dict[str, dict[str, Any]] = {
    "lora": {},
    "full": {},
    "freeze": {"method_options": {"freeze_trainable_layers": 1}},
    "oft": {},
    "qlora": {"quantization": "nf4-dq"},
    "lora on int8": {"quantization": "int8"},
    "oft on nf4": {"quantization": "nf4"},
    "dora": {},
    "rslora": {},
    "loraplus": {},
    "pissa": {},
    "galore": {},
    "apollo": {},
    "badam": {},
    "full by muon": {"optimizer": "muon"},
    "lora packed": {"packing": True},
    "lora, best of evaluations": {"early_stopping_patience": 2},
    "lora and the head": {"method_options": {"modules_to_save": ["lm_head"]}},
}


def held_out_loss(folder: Path, model: Any, tokenizer: Any) -> float:
    """Mean loss a token of the answers in data/eval.jsonl, as the chat template renders them."""
    total = count = 0.0
    for line in (folder / "data" / "eval.jsonl").read_text().splitlines():
        messages = json.loads(line)["messages"]
        whole = "<|begin|>" + tokenizer.apply_chat_template(messages, tokenize=False)
        prompt = "<|begin|>" + tokenizer.apply_chat_template(messages[:-1], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(whole, return_tensors="pt", add_special_tokens=False).input_ids
        labels = ids.clone()
        labels[:, : len(tokenizer(prompt, add_special_tokens=False).input_ids)] = -100
        tokens = int((labels != -100).sum())
        total += model(ids, labels=labels).loss.item() * tokens
        count += tokens
    return total / count


def result_loss(folder: Path, base: Path) -> float:
    """The held-out loss of what stands in model/."""
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    adapter = (folder / "model" / "adapter_config.json").is_file()
    kind = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    tuned = kind.from_pretrained(folder / "model", dtype=torch.float32).eval()
    return held_out_loss(folder, tuned, AutoTokenizer.from_pretrained(base))


@pytest.mark.parametrize("case", METHODS)
def test_every_method_learns_and_its_result_loads(
    case: str, llamafactory_python: str, tiny: Path, tmp_path: Path
) -> None:
    method = case.split()[0].rstrip(",")
    folder = write_run(tmp_path / "run", tiny, "alpaca", {"method": method, **METHODS[case]})
    state, course = launch(folder, llamafactory_python)
    assert state.status == "finished", log(folder)[-3000:]
    assert [event.step for event in course.steps] == list(range(1, STEPS + 1))
    assert course.losses[-1] < course.losses[0] - 0.2
    assert course.eval_losses[-1][1] < course.eval_losses[0][1] - 0.2
    assert all(event.tokens and event.seconds and event.process for event in course.steps)
    assert course.start is not None
    assert course.start.trainable_parameters == load_run_file(folder).trainable_parameters

    loaded = result_loss(folder, tiny)
    # The base is loaded unquantised here, and packed rows are evaluated packed.
    assert loaded == pytest.approx(course.eval_losses[-1][1], abs=0.15)


TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "texts": ("text", {"task": "pretrain"}),
    "packed texts": ("text", {"task": "pretrain", "packing": True, "seq_len": 64}),
    "texts learned as rows": ("text", {}),
    "plain prompts": ("plain", {}),
    "chats": ("chat", {"seq_len": 200}),
    "dpo": ("preference", {"task": "dpo"}),
    "dpo, full": ("preference", {"task": "dpo", "method": "full", "learning_rate": 1e-3}),
    "orpo": ("preference", {"task": "orpo"}),
    "kto": ("label", {"task": "kto"}),
    "reward": ("preference", {"task": "reward"}),
}


@pytest.mark.parametrize("case", TASKS)
def test_every_task_and_form_of_rows_learns(case: str, llamafactory_python: str, tiny: Path, tmp_path: Path) -> None:
    form, values = TASKS[case]
    folder = write_run(tmp_path / "run", tiny, form, values)
    state, course = launch(folder, llamafactory_python)
    assert state.status == "finished", log(folder)[-3000:]
    assert course.losses[-1] < course.losses[0] - 0.1
    assert course.eval_losses[-1][1] < course.eval_losses[0][1] - 0.1
    shown = log(folder).split("training example:", 1)[1]
    if form == "plain":  # with what belongs around a text, and the loss on the completion only
        assert "<|begin|>0 plus" in shown
        labels = shown.split("labels:\n", 1)[1].splitlines()[0]
        assert labels.startswith("The sum is")
        assert labels.endswith(".<|im_end|>")
    if form == "chat":  # every answer is learned
        assert shown.split("labels:\n", 1)[1].count("<|im_end|>", 0, 60) == 2


@pytest.mark.parametrize("method", ["lora", "full", "pissa"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    method: str, llamafactory_python: str, tiny: Path, tmp_path: Path
) -> None:
    steps = 40
    whole = write_run(tmp_path / "whole", tiny, "alpaca", {"method": method, "max_steps": steps})
    assert launch(whole, llamafactory_python)[0].status == "finished", log(whole)[-3000:]
    folder = write_run(tmp_path / "cut", tiny, "alpaca", {"method": method, "max_steps": steps})
    stopped, _ = launch(folder, llamafactory_python, reporter=AtStep(3, (folder / "runs" / "stop").touch))
    assert stopped.status == "stopped", log(folder)[-3000:]
    assert stopped.returncode == 130
    assert 3 <= stopped.step < steps
    assert not (folder / "model").exists()
    state, course = launch(folder, llamafactory_python, resume=True)
    assert (state.status, state.step) == ("finished", steps), log(folder)[-3000:]
    assert course.losses == pytest.approx(read_course(whole / "runs" / "metrics.jsonl").losses, abs=0.02)
    assert (folder / "model" / "adapter_config.json").is_file() is (method != "full")
    assert result_loss(folder, tiny) == pytest.approx(result_loss(whole, tiny), abs=0.02)
    measured = measure_run(folder)
    assert measured.environment.versions["llamafactory"] == load_platforms()["llamafactory"].versions["llamafactory"]


@pytest.mark.parametrize("method", ["lora", "pissa"])
def test_a_run_resumed_at_its_last_step_trains_no_step_more(
    method: str, llamafactory_python: str, tiny: Path, tmp_path: Path
) -> None:
    folder = write_run(tmp_path / "run", tiny, "alpaca", {"method": method})
    state, course = launch(folder, llamafactory_python)
    assert (state.status, state.step) == ("finished", STEPS), log(folder)[-3000:]
    tuned = result_loss(folder, tiny)
    shutil.rmtree(folder / "model")  # as a crash between the last checkpoint and the result leaves it
    state, again = launch(folder, llamafactory_python, resume=True)
    assert (state.status, state.step) == ("finished", STEPS), log(folder)[-3000:]
    assert again.losses == course.losses
    assert result_loss(folder, tiny) == pytest.approx(tuned, abs=1e-3)


def test_its_own_command_line_trains_the_same(llamafactory_python: str, tiny: Path, tmp_path: Path) -> None:
    ours = write_run(tmp_path / "ours", tiny, "alpaca", {})
    state, course = launch(ours, llamafactory_python)
    assert state.status == "finished"
    folder = write_run(tmp_path / "theirs", tiny, "alpaca", {})
    command = [str(Path(llamafactory_python).parent / "llamafactory-cli"), "train", "train.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    history = json.loads((folder / "runs" / "checkpoints" / "trainer_state.json").read_text())["log_history"]
    theirs = [entry["loss"] for entry in history if "loss" in entry]
    assert theirs == pytest.approx(course.losses, abs=1e-3)


def test_two_processes_train_together(llamafactory_python: str, tiny: Path, tmp_path: Path) -> None:
    values = {"n_gpus": 2, "sharding": "ddp", "micro_batch_size": 4}
    folder = write_run(tmp_path / "run", tiny, "alpaca", values)
    state, course = launch(folder, llamafactory_python)
    assert state.status == "finished", log(folder)[-3000:]
    assert course.start is not None
    assert course.start.processes == 2
    assert course.losses[-1] < course.losses[0] - 0.2
    assert (folder / "model" / "adapter_model.safetensors").is_file()


def test_what_would_go_wrong_later_is_said_first(llamafactory_python: str, tiny: Path, tmp_path: Path) -> None:
    odd = write_run(tmp_path / "run [1]", tiny, "alpaca", {})
    state, _ = launch(odd, llamafactory_python)
    assert state.status == "failed"
    assert "takes * ? [ ] in a folder's name for a pattern" in log(odd)
    bare = build_model(tmp_path / "bare")
    (bare / "chat_template.jinja").unlink()
    chats = write_run(tmp_path / "chats", bare, "chat", {"seq_len": 200})
    state, _ = launch(chats, llamafactory_python)
    assert state.status == "failed"
    assert "no chat template" in log(chats)

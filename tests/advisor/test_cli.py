"""The command line: answers, exit codes, envelopes, and every kind of bad input that other tools let pass."""

import io
import json
import subprocess
import sys

import pytest

from advisor.cli import commands
from advisor.cli.main import cli, run

BASE = ["--model", "llama-8b", "--vram", "24"]
ESTIMATE = ["estimate", "--model", "llama-8b", "--gpu", "rtx4090"]


@pytest.fixture
def ask(capsys, monkeypatch):
    """Run the command line in this process: (exit code, standard output, standard error)."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def call(*argv, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8"))
        code = run(list(argv))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_bare_options_are_advise(ask):
    assert ask(*BASE) == ask("advise", *BASE)


def test_an_answer_names_everything_that_has_to_be_set(ask):
    code, out, err = ask(*BASE, "--examples", "10000", "--mean-len", "300", "--usd-per-hour", "0.5")
    assert (code, err) == (0, "")
    for word in ("Method", "rank 16", "micro-batch", "accumulation", "sequences of 2048 tokens", "checkpointing",
                 "attention", "optimizer", "base weights", "tokens/s", "USD", "Why not", "ftadvise emit",
                 "ftadvise launch", "Assumptions"):  # fmt: skip
        assert word in out


@pytest.mark.thorough
@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize(
    "argv",
    [BASE, ESTIMATE, ["plans", *BASE, "--examples", "9999999"], ["plans", *BASE, "--dropped"], ["gpus"], ["models"],
     ["doctor"]],
)  # fmt: skip
def test_screens_stay_within_their_width_and_have_no_colour_in_pipes(ask, monkeypatch, columns, argv):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = ask(*argv)
    assert "\x1b" not in out
    assert "…" not in out
    lines = [line for line in out.splitlines() if not line.lstrip().startswith("ftadvise ")]
    assert max(map(len, lines)) <= int(columns)


def test_exit_codes(ask):
    assert ask(*BASE)[0] == 0
    assert ask("--model", "llama-8b", "--vram", "2")[0] == 1
    assert ask("--model", "no-such-model", "--vram", "24")[0] == 2
    assert ask(*ESTIMATE, "--method", "qlora", "--seq-len", "1024")[0] == 0
    assert ask(*ESTIMATE, "--method", "full")[0] == 1
    assert ask(*ESTIMATE, "--method", "bitfit")[0] == 2


BAD = [
    (["--model", "a", "--vram", "24"], "a is neither in the catalogue nor"),
    (["--model", "", "--vram", "24"], "model"),
    (["--model", "llama-8b", "--gpu", "rtx4900"], "Did you mean"),
    (["--model", "llama-8b", "--gpu", "quantum"], "unknown gpu"),
    (["--model", "llama-8b", "--vram", "-24"], "--vram"),
    (["--model", "llama-8b", "--vram", "0"], "--vram"),
    (["--model", "llama-8b", "--vram", "nan"], "--vram"),
    (["--model", "llama-8b", "--vram", "inf"], "--vram"),
    (["--model", "llama-8b", "--vram", "24000"], "vram"),
    (["--model", "llama-8b", "--vram", "24GB"], "--vram"),
    ([*BASE, "--seq-len", "0"], "--seq-len"),
    ([*BASE, "--seq-len", "-100"], "--seq-len"),
    ([*BASE, "--seq-len", "100000000"], "--seq-len"),
    ([*BASE, "--seq-len", "1000000000000"], "--seq-len"),
    ([*BASE, "--rank", "0"], "--rank"),
    ([*BASE, "--rank", "-8"], "--rank"),
    ([*BASE, "--micro-batch", "-4"], "--micro-batch"),
    ([*BASE, "--batch", "0"], "--batch"),
    ([*BASE, "--n-gpus", "0"], "--n-gpus"),
    ([*BASE, "--n-gpus", "-1"], "--n-gpus"),
    ([*BASE, "--epochs", "0"], "--epochs"),
    ([*BASE, "--examples", "-5"], "--examples"),
    ([*BASE, "--mean-len", "9000", "--examples", "10"], "mean_len"),
    ([*BASE, "--max-usd", "-1"], "--max-usd"),
    ([*BASE, "--max-hours", "nan"], "--max-hours"),
    ([*BASE, "--method", "lorra"], "Did you mean"),
    ([*BASE, "--method", "bitfit"], "no bias"),
    ([*BASE, "--quantization", "int3"], "--quantization"),
    ([*BASE, "--goal", "luck"], "--goal"),
    ([*BASE, "--data", "no-such-file.jsonl"], "no-such-file.jsonl"),
    ([*BASE, "--no-such-option"], "--no-such-option"),
    (["--vram", "24"], "--model"),
    (["estimat", *BASE], "Did you mean estimate"),
    ([*ESTIMATE, "--micro-batch", "-4"], "--micro-batch"),
    ([*ESTIMATE, "--micro-batch", "1000000000"], "--micro-batch"),
    ([*ESTIMATE, "--rank", "0"], "--rank"),
    ([*ESTIMATE, "--method", "lorra"], "Did you mean"),
    ([*ESTIMATE, "--optimizer", "adamv"], "unknown optimizer"),
    ([*ESTIMATE, "--set", "lora_dropout=2"], "lora_dropout"),
    ([*ESTIMATE, "--set", "nonsense=2"], "--set"),
    ([*ESTIMATE, "--sharding", "fsdp2"], "n_gpus"),
    ([*ESTIMATE, "--set", 'target_modules=["q_prj"]'], "q_prj"),
    ([*ESTIMATE, "--method", "full", "--quantization", "nf4"], "cannot be trained"),
    (["estimate", "--plan", "no-such-plan.json"], "no-such-plan.json"),
    (["estimate"], "--model"),
]


@pytest.mark.parametrize(("argv", "words"), BAD)
def test_bad_input_is_one_message_with_exit_2(ask, argv, words):
    code, out, err = ask(*argv)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert words in err
    assert "Traceback" not in err
    assert "pydantic" not in err
    assert err.count("error: ") == 1


def test_the_offline_switch_counts_where_huggingface_hub_was_imported_before_it(ask, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code, _, err = ask("--model", "a", "--vram", "24")
    assert code == 2
    assert "the network is off" in err


def test_errors_have_an_envelope_with_json(ask):
    code, out, err = ask("--model", "llama-8b", "--gpu", "rtx4900", "--json")
    answer = json.loads(out)
    assert code == 2
    assert answer["schema"] == "ftadvise/1"
    assert set(answer["error"]) == {"code", "message", "hint"}
    assert answer["error"]["code"] == "unknown-gpu"
    assert answer["error"]["message"] in err


@pytest.mark.parametrize(
    ("argv", "command"),
    [(BASE, "advise"), (ESTIMATE, "estimate"), (["plans", *BASE], "plans"), (["gpus", "4090"], "gpus"),
     (["models", "llama"], "models"), (["doctor"], "doctor")],
)  # fmt: skip
def test_every_command_answers_in_the_envelope(ask, argv, command):
    _, out, err = ask(*argv, "--json")
    answer = json.loads(out)
    assert err == ""
    assert list(answer) == ["schema", "command", "answer"]
    assert answer["schema"] == "ftadvise/1"
    assert answer["command"] == command


def test_advise_json_is_the_record_and_its_plan_can_be_estimated(ask):
    from advisor.recommendation import Recommendation

    _, out, _ = ask(*BASE, "--json")
    answer = json.loads(out)["answer"]
    recommendation = Recommendation.model_validate(answer)
    assert recommendation.model_dump(mode="json") == answer
    code, out, _ = ask("estimate", "--plan", "-", "--json", stdin=json.dumps(answer["best"]["plan"]))
    again = json.loads(out)["answer"]
    assert code == 0
    assert again["memory"]["allocated"] == answer["best"]["memory"]["allocated"]
    assert again["verdict"] == "fits"


def test_plans_shows_every_cell(ask):
    _, out, _ = ask("plans", *BASE, "--json")
    answer = json.loads(out)["answer"]
    assert len(answer["candidates"]) + len(answer["dropped"]) == 168
    assert len(answer["candidates"]) > 20
    starred = {(p["platform"], p["method"], p["quantization"]) for p in answer["front"]}
    _, out, _ = ask("plans", *BASE)
    rows = [line.split() for line in out.splitlines()]
    assert {tuple(row[:3]) for row in rows if row and row[-1] == "*"} == starred
    assert 1 < len(starred) < len(answer["candidates"])
    _, out, _ = ask("plans", *BASE, "--dropped")
    assert "Invalid fine-tuning method" in " ".join(out.split())


@pytest.mark.thorough
def test_the_largest_model_is_asked_for_whatever_the_profile_names(ask, tmp_path):
    profile = tmp_path / "profile.yaml"
    answers = []
    for text in ("gpu: rtx3060-12gb\n", "gpu: rtx3060-12gb\nmodel: llama-8b\n"):
        profile.write_text(text)
        code, out, _ = ask("fit", "--what", "model", "--profile", str(profile), "--json")
        assert code == 0
        answers.append(json.loads(out)["answer"]["value"])
    assert answers[0] == answers[1]


def test_jsonl_gives_an_error_object_in_place_of_a_bad_line(ask):
    plan = {"model": "llama-8b", "gpu": "rtx4090", "method": "qlora"}
    lines = [
        json.dumps(plan),
        "{broken",
        json.dumps({**plan, "micro_batch_size": -4}),
        json.dumps([1, 2]),
        json.dumps({**plan, "no_such_field": 1}),
        json.dumps({**plan, "seq_len": float("nan")}),
        json.dumps({**plan, "model": "no-such-model"}),
        '{"model": ' + "[" * 5000,
        "",
        json.dumps({**plan, "method": "full", "quantization": "bf16"}),
    ]
    code, out, _ = ask("estimate", "--plan", "-", "--jsonl", stdin="\n".join(lines))
    answers = [json.loads(line) for line in out.splitlines()]
    assert code == 0
    assert ["error" in a for a in answers] == [False, True, True, True, True, True, True, True, False]
    assert [a["answer"]["verdict"] for a in answers if "answer" in a] == ["fits", "does not fit"]
    assert "line 2" in answers[1]["error"]["message"]
    assert "micro_batch_size: -4" in answers[2]["error"]["message"]


def test_emit_writes_a_folder_and_refuses_to_overwrite_it(ask, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {i}", "completion": str(i)}) + "\n" for i in range(40)))
    out = tmp_path / "run"
    argv = ["emit", *BASE, "--platform", "hf", "--data", str(data), "-o", str(out)]
    code, said, err = ask(*argv)
    assert (code, err) == (0, "")
    assert f"ftadvise launch {out}" in said
    names = {path.name for path in out.rglob("*")}
    assert {"train.py", "config.yaml", "requirements.txt", "README.md", "plan.json", "train.jsonl"} <= names
    code, _, err = ask(*argv)
    assert code == 2
    assert "is not empty" in err
    assert ask(*argv, "--force")[0] == 0


def test_emit_writes_llamafactorys_project_with_rows_that_it_reads(ask, tmp_path):
    def turns(i):
        return [{"role": "user", "content": f"say {i}"}, {"role": "assistant", "content": str(i)}]

    def write(rows):
        data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    data, out = tmp_path / "data.jsonl", tmp_path / "run"
    argv = ["emit", *BASE, "--platform", "llamafactory", "--data", str(data), "-o", str(out)]
    write({"prompt": turns(i)[:1], "completion": turns(i)[1:]} for i in range(40))
    assert ask(*argv)[::2] == (0, "")
    assert {path.name for path in (out / "data").iterdir()} == {
        "dataset_info.json",
        "general.jsonl",
        "train.jsonl",
        "eval.jsonl",
    }
    rows = [json.loads(line) for line in (out / "data" / "train.jsonl").read_text().splitlines()]
    assert all(row in [{"messages": turns(i)} for i in range(40)] for row in rows)
    write({"messages": [turns(i)[0], *turns(i)]} for i in range(40))
    code, _, err = ask(*argv, "--force")
    assert code == 2
    assert "the turns are user, user, assistant" in err


def test_emit_writes_nothing_where_nothing_fits(ask, tmp_path):
    argv = ["emit", "--model", "llama-70b", "--vram", "8", "-o", str(tmp_path / "run")]
    code, out, _ = ask(*argv)
    assert code == 1
    assert "Nothing fits." in out
    code, out, _ = ask(*argv, "--json")
    assert (code, json.loads(out)["answer"]["verdict"]) == (1, "does not fit")
    assert not (tmp_path / "run").exists()


def test_emit_leaves_nothing_behind_when_the_data_are_broken(ask, tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": \n')
    code, _, err = ask("emit", *BASE, "--data", str(data), "-o", str(tmp_path / "run"))
    assert code == 2
    assert "data.jsonl:2" in err
    assert [path.name for path in tmp_path.iterdir()] == ["data.jsonl"]


class FakeLauncher:
    """Ends at once, as a run of three steps."""

    queue = None

    def __init__(self, status):
        self.status = status

    def run(self, folder, reporter, *, python, resume, restart):
        from advisor.launch.folder import RunState, now

        return RunState(status=self.status, started=now(), step=3)


@pytest.mark.parametrize(("status", "code"), [("finished", 0), ("out-of-memory", 1), ("failed", 1), ("stopped", 130)])
def test_launch_tells_how_it_ended_by_its_exit_code(ask, tmp_path, monkeypatch, status, code):
    monkeypatch.setattr("advisor.launch.launchers", lambda: {"local": FakeLauncher(status)})
    monkeypatch.setattr("advisor.feedback.record_run", lambda folder: "the measurement")
    monkeypatch.setattr("advisor.calibrate.describe_learning", lambda measurement: ())
    monkeypatch.setattr("advisor.feedback.compare", lambda measurement, forecast: (f"{measurement}, compared",))
    assert ask("emit", *BASE, "-o", str(tmp_path / "run"))[0] == 0
    found, out, _ = ask("launch", str(tmp_path / "run"))
    assert found == code
    assert "the measurement, compared" in out


def test_launch_refuses_what_is_no_run(ask, tmp_path):
    code, _, err = ask("launch", str(tmp_path))
    assert code == 2
    assert "no run folder" in err


@pytest.mark.parametrize("name", ["plan", "request", "estimate", "recommendation"])
def test_schema(ask, name):
    code, out, _ = ask("schema", name)
    assert code == 0
    assert json.loads(out)["type"] == "object"


def test_help_of_every_command_has_examples_or_a_sentence(ask):
    code, out, _ = ask("--help")
    assert code == 0
    assert "Exit codes" in out
    names = cli.list_commands(None)
    assert len(names) >= 8
    for name in names:
        assert name in out
        code, text, _ = ask(name, "--help")
        assert code == 0
        assert "Usage: ftadvise" in text
    assert "..." not in out.replace("[ARGS]...", "")


def test_registry_is_the_folder():
    from pathlib import Path

    files = {p.stem for p in Path(commands.__path__[0]).glob("*.py")} - {"__init__"}
    assert set(cli.list_commands(None)) == files


def test_an_error_in_ftadvise_itself_is_said_to_be_one(ask, monkeypatch):
    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("advisor.api.advise", broken)
    code, _, err = ask(*BASE)
    assert code == 2
    assert "ZeroDivisionError" in err
    assert "mistake in ftadvise" in err


def test_a_plain_answer_loads_nothing_heavy():
    """torch, transformers, numpy, yaml and anything that could reach the network stay out."""
    script = (
        "import sys\nfrom advisor.cli.main import run\n"
        "assert run(['--model', 'llama-8b', '--vram', '24']) == 0\n"
        "heavy = {'torch', 'transformers', 'numpy', 'huggingface_hub', 'requests', 'httpx', 'urllib.request', 'yaml',"
        " 'datasets', 'tokenizers', 'pyarrow', 'asyncio', 'pynvml'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr.strip() == "[]"


def test_a_broken_pipe_is_quiet():
    command = f"{sys.executable} -m advisor.cli gpus | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1

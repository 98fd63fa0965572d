"""`ftadvise simulate` and `estimate --basis simulated`, on a model that takes a few seconds."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from advisor.cli.main import cli

TINY = {
    "model_type": "llama", "vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512, "tie_word_embeddings": True,
}  # fmt: skip
PLAN = {"model": TINY, "gpu": "rtx4090", "method": "lora", "micro_batch_size": 2, "seq_len": 128}

pytestmark = pytest.mark.platform


def plan_file(folder: Path) -> str:
    path = folder / "plan.json"
    path.write_text(json.dumps(PLAN))
    return str(path)


def test_a_simulation_says_where_each_phase_peaks(tmp_path: Path) -> None:
    svg, snapshot = tmp_path / "t.svg", tmp_path / "s.pickle"
    words = ["simulate", "--plan", plan_file(tmp_path), "--json", "--svg", str(svg), "--snapshot", str(snapshot)]
    result = CliRunner().invoke(cli, words, standalone_mode=False)
    assert result.return_value == 0, result.output
    answer = json.loads(result.output)["answer"]
    assert {p["name"] for p in answer["phases"]} >= {"load", "loss", "layer_backward", "optimizer_step"}
    assert all(p["operation"] for p in answer["phases"])
    assert svg.read_text().lstrip().startswith("<svg")
    assert snapshot.stat().st_size > 0


def test_the_longest_batch_of_a_file_sets_the_peak(tmp_path: Path) -> None:
    def peaks(lines: str) -> tuple[int, int]:
        batches = tmp_path / "lengths.txt"
        batches.write_text(lines)
        words = ["simulate", "--plan", plan_file(tmp_path), "--batches", str(batches), "--json"]
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        assert result.return_value == 0, result.output
        answer = json.loads(result.output)["answer"]
        assert {m["step"] for m in answer["timeline"]} == set(range(len(lines.splitlines())))
        return answer["peak_allocated"], answer["peak_reserved"]

    own, short = peaks("128 7\n128 128\n"), peaks("[32, 7]\n16\n32 32\n")
    assert own == peaks("[128, 128]\n[128, 128]\n")
    assert short[0] < own[0]


def test_a_simulation_is_drawn_as_text_within_80_columns(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["simulate", "--plan", plan_file(tmp_path)], standalone_mode=False)
    picture = result.output.split("Timeline\n")[1].split("\n\n")[0].splitlines()
    assert all(len(line) <= 80 for line in picture)
    assert {"L", "F", "B", "O"} <= set(picture[11].strip())
    assert picture[12].count("|") == 1  # where the second of the two steps begins
    assert "#" in picture[0] + picture[1]
    assert "\x1b" not in result.output


def test_the_simulated_basis_agrees_with_the_analytic_one(tmp_path: Path) -> None:
    found = {}
    for basis in ("analytic", "simulated"):
        words = ["estimate", "--plan", plan_file(tmp_path), "--basis", basis, "--json"]
        result = CliRunner().invoke(cli, words, standalone_mode=False)
        assert result.return_value == 0, result.output
        found[basis] = json.loads(result.output)["answer"]["memory"]
        assert found[basis]["basis"] == basis
    sizes = [found[basis]["allocated"]["expected"] for basis in ("analytic", "simulated")]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_explain_shows_every_work_item(tmp_path: Path) -> None:
    words = ["estimate", "--plan", plan_file(tmp_path)]
    plain = json.loads(CliRunner().invoke(cli, [*words, "--json"], standalone_mode=False).output)
    page = CliRunner().invoke(cli, [*words, "--explain"], standalone_mode=False).output
    items = plain["answer"]["speed"]["items"]
    assert len(items) >= 5
    assert all(item["name"][:24] in page for item in items)

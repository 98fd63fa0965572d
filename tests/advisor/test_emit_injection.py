"""Hostile names and values through every emitter: each comes back as it was given, and nothing else changes."""

import json
from typing import Any, get_args

import pytest
import yaml
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from advisor.emit import ClusterId, Emission, Source, emit, emitters
from profiles.errors import AdviseError
from profiles.families import describe_model
from profiles.plan import Plan
from profiles.platform import load_platforms

LLAMA = {
    "model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 259,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
}  # fmt: skip
MODEL = describe_model(LLAMA, "tiny")
PLAIN = "plain"
EXAMPLES = 200  # of three values each
ATTACKS = [
    "'\"; import os; os.system('id') #",
    '"""\nimport os\n"""',
    "{{ 7*7 }} {% raw %} ${HOME} %(x)s",
    "$(touch /tmp/x) `id` && rm -rf / ; | id",
    "!!python/object/apply:os.system ['id']",
    "a\nb: c\n- d\n? e",
    "no", "null", "~", "2e-4", "0x10", "1_000", "2026-11-24", "<<", "=", ".inf",
    "*alias", "&anchor x", "---\n...", "%YAML 1.2", "| literal", "> folded", "@at", "[1, 2]", "{a: b}",
    "\u2028\u0085\ufeff\u202e", "数据\U0001f600", "# not a comment", "a #b", "C:\\x\\n", "  spaces  ", "\t",
    "\x07\x1b[31m",
    "--config_file=/etc/passwd", "../../etc/passwd", "org/model==1.0; extra", "-r evil.txt", "x" * 3000,
]  # fmt: skip
MARKS = "'\"\\\n\r:#{}[]&*!|>%@`$ "
hostile = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60),
    st.sampled_from(ATTACKS),
    st.builds("{}{}".format, st.sampled_from(ATTACKS), st.text(st.sampled_from(MARKS), max_size=8)),
)


def project(platform: str, cluster: ClusterId | None, name: str, value: str, option: str) -> Emission:
    """A project with the three values where a request, a config.json and a plan can put them."""
    plan = Plan(model=value, gpu="rtx4090", platform=platform, seq_len=512)
    if platform == "hf":
        plan = plan.replace(
            method="prompt", method_options={"prompt_tuning_init": "TEXT", "prompt_tuning_init_text": option}
        )
    return emit(plan, MODEL.replace(name=name), Source(model_ref=value, cluster=cluster, examples=1000))


def read(emission: Emission) -> dict[str, Any]:
    """Every file but the page, as its reader sees it: YAML and JSON parsed, scripts and versions as text."""
    loaders = {"yaml": yaml.safe_load, "json": json.loads}
    return {
        name: loaders.get(name.rpartition(".")[2], str)(text)
        for name, text in emission.files.items()
        if name != "README.md"
    }


def put_back(found: Any, given: dict[str, str]) -> Any:
    """The tree with each hostile value, wherever it is a whole value, replaced by the plain one."""
    if isinstance(found, dict):
        return {key: put_back(value, given) for key, value in found.items()}
    if isinstance(found, list):
        return [put_back(value, given) for value in found]
    return given.get(found, found) if isinstance(found, str) else found


def strings(found: Any) -> set[str]:
    """All whole values that are text."""
    if isinstance(found, dict):
        return {text for value in found.values() for text in strings(value)}
    if isinstance(found, list):
        return {text for value in found for text in strings(value)}
    return {found} if isinstance(found, str) else set()


def emitting() -> list[str]:
    return [name for name, platform in load_platforms().items() if platform.emitted_tasks]


def test_all_emitters_are_tried() -> None:
    assert set(emitting()) <= set(emitters())
    assert len(emitting()) >= 2


@pytest.mark.parametrize("platform", emitting())
@pytest.mark.thorough
def test_hostile_values_come_back_and_change_nothing_else(platform: str) -> None:
    names = [f"{PLAIN} {i}" for i in range(3)]
    plains = {cluster: project(platform, cluster, *names) for cluster in (None, *get_args(ClusterId))}
    words = {text for plain in plains.values() for text in strings(read(plain))}
    kept = 0

    @settings(max_examples=EXAMPLES, deadline=None)
    @given(st.lists(hostile, min_size=3, max_size=3, unique=True), st.sampled_from(sorted(plains, key=str)))
    def check(values: list[str], cluster: ClusterId | None) -> None:
        nonlocal kept
        assume(not words & set(values))  # 'none' as a name cannot be told from the value of another key
        try:
            odd, plain = project(platform, cluster, *values), plains[cluster]
        except AdviseError:
            return  # said, not written
        assert put_back(read(odd), dict(zip(values, names, strict=True))) == read(plain)
        assert odd.command == plain.command
        page, pattern = odd.files["README.md"].splitlines(), plain.files["README.md"].splitlines()
        assert len(page) == len(pattern)
        assert [line[:2] for line in page] == [line[:2] for line in pattern]
        kept += 1

    check()
    assert kept >= 0.9 * EXAMPLES

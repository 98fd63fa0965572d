"""Screens, on the stand-in estimators so that they change only when the rendering does.

`FTADVISE_UPDATE_GOLDEN=1 pytest tests/advisor/test_render.py` writes the golden texts anew.
"""

import os
from pathlib import Path

import pytest

from advisor.api import estimate
from advisor.decide import decide
from advisor.recommendation import EstimateAnswer
from advisor.render.estimate import render_estimate
from advisor.render.memory_bar import draw_memory
from advisor.render.page import Page
from advisor.render.recommendation import render_recommendation
from advisor.request import Request
from profiles.plan import Plan

pytestmark = pytest.mark.usefixtures("stand_ins")
GOLDEN = Path(__file__).parents[1] / "golden" / "screens"


def check(name, text):
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("FTADVISE_UPDATE_GOLDEN"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    assert text + "\n" == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [80, 120])
def test_an_answer(make_facts, width):
    facts = make_facts(gib=5, examples=600, mean_len=300)
    answer = decide(Request(model="small-llama", gpu="card", examples=600, mean_len=300), facts)
    check(f"advise-{width}", str(render_recommendation(answer, width)))


@pytest.mark.parametrize("width", [80, 120])
def test_an_answer_with_its_alternatives(make_facts, width):
    facts = make_facts(gib=9, examples=600, mean_len=300)
    request = Request(model="small-llama", gpu="card", examples=600, mean_len=300)
    check(f"compare-{width}", str(render_recommendation(decide(request, facts, compare=True), width)))


def test_nothing_fits(make_facts):
    check("advise-no-fit-80", str(render_recommendation(decide(Request(model="small-llama"), make_facts(gib=0.4)), 80)))


def test_an_estimate(make_facts):
    facts = make_facts(gib=5)
    plan = Plan(model="llama-8b", method="qlora", seq_len=1024)
    found = estimate(plan, hardware=facts.hardware, offline=True)
    answer = EstimateAnswer(verdict=found.memory.verdict, plan=plan, memory=found.memory, speed=found.speed)
    check("estimate-80", str(render_estimate(answer, 80)))


@pytest.mark.parametrize("width", [60, 80, 100, 120])
@pytest.mark.parametrize("gib", [0.5, 2, 5, 80])
def test_the_bar_is_as_wide_as_the_page(make_facts, width, gib):
    facts = make_facts(gib=gib)
    memory = estimate(Plan(model="llama-8b", method="qlora"), hardware=facts.hardware, offline=True).memory
    page = Page(width)
    draw_memory(page, memory)
    bar = str(page).splitlines()[0]
    assert len(bar) == width
    assert bar[0] + bar[-1] == "[]"
    budget_is_shown_free = "." in bar
    assert budget_is_shown_free == (memory.device.high < memory.budget * (1 - 1 / width))


def test_styles_only_repeat_what_the_words_say(make_facts):
    page = render_recommendation(decide(Request(model="small-llama"), make_facts()), 80)
    assert any("\x1b" in line for line in page.lines)
    assert "\x1b" not in str(page)
    assert "Fits: " in str(page)


def test_long_words_do_not_break_the_page():
    page = Page(60)
    page.field("Model", "x" * 200)
    page.bullets("Empty", [])
    page.field("Nothing", "")
    assert max(len(line) for line in str(page).splitlines()) <= 60

"""The planner against brute force on the real estimators, and the orders that it keeps whatever the numbers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import advisor.decide
from advisor.axes import Axes, axes_of, checkpointings, concessions, offloadings, shardings
from advisor.criteria import ORDER, order_of, rank, seconds_per_token
from advisor.decide import conceding, decide, is_sound, survey
from advisor.evaluate import evaluate_cell, figures_of
from advisor.plans import Cell, draft_plan, enumerate_cells, screen_cell
from advisor.recommendation import Candidate, DataFacts, Facts
from advisor.request import Request
from advisor.search import Effort, Search, Trial, every_point, fitting_indices, preference
from estimators.methods import get_method
from estimators.plan_figures import Body, PlanFigures, ReferenceFigures, Spread
from profiles.catalog import find_gpu, find_model_row
from profiles.families import describe_model
from profiles.gpu import Hardware

NAMES = ("smollm2-135m", "tinyllama-1.1b", "gpt2")
CARDS = ("t4", "rtx4090", "a100-80-sxm")
CELLS = [
    Cell("hf", "lora", "bf16"),
    Cell("hf", "lora", "int8"),
    Cell("hf", "qlora", "nf4-dq"),
    Cell("hf", "full", "fp32"),
    Cell("hf", "prefix", "bf16"),
    Cell("llamafactory", "full", "bf16"),
    Cell("unsloth", "lora", "bf16"),
]


def facts_of(
    name: str, card: str, *, gib: float, n_gpus: int = 1, mean_len: float | None = None, seq_len: int = 512
) -> Facts:
    row = find_model_row(name)
    gpu = find_gpu(card).replace(memory_gib=gib)
    return Facts(
        model=describe_model(row.config, row.id),
        hardware=Hardware(gpu=gpu, n_gpus=n_gpus),
        data=DataFacts(examples=None if mean_len is None else 5000, mean_len=mean_len, basis="as given"),
        task="sft",
        seq_len=seq_len,
    )


@st.composite
def facts(draw: st.DrawFn) -> Facts:
    return facts_of(
        draw(st.sampled_from(NAMES)),
        draw(st.sampled_from(CARDS)),
        gib=draw(st.floats(0.8, 16)),
        n_gpus=draw(st.sampled_from([1, 2, 4])),
        mean_len=draw(st.sampled_from([None, 60.0, 300.0])),
    )


@st.composite
def small_axes(draw: st.DrawFn, cell: Cell, known: Facts) -> Axes:
    """Any choice of values on every axis, in any order of preference."""

    def some(values: tuple[object, ...]) -> tuple[object, ...]:
        return tuple(draw(st.lists(st.sampled_from(values), min_size=1, max_size=2, unique=True)))

    n_gpus = known.hardware.n_gpus
    no_packing = get_method(cell.method).adds_keys or cell.platform == "unsloth"
    counts = tuple(n for n in (1, 2, 4) if n <= n_gpus)
    return Axes(
        offloads=some((False, True)),  # type: ignore[arg-type]
        seq_lens=some((512, 256)),  # type: ignore[arg-type]
        target_modules=(("all-linear",),),
        lora_ranks=some((4, 16, 64)),  # type: ignore[arg-type]
        optimizers=some(("adamw_torch_fused", "adamw_8bit")),  # type: ignore[arg-type]
        n_gpus=some(counts),  # type: ignore[arg-type]
        shardings=("none",) if n_gpus == 1 else some(shardings(cell, known)),  # type: ignore[arg-type]
        offloadings=offloadings(cell, known),
        packings=(False,) if no_packing else some((False, True)),  # type: ignore[arg-type]
        attentions=("auto",) if cell.platform == "unsloth" else some(("sdpa", "flash_attention_2", "eager")),  # type: ignore[arg-type]
        loss_kernels=some((None, "chunked")) if cell.platform == "llamafactory" else (None,),  # type: ignore[arg-type]
        checkpointings=checkpointings(cell, known),
    )  # fmt: skip


def requests() -> st.SearchStrategy[Request]:
    return st.builds(
        Request,
        model=st.just("m"),
        goal=st.sampled_from(sorted(ORDER)),
        global_batch_size=st.sampled_from([1, 6, 16]),
    )


@settings(max_examples=60, deadline=None)
@given(st.data(), facts(), st.sampled_from(CELLS), requests())
@pytest.mark.thorough
def test_the_search_is_brute_force(data: st.DataObject, known: Facts, cell: Cell, request: Request) -> None:
    """Every plan of the product through the estimators themselves, one by one: the same plan is first."""
    axes = data.draw(small_axes(cell, known))
    draft = draft_plan(cell, request, known)
    search = Search(cell, axes, request, known, figures_of(draft, known))
    found = next(search.levels(), None)
    slow = ReferenceFigures(draft, known.model, known.hardware)
    best: tuple[int, Trial] | None = None
    for level, point in every_point(search):
        pair = slow.pair(point.body, point.spread)
        if pair.peak(point.micro_batch_size, point.accumulation) > known.hardware.gpu.memory_bytes:
            continue
        seconds = pair.seconds_per_token(point.micro_batch_size, point.accumulation)
        assert seconds is not None
        cost = seconds * (point.spread.n_gpus if request.goal == "cheap" else 1)
        trial = Trial(cost, point)
        if best is None or (level, preference(trial)) < (best[0], preference(best[1])):
            best = level, trial
    assert (found is None) == (best is None)
    if found is not None and best is not None:
        assert found.trials[0].cost == pytest.approx(best[1].cost, rel=1e-9)
        mine, theirs = found.trials[0].point, best[1].point
        assert (mine.body.lora_rank, mine.body.seq_len, mine.spread) == (
            theirs.body.lora_rank,
            theirs.body.seq_len,
            theirs.spread,
        )


@pytest.mark.thorough
@settings(max_examples=80, deadline=None)
@given(st.data(), facts(), st.sampled_from(CELLS), requests())
def test_fast_figures_are_the_estimators(data: st.DataObject, known: Facts, cell: Cell, request: Request) -> None:
    axes = data.draw(small_axes(cell, known))
    draft = draft_plan(cell, request, known)
    fast = PlanFigures(draft, known.model, known.hardware)
    slow = ReferenceFigures(draft, known.model, known.hardware)
    search = Search(cell, axes, request, known, fast)
    points = [point for _, point in every_point(search)]
    for point in data.draw(st.lists(st.sampled_from(points), max_size=8)) if points else ():
        one, other = fast.pair(point.body, point.spread), slow.pair(point.body, point.spread)
        size = point.micro_batch_size, point.accumulation
        assert one.peak(*size) == pytest.approx(other.peak(*size), rel=1e-9)
        assert one.seconds_per_token(*size) == pytest.approx(other.seconds_per_token(*size), rel=1e-9)
        assert one.floor() <= one.peak(*size)


def test_what_stands_depends_on_accumulation_and_loss() -> None:
    """FSDP2 gathers by the loss and keeps whole gradients between micro-batches: asked in turn, none is another's."""
    known = facts_of("smollm2-135m", "t4", gib=16, n_gpus=2)
    for cell in (Cell("hf", "lora", "bf16"), Cell("llamafactory", "full", "bf16")):
        draft = draft_plan(cell, Request(model="m"), known)
        fast, slow = (kind(draft, known.model, known.hardware) for kind in (PlanFigures, ReferenceFigures))
        spread = Spread(n_gpus=2, optimizer="adamw_torch_fused", sharding="fsdp2", offload=True)
        for kernel in (None, "chunked") if cell.platform == "llamafactory" else (None,):
            body = Body(4, ("all-linear",), 512, False, "none", "sdpa", kernel)
            for size in ((3, 1), (1, 3), (1, 1)):
                expected = slow.pair(body, spread).peak(*size)
                assert fast.pair(body, spread).peak(*size) == pytest.approx(expected, rel=1e-9), (cell, kernel, size)


@given(st.lists(st.booleans(), min_size=1, max_size=12), st.booleans())
def test_bisection_over_micro_batches_tries_what_it_must(fit: list[bool], last_alone: bool) -> None:
    """All that fit come first among those that accumulate; the one that does not accumulate is tried by itself."""
    accumulates = [True] * len(fit)
    accumulates[-1] = not last_alone
    several = sorted(fit[:-1] if last_alone else fit, reverse=True)
    truth = [*several, fit[-1]] if last_alone else several
    assert fitting_indices(lambda i: truth[i], accumulates) == [i for i, fits in enumerate(truth) if fits]


@settings(max_examples=40, deadline=None)
@given(facts(), st.sampled_from(CELLS), st.floats(1.01, 3), requests())
def test_more_memory_never_gives_a_slower_plan_of_a_cell(
    known: Facts, cell: Cell, more: float, request: Request
) -> None:
    """At the same level; a level that gives up less may be slower, and is preferred all the same."""
    gpu = known.hardware.gpu
    roomier = known.model_copy(
        update={"hardware": known.hardware.replace(gpu=gpu.replace(memory_gib=gpu.memory_gib * more))}
    )
    axes = axes_of(cell, request, known)
    one, other = (
        next(Search(cell, axes, request, f, figures_of(draft_plan(cell, request, f), f)).levels(), None)
        for f in (known, roomier)
    )
    if one is None:
        return
    assert other is not None
    spread, wider = one.trials[0].point.spread, other.trials[0].point.spread
    if (spread.sharding, spread.optimizer) == (wider.sharding, wider.optimizer):
        assert other.trials[0].cost <= one.trials[0].cost * (1 + 1e-9)
    else:
        assert axes.optimizers.index(wider.optimizer) <= axes.optimizers.index(spread.optimizer)


@settings(max_examples=12, deadline=None)
@given(facts(), st.sampled_from(sorted(ORDER)), st.floats(0.02, 3), st.floats(1, 10))
@pytest.mark.thorough
def test_looser_limits_never_give_a_worse_answer(known: Facts, goal: str, hours: float, looser: float) -> None:
    """Whatever wins under a limit is still there under a looser one, so the winner there is first of more."""
    platform = ("hf",)
    tight = Request(model="m", goal=goal, max_hours=hours, platforms=platform, methods=("lora", "full"))
    loose = tight.replace(max_hours=hours * looser)
    one = decide(tight, known).best
    other = decide(loose, known).best
    if one is None:
        return
    assert other is not None
    order = order_of(tight)
    assert rank([one, other], order, known)[0].key == other.key


@settings(max_examples=8, deadline=None)
@given(facts(), st.sampled_from(sorted(ORDER)), st.randoms(use_true_random=False))
@pytest.mark.thorough
def test_deterministic_and_independent_of_the_order_of_cells(known: Facts, goal: str, shuffle: object) -> None:
    request = Request(model="m", goal=goal, methods=("lora", "qlora", "full"))
    first = decide(request, known).model_dump_json()
    assert decide(request, known).model_dump_json() == first
    cells = list(enumerate_cells())
    shuffle.shuffle(cells)  # type: ignore[attr-defined]
    original = advisor.decide.enumerate_cells
    advisor.decide.enumerate_cells = lambda: iter(cells)
    try:
        again = decide(request, known)
    finally:
        advisor.decide.enumerate_cells = original
    assert again.best == decide(request, known).best
    assert {(d.platform, d.method, d.quantization, d.rule) for d in again.dropped} == {
        (d.platform, d.method, d.quantization, d.rule) for d in decide(request, known).dropped
    }


@pytest.mark.parametrize("goal", sorted(ORDER))
@pytest.mark.parametrize("gib", [0.9, 2.0, 5.0])
@pytest.mark.thorough
def test_the_winner_is_the_best_of_all_cells(goal: str, gib: float) -> None:
    """Brute force over the cells too: each evaluated, then ranked; a concession only where nothing sound is left."""
    known = facts_of("tinyllama-1.1b", "rtx4090", gib=gib, n_gpus=2)
    request = Request(model="m", goal=goal)
    best: Candidate | None = None
    for concession in concessions(request, known):
        cells = [cell for cell in enumerate_cells() if screen_cell(cell, request, known) is None]
        answers = [evaluate_cell(c, request, known, axes_of(c, request, known, concession)) for c in cells]
        found = [answer for answer in answers if isinstance(answer, Candidate)]
        ranked = rank(found, order_of(conceding(request, concession)), known)
        if ranked and (best is None or is_sound(ranked[0])):
            best = ranked[0]
        if best is not None and is_sound(best):
            break
    answer = decide(request, known)
    assert answer.best == best
    if best is not None:
        assert survey(request, known)[0][0] == best


@pytest.mark.thorough
def test_offload_and_smaller_adapters_come_only_where_nothing_sound_fits() -> None:
    """Down from ample memory: nothing conceded, then a smaller adapter or offload, then nothing at all."""
    seen = []
    for gib in (80.0, 48.0, 32.0, 24.0, 16.0, 10.0, 6.0, 2.0):
        request = Request(model="m", platforms=("hf",))
        found = decide(request, facts_of("llama-70b", "rtx4090", gib=gib, n_gpus=2))
        seen.append(found.conceded if found.best is not None else "nothing")
    assert seen[0] == "none"
    order = ["none", "smaller adapter", "offload", "nothing"]
    assert [order.index(s) for s in seen] == sorted(order.index(s) for s in seen)
    assert "offload" in seen


def test_effort_is_a_small_part_of_the_space() -> None:
    """What the bounds spare, on a wide space."""
    known = facts_of("tinyllama-1.1b", "rtx4090", gib=6.0, n_gpus=4)
    cell, request = Cell("hf", "lora", "bf16"), Request(model="m", global_batch_size=64)
    axes = axes_of(cell, request, known)._replace(lora_ranks=(16, 8, 4), optimizers=("adamw_torch_fused", "adamw_8bit"))
    effort = Effort()
    search = Search(cell, axes, request, known, figures_of(draft_plan(cell, request, known), known), effort)
    for _ in search.levels():
        pass
    assert effort.plans == sum(1 for _ in every_point(search))
    assert effort.peaks < effort.plans
    assert effort.times < effort.plans


def test_speed_of_the_best_of_a_cell_rises_with_memory() -> None:
    previous = float("inf")
    for gib in (2.5, 3, 4, 6, 9, 14):
        known = facts_of("tinyllama-1.1b", "rtx4090", gib=gib, seq_len=1024)
        found = evaluate_cell(Cell("hf", "lora", "bf16"), Request(model="m"), known)
        if isinstance(found, Candidate):
            seconds = seconds_per_token(found)
            assert seconds is not None
            assert seconds <= previous * (1 + 1e-9)
            previous = seconds
    assert previous < float("inf")

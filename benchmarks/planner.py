"""How fast the planner walks its space: `python -m benchmarks.planner`, one core, CPU seconds of the process.

Spaces of growing size (more ranks, lengths, optimizers, shardings and card counts for the cells of a wide request) are
gone through twice. By the search, which finds the best plan of every cell exactly, as property tests show against brute
force, and which bounds spare most of the work: this is what an answer costs. And in full: memory and speed of every
plan. The goal is 100,000 plans in 2 s, and time that grows no faster than the plans.
"""

import time
from collections.abc import Iterator

import click

from advisor.assess import assess
from advisor.axes import Axes, axes_of
from advisor.evaluate import figures_of
from advisor.plans import Cell, draft_plan, enumerate_cells, screen_cell
from advisor.recommendation import Facts
from advisor.request import Request
from advisor.search import Effort, Search, every_point
from estimators.methods import get_method

GOAL_PLANS, GOAL_SECONDS = 100_000, 2.0
RANKS = (16, 8, 32, 64)
OPTIMIZERS = ("adamw_torch_fused", "adamw_8bit", "adamw_torch", "paged_adamw_8bit", "lion_8bit", "adafactor")


def widened(cell: Cell, request: Request, facts: Facts, lengths: int) -> Axes:
    """The cell's axes with many values on each."""
    base = axes_of(cell, request, facts, "offload")
    ranked = get_method(cell.method).uses_rank
    return base._replace(
        seq_lens=tuple(256 * (i + 1) for i in reversed(range(lengths))),
        lora_ranks=RANKS if ranked else RANKS[:1],
        target_modules=base.target_modules if ranked else base.target_modules[:1],
        optimizers=OPTIMIZERS,
        n_gpus=(8, 4, 2, 1),
    )


def searches(lengths: int, model: str, gpu: str) -> Iterator[Search]:
    """One for every cell that exists, with nothing worked out yet."""
    request = Request(model=model, gpu=gpu, global_batch_size=64, offline=True)
    facts = assess(request)
    for cell in enumerate_cells():
        if screen_cell(cell, request, facts) is None:
            figures = figures_of(draft_plan(cell, request, facts), facts)
            yield Search(cell, widened(cell, request, facts, lengths), request, facts, figures, Effort())


def evaluate_all(lengths: int, model: str, gpu: str) -> tuple[int, float]:
    """Plans and seconds, each plan's memory and speed worked out."""
    plans, start = 0, time.process_time()
    for search in searches(lengths, model, gpu):
        pair, last = None, None
        for _, point in every_point(search):
            if last != (point.body, point.spread):
                last = point.body, point.spread
                pair = search.figures.pair(*last)
            assert pair is not None
            pair.peak(point.micro_batch_size, point.accumulation)
            pair.seconds_per_token(point.micro_batch_size, point.accumulation)
            plans += 1
    return plans, time.process_time() - start


def settle(lengths: int, model: str, gpu: str) -> tuple[Effort, float]:
    """The best plan of every cell: plans of the whole space, and figures that had to be worked out."""
    total, start = Effort(), time.process_time()
    for search in searches(lengths, model, gpu):
        next(search.levels(), None)
        total.peaks += search.effort.peaks
        total.times += search.effort.times
    seconds = time.process_time() - start
    total.plans = sum(1 for search in searches(lengths, model, gpu) for _ in every_point(search))
    return total, seconds


@click.command()
@click.option("--lengths", "counts", multiple=True, type=int, default=(1, 2, 4), help="Sequence lengths in the space.")
@click.option("--model", default="llama-8b", show_default=True)
@click.option("--gpu", default="8x a100-80g", show_default=True, help="Small cards make the search give up much.")
@click.option("--all/--search-only", "everything", default=True)
def main(counts: tuple[int, ...], model: str, gpu: str, everything: bool) -> None:
    for lengths in counts:
        effort, seconds = settle(lengths, model, gpu)
        rate = seconds / effort.plans
        click.echo(
            f"search: {effort.plans:8,d} plans searched in {seconds:6.2f} s ({1e6 * rate:5.1f} us a plan, "
            f"{GOAL_PLANS * rate:.2f} s for {GOAL_PLANS:,d}, goal {GOAL_SECONDS:.0f}); worked out: "
            f"{effort.peaks:,d} memory, {effort.times:,d} speed"
        )
        if everything:
            plans, seconds = evaluate_all(lengths, model, gpu)
            click.echo(
                f"all:    {plans:8,d} plans evaluated in {seconds:6.2f} s ({1e6 * seconds / plans:5.1f} us a plan, "
                f"{GOAL_PLANS * seconds / plans:.2f} s for {GOAL_PLANS:,d})"
            )


if __name__ == "__main__":
    main()

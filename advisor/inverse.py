"""Inverse questions: the longest sequence, the largest micro-batch or model, the cheapest card, the fewest cards.

A value fits when `decide` finds a plan for it, within the limits on hours and money if there are any, by a method with
good evidence on quality (or by those that were asked for): nobody wants the card on which prompt tuning fits. Where
memory alone decides the order is monotone and bisected; where a limit, a price or a catalogue's order breaks that, all
are tried. What the answer says of the next value was tried as well.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, NamedTuple

from advisor.assess import SEQ_LEN_STEP, assess, find_price
from advisor.axes import accumulation, micro_batches, sequences_a_card
from advisor.criteria import QUALITY_FLOOR
from advisor.decide import decide
from advisor.explain import next_commands
from advisor.facts import fingerprint, resolve_model
from advisor.hardware import resolve_hardware
from advisor.recommendation import Answer, Candidate, Facts
from advisor.request import Request
from advisor.request_flags import flag_of
from advisor.stored import stored_calibration
from estimators.methods import framework_methods, get_method
from profiles.catalog import ModelRow, load_gpus, load_model_rows
from profiles.errors import AdviseError, InvalidInputError
from profiles.gpu import Hardware
from profiles.plan import FOUR_BIT, QUANTIZED
from profiles.platform import load_platforms
from profiles.quality import find_quality

What = Literal["seq_len", "batch", "model", "gpu", "n_gpus"]
ANY_MODEL = "any"  # stands for the model where the model is what is asked for
MOST_CARDS = 64
MOST_TRIES = 128  # micro-batches against a limit, one by one
MOST_SEQUENCES = 1_048_576  # a Plan's bound on its micro-batch
LEAST_BYTES = {"4-bit": 0.5, "8-bit": 1.0, "16-bit": 2.0}  # a parameter, whatever scales and unquantised parts add
ASKED = {"seq_len": ("seq_len",), "batch": ("micro_batch_size",), "gpu": ("gpu", "vram_gib"), "n_gpus": ("n_gpus",)}


class Option(Answer):
    """A card that fits. `usd`: of the whole run where it is known, else of an hour; None without a price."""

    gpu: str
    memory_gib: float
    usd: float | None
    candidate: Candidate


class FitAnswer(Answer):
    """The answer to an inverse question. `value` is None where nothing fits.

    next_value, why_not: the next value, which does not fit (or does not exist), and the reason. options: for `gpu`,
    all cards that fit, the cheapest first; `smallest` is the one with the least memory.
    """

    what: What
    value: int | str | None
    best: Candidate | None
    next_value: int | str | None
    why_not: str
    options: tuple[Option, ...] = ()
    smallest: str | None = None
    next_commands: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


class Attempt(NamedTuple):
    """What `decide` said of one value."""

    candidate: Candidate | None
    why_not: str


def fit(what: What, request: Request) -> FitAnswer:
    """Answer an inverse question; the rest of the request holds for every value that is tried.

    Raises:
        AdviseError: as `assess`; and InvalidInputError where the request itself sets what is asked for.
    """
    for field in ASKED.get(what, ()):
        if getattr(request, field) is not None:
            raise InvalidInputError(flag_of(field), f"sets what --what {what} asks for", f"Leave {flag_of(field)} out.")
    if what == "model" and request.model != ANY_MODEL:
        raise InvalidInputError("--model", "sets what --what model asks for", "Leave --model out.")
    return _QUESTIONS[what](request)


def longest_sequence(request: Request) -> FitAnswer:
    """Over the multiples of 64 tokens up to the model's positions. Bisected: memory and time rise with the length."""
    facts = assess(request.replace(mean_len=None))
    limit = facts.model.max_position_embeddings
    lengths = sorted({*range(SEQ_LEN_STEP, limit + 1, SEQ_LEN_STEP), limit})
    tries = _Tries(lambda index: _attempt(request, _at_length(request, facts, lengths[index])))
    index = last_that(tries.fits, 0, len(lengths) - 1)
    value = None if index is None else lengths[index]
    following = lengths[0] if index is None else lengths[index + 1] if index + 1 < len(lengths) else None
    why = tries[0 if index is None else index + 1].why_not if following is not None else ""
    why = why or f"{facts.model.name} has {limit} positions"
    best = None if index is None else tries[index].candidate
    return _answer("seq_len", request, facts, value, best, following, why, seq_len=value)


def largest_batch(request: Request) -> FitAnswer:
    """Over all micro-batches. Memory rises with the micro-batch, but falls where nothing is accumulated any more:
    each of the two ranges is bisected. Limits are tried from the largest that fits memory downwards, as far as that
    stays quick; the answer says where it did not go on."""
    facts = assess(request)
    unlimited = _without_limits(request)
    share = sequences_a_card(request, facts)
    single = next(n for n in range(1, MOST_SEQUENCES) if accumulation(n, share) == 1)
    memory = _Tries(lambda n: _attempt(unlimited.replace(micro_batch_size=n), facts))
    value = _last_growing(memory.fits, single, MOST_SEQUENCES)
    if value is None and single > 1:
        value = last_that(memory.fits, 1, single - 1)
    if value is None:
        return _answer("batch", request, facts, None, None, 1, memory[1].why_not)
    tries = memory if unlimited == request else _Tries(lambda n: _attempt(request.replace(micro_batch_size=n), facts))
    lowest = max(value - MOST_TRIES, 0)
    found = next((n for n in range(value, lowest, -1) if tries.fits(n)), None)
    if found is None and lowest > 0:
        usual = [n for n in reversed(micro_batches(request, facts, share)) if n <= lowest]
        said = f"against the limit the {MOST_TRIES} largest micro-batches that fit were tried, then {usual} and upwards"
        facts = facts.model_copy(update={"assumptions": (*facts.assumptions, said)})
        usable = next((n for n in usual if tries.fits(n)), None)
        found = None if usable is None else _last_growing(tries.fits, usable, lowest)
    if found is None:
        return _answer("batch", request, facts, None, None, value, tries[value].why_not)
    following = found + 1 if found < MOST_SEQUENCES else None
    why = "" if following is None else (memory[following].why_not or tries[following].why_not)
    return _answer("batch", request, facts, found, tries[found].candidate, following, why, micro_batch_size=found)


def largest_model(request: Request) -> FitAnswer:
    """Over the catalogue, from the most parameters downwards: shapes differ, so nothing is bisected."""
    if request.data is not None:
        raise InvalidInputError(
            "--data", "is measured with one model's tokenizer", "Give --examples and --mean-len instead."
        )
    rows = [row for row in _models_by_size() if _suits(row, request)]
    first = rows[-1]
    hardware = assess(request.replace(model=first.id, seq_len=None, mean_len=None)).hardware
    least = _least_bytes(request)
    above: ModelRow | None = None
    for row in rows:
        if row.parameters * least <= hardware.n_gpus * hardware.gpu.memory_bytes:
            named = request.replace(model=row.id)
            attempt, facts = _attempt_anew(named)
            if attempt.candidate is not None and facts is not None:
                why = "the catalogue has no larger model" if above is None else _why_not(above, request)
                above_id = None if above is None else above.id
                return _answer("model", named, facts, row.id, attempt.candidate, above_id, why)
        above = row
    facts = assess(request.replace(model=first.id))
    return _answer("model", request, facts, None, None, first.id, _why_not(first, request))


def cheapest_card(request: Request) -> FitAnswer:
    """Over all cards of the catalogue: the cheapest by the run's cost (by the hour where that is not known)."""
    count = request.n_gpus or 1
    cards = sorted(load_gpus().values(), key=lambda gpu: (gpu.memory_gib, gpu.id))
    facts = assess(request.replace(gpu=cards[0].id, n_gpus=count))
    options: list[Option] = []
    refused: list[tuple[str, float, str]] = []
    for card in cards:
        found = _attempt(request, _with_hardware(request, facts, resolve_hardware(card.id, None, count)))
        if found.candidate is None:
            refused.append((card.id, card.memory_gib, found.why_not))
        else:
            usd = _usd(request, facts, found.candidate)
            options.append(Option(gpu=card.id, memory_gib=card.memory_gib, usd=usd, candidate=found.candidate))
    if not options:
        name, _, why = refused[-1]
        return _answer("gpu", request, facts, None, None, name, why)
    smallest = options[0]
    below = [r for r in refused if r[1] <= smallest.memory_gib]
    options.sort(key=lambda option: (option.usd is None, option.usd or 0.0, option.memory_gib, option.gpu))
    best = options[0]
    facts = _with_hardware(request, facts, resolve_hardware(best.gpu, None, count))
    below_id, why = (below[-1][0], below[-1][2]) if below else (None, "no card of the catalogue is smaller")
    answer = _answer("gpu", request, facts, best.gpu, best.candidate, below_id, why, gpu=best.gpu)
    return answer.model_copy(update={"options": tuple(options), "smallest": smallest.gpu})


def fewest_cards(request: Request) -> FitAnswer:
    """Over 1 to 64 cards. Sharding makes memory fall with their number, which is bisected; limits are tried upwards."""
    facts = assess(request)
    if facts.hardware.origin == "cpu":
        raise InvalidInputError("--gpu", "the number of cards needs a card", "Name one: --gpu rtx4090, or --vram 24.")
    if facts.hardware.n_gpus > 1 and request.gpu is not None:
        raise InvalidInputError("--gpu", f"{request.gpu!r} has a count, which --what n_gpus asks for", "Name one card.")

    def counted(n: int) -> Facts:
        return _with_hardware(request, facts, facts.hardware.replace(n_gpus=n))

    unlimited = _without_limits(request)
    memory = _Tries(lambda n: _attempt(unlimited, counted(n)))
    if memory.fits(1):
        least: int | None = 1
    else:
        fails = last_that(lambda n: not memory.fits(n), 1, MOST_CARDS)
        least = None if fails == MOST_CARDS or fails is None else fails + 1
    if least is None:
        return _answer("n_gpus", request, facts, None, None, MOST_CARDS, memory[MOST_CARDS].why_not)
    tries = memory if unlimited == request else _Tries(lambda n: _attempt(request, counted(n)))
    value = next((n for n in range(least, MOST_CARDS + 1) if tries.fits(n)), None)
    if value is None:
        return _answer("n_gpus", request, facts, None, None, least, tries[least].why_not)
    following = value - 1 or None
    why = "one card is the least" if following is None else (memory[following].why_not or tries[following].why_not)
    return _answer("n_gpus", request, counted(value), value, tries[value].candidate, following, why, n_gpus=value)


_QUESTIONS: dict[str, Callable[[Request], FitAnswer]] = {
    "seq_len": longest_sequence,
    "batch": largest_batch,
    "model": largest_model,
    "gpu": cheapest_card,
    "n_gpus": fewest_cards,
}


def last_that(holds: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest of low..high that holds, where all that hold come first; None if none does."""
    if low > high or not holds(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _last_growing(holds: Callable[[int], bool], low: int, most: int) -> int | None:
    """As `last_that` where the end is far: steps that double find it first."""
    if not holds(low):
        return None
    step = 1
    while low + step <= most and holds(low + step):
        low, step = low + step, 2 * step
    return last_that(holds, low, min(low + step - 1, most))


class _Tries(dict[int, Attempt]):
    """Attempts by value, each made once."""

    def __init__(self, attempt: Callable[[int], Attempt]) -> None:
        super().__init__()
        self._attempt = attempt

    def __missing__(self, value: int) -> Attempt:
        self[value] = found = self._attempt(value)
        return found

    def fits(self, value: int) -> bool:
        return self[value].candidate is not None


def _attempt(request: Request, facts: Facts) -> Attempt:
    try:
        answer = decide(request.replace(methods=request.methods or sound_methods(facts)), facts, concede=False)
    except AdviseError as error:
        return Attempt(None, error.message)
    if answer.best is not None:
        return Attempt(answer.best, "")
    nearest = answer.nearest[0]
    name = f"{get_method(nearest.method).title} ({nearest.quantization}, {load_platforms()[nearest.platform].name})"
    return Attempt(None, f"{name} {nearest.reason}")


def _attempt_anew(request: Request) -> tuple[Attempt, Facts | None]:
    """With facts of its own; a request that the model cannot meet (a length beyond its positions) does not fit."""
    try:
        facts = assess(request)
    except AdviseError as error:
        return Attempt(None, error.message), None
    return _attempt(request, facts), facts


def sound_methods(facts: Facts) -> tuple[str, ...]:
    """Methods with good evidence on quality for this kind of model and task."""
    quality = {m: find_quality(m, "bf16", kind=facts.model.kind, task=facts.task) for m in framework_methods()}
    return tuple(method for method, found in quality.items() if found.method.tier <= QUALITY_FLOOR)


def _why_not(row: ModelRow, request: Request) -> str:
    return _attempt_anew(request.replace(model=row.id))[0].why_not


def _models_by_size() -> Sequence[ModelRow]:
    return sorted(load_model_rows().values(), key=lambda row: (-row.parameters, row.id))


def _suits(row: ModelRow, request: Request) -> bool:
    """Encoders classify, all others are asked for everything else."""
    encoder = resolve_model(row.id, offline=True).kind == "encoder"
    return not encoder or request.task == "classification"


def _least_bytes(request: Request) -> float:
    """Bytes a parameter below which no allowed storage of the base goes."""
    if not request.quantizations or FOUR_BIT & set(request.quantizations):
        return LEAST_BYTES["4-bit"]
    return LEAST_BYTES["8-bit" if QUANTIZED & set(request.quantizations) else "16-bit"]


def _without_limits(request: Request) -> Request:
    return request.replace(max_hours=None, max_usd=None)


def _at_length(request: Request, facts: Facts, seq_len: int) -> Facts:
    """The facts with sequences of another length: what examples are cut to changes with it."""
    data = facts.data
    if facts.lengths is not None:
        cut = facts.lengths.truncated(seq_len)
        changes = {"mean_len": facts.lengths.mean_len(seq_len), "tokens_lost": cut.tokens_lost}
    elif request.mean_len is not None:
        changes = {"mean_len": min(request.mean_len, seq_len)}
    else:
        changes = {} if data.mean_len is None else {"mean_len": float(seq_len)}
    return facts.model_copy(update={"seq_len": seq_len, "data": data.model_copy(update=changes)})


def _with_hardware(request: Request, facts: Facts, hardware: Hardware) -> Facts:
    """The facts with another card or count: its price, its calibration and its fingerprint change with it."""
    return facts.model_copy(
        update={
            "hardware": hardware,
            "price": find_price(request, hardware),
            "calibration": stored_calibration(hardware)[0],
            "fingerprints": {**facts.fingerprints, "hardware": fingerprint(hardware)},
        }
    )


def _usd(request: Request, facts: Facts, candidate: Candidate) -> float | None:
    """Of the run where its length is known, else of an hour on all cards."""
    if facts.data.examples is not None:
        return None if candidate.run is None or candidate.run.usd is None else candidate.run.usd.expected
    if request.usd_per_hour is not None:
        return request.usd_per_hour * candidate.plan.n_gpus
    price = load_gpus()[str(candidate.plan.gpu)].price_usd_per_hour
    return None if price is None else (price.low * price.high) ** 0.5 * candidate.plan.n_gpus


def _answer(
    what: What,
    request: Request,
    facts: Facts,
    value: int | str | None,
    best: Candidate | None,
    next_value: int | str | None,
    why_not: str,
    **chosen: object,
) -> FitAnswer:
    """`chosen`: the fields of the request that the answer sets."""
    commands = () if best is None else next_commands(request.replace(**chosen), best, facts)
    return FitAnswer.model_construct(
        what=what,
        value=value,
        best=best,
        next_value=next_value,
        why_not=why_not,
        next_commands=commands,
        assumptions=tuple(dict.fromkeys(_assumptions(request, facts, best))),
    )


def _assumptions(request: Request, facts: Facts, best: Candidate | None) -> Iterator[str]:
    if not request.methods:
        yield f"by methods with good evidence on quality: {', '.join(sound_methods(facts))} (--method takes others)"
    yield from facts.hardware.assumptions
    yield from (a for a in facts.assumptions if not a.startswith("sequences of"))
    if best is not None:
        yield from best.memory.assumptions

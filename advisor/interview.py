"""Which questions still change the answer: a question is asked only if some answer to it gives another winner.

Exact over the whole product of what is not yet answered: with n open questions every combination of their answers is
decided (cells are evaluated once and shared), and a question splits the winners if two combinations that differ in it
alone have different ones.
"""

from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any, NamedTuple

from advisor.assess import assess
from advisor.decide import Judge, find_winner
from advisor.recommendation import Candidate, Facts
from advisor.request import Request

Answers = Mapping[str, Any]


class Question(NamedTuple):
    """A field of the request, what is asked, and the answers with what they mean; the first is the default."""

    field: str
    text: str
    options: tuple[tuple[Any, str], ...]


QUESTIONS = (
    Question(
        "task",
        "What is to be learned?",
        (("sft", "to answer like the examples"), ("pretrain", "to know a body of text")),
    ),
    Question(
        "goal",
        "What comes first?",
        (
            ("balanced", "sound quality with little effort"),
            ("best", "the best quality"),
            ("fast", "the shortest time"),
            ("cheap", "the lowest cost"),
        ),
    ),
    Question("skill", "Does the team write code?", (("code", "yes"), ("low-code", "no: settings or a web page only"))),
    Question(
        "deployment",
        "What has to come out?",
        (
            ("adapter", "an adapter beside the model, or the model itself"),
            ("merged", "one set of weights (merged, GGUF, vLLM)"),
        ),
    ),
)


class Interview:
    """The choices that are open for one model, machine and data set."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._judges: dict[str, Judge] = {}
        self._winners: dict[tuple[Any, ...], object] = {}
        facts = assess(request)
        self._keep(facts)
        encoder = facts.model.kind == "encoder"
        self.open = [q for q in QUESTIONS if not (encoder and q.field == "task") and not _is_set(request, q.field)]

    def next_question(self, answered: Answers) -> Question | None:
        """The first open question that splits the winners, given what was answered; None where the answer stands."""
        left = [q for q in self.open if q.field not in answered]
        return next((q for q in left if self._splits(q, left, answered)), None)

    def _splits(self, question: Question, left: list[Question], answered: Answers) -> bool:
        others = [q for q in left if q is not question]
        for chosen in product(*((value for value, _ in q.options) for q in others)):
            rest = {**answered, **dict(zip((q.field for q in others), chosen, strict=True))}
            winners = {self._winner({**rest, question.field: value}) for value, _ in question.options}
            if len(winners) > 1:
                return True
        return False

    def _winner(self, answers: Answers) -> object:
        key = tuple(answers.get(q.field) for q in self.open)
        if key not in self._winners:
            request = self.request.replace(**answers)
            self._winners[key] = _identity(find_winner(request, self._judge(request)))
        return self._winners[key]

    def _judge(self, request: Request) -> Judge:
        """One for each task: the facts differ in nothing else."""
        task = str(request.task)
        if task not in self._judges:
            self._keep(assess(request))
        return self._judges[task]

    def _keep(self, facts: Facts) -> None:
        judge = Judge(facts)
        self._judges[facts.task] = judge
        self._judges.setdefault("None", judge)


def _is_set(request: Request, field: str) -> bool:
    return bool(getattr(request, field) != Request.model_fields[field].default)


def _identity(winner: Candidate | None) -> object:
    """What a person would call another answer: another combination, or another way to run it."""
    if winner is None:
        return None
    plan = winner.plan
    return (*winner.key, plan.gradient_checkpointing, plan.packing, plan.n_gpus, plan.sharding, plan.micro_batch_size)


def unasked(interview: Interview, answered: Answers) -> Iterator[str]:
    """The open questions whose answer would change nothing."""
    yield from (q.field for q in interview.open if q.field not in answered)

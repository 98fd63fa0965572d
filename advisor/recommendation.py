"""The records of an answer: facts, candidates, what was dropped and why, risks, and the recommendation itself."""

from functools import cached_property
from typing import Any, Literal

from pydantic import ConfigDict, Field, SerializeAsAny

from advisor.request import Request
from estimators.answer import MemoryEstimate, SpeedEstimate
from estimators.interval import Interval
from profiles.dataset import LengthDistribution
from profiles.gpu import Hardware, PriceRange
from profiles.model import ModelSpec
from profiles.plan import Plan, Quantization, Task
from profiles.quality import Quality
from profiles.record import Record

Verdict = Literal["fits", "tight", "does not fit"]


class Answer(Record):
    """What our own code makes of validated parts: built with `model_construct`, checked only when it is read back.

    So a plain answer pays neither for validating these records nor for building their schemas.
    """

    model_config = ConfigDict(defer_build=True)


class DataFacts(Answer):
    """The data in numbers. Lengths in tokens; `basis` says whether they were measured, and with what.

    mean_len: of an example cut to the chosen length. tokens_lost: share (0 to 1) of all tokens that the cut loses.
    """

    examples: int | None = None
    mean_len: float | None = None
    max_len: int | None = None
    tokens_lost: float = 0.0
    duplicates: int = 0
    basis: str


class Facts(Answer):
    """Everything that is looked up before anything is decided; from here on all is pure."""

    model: ModelSpec
    hardware: Hardware
    data: DataFacts
    lengths: LengthDistribution | None = None
    task: Task
    seq_len: int
    price: PriceRange | None = None
    calibration: SerializeAsAny[Record] | None = None  # a Calibration, whose module only those who store one load
    fingerprints: dict[str, str] = Field(default_factory=dict)
    assumptions: tuple[str, ...] = ()


class Dropped(Answer):
    """A combination that is out, by which rule, and why in words and numbers.

    needs_gib: where memory was the reason, the least that the combination needs (high end of the estimate).
    times_limit: where a limit on hours or USD was, how many times as much it takes.
    """

    platform: str
    method: str
    quantization: Quantization
    rule: str
    reason: str
    needs_gib: float | None = None
    times_limit: float | None = None


class RunCost(Answer):
    """The whole run over the data: optimizer steps, seconds, and USD over all cards (None without a price)."""

    steps: int
    tokens: float
    seconds: Interval
    usd: Interval | None = None


def headroom_of(memory: MemoryEstimate) -> float:
    """Share of the budget that the high end of the memory interval leaves free; negative if it does not fit."""
    return 1.0 - memory.device.high / memory.budget


class Candidate(Answer):
    """A plan that was evaluated. `run` is None where the data or the speed is not known.

    choices: why its micro-batch, checkpointing, ... are as they are, in sentences.
    """

    plan: Plan
    memory: MemoryEstimate
    speed: SpeedEstimate | None
    run: RunCost | None
    quality: Quality
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> tuple[str, str, Quantization]:
        """(platform, method, quantization)."""
        return self.plan.platform, self.plan.method, self.plan.quantization

    @cached_property
    def headroom(self) -> float:
        """Share of the budget that the high end of the memory interval leaves free; negative if it does not fit."""
        return headroom_of(self.memory)


class RunnerUp(Answer):
    """The next candidates, and the first criterion at which they lost."""

    candidate: Candidate
    criterion: str
    why_not: str


ChangeKind = Literal["memory", "hours", "usd", "goal"]


class Change(Answer):
    """Something that would have to be otherwise for another combination to win.

    amount: of memory in GiB a card, of hours, or of USD. goal: what would come first instead.
    """

    kind: ChangeKind
    amount: float | None
    goal: str | None = None
    platform: str
    method: str
    quantization: Quantization
    text: str


class FrontPoint(Answer):
    """A combination that no other beats in evidence, time and memory at once. `best`: the recommended one.

    tier: of the evidence on quality. seconds_per_token: of a real token over all cards. device_high: the high end of
    one card's memory, bytes.
    """

    platform: str
    method: str
    quantization: Quantization
    tier: int
    seconds_per_token: float | None
    device_high: float
    best: bool


class Risk(Answer):
    """A risk by its id in the framework (K1-K4), the numbers that raise it, and the setting that guards against it.

    settings: the fields of the plan that guard, with their values, all of which the emitted configuration holds;
    `requirements` is the pinned release in requirements.txt.
    """

    id: Literal["K1", "K2", "K3", "K4"]
    title: str
    finding: str
    guard: str
    settings: dict[str, bool | int | float | str] = Field(default_factory=dict)


class ModelDigest(Answer):
    """What an answer repeats of the model."""

    name: str
    model_type: str
    kind: str
    parameters: int
    active_parameters: int
    hidden_size: int
    num_hidden_layers: int
    vocab_size: int
    max_position_embeddings: int


class Recommendation(Answer):
    """The answer to a request. `best` is None where nothing fits; `way_out` then says what would.

    verdict: "tight" where nothing surely fits and something may. criteria: what decided, the weightiest first.
    dropped: all combinations that are neither `best` nor compared with it, each with its reason. nearest: of those
    that memory or limits kept out, the ones to look at. front: the combinations that none beats in evidence, time and
    memory at once. changes: what would have to change for another to win. conceded: what had to be given up.
    """

    verdict: Verdict
    request: Request
    model: ModelDigest
    hardware: Hardware
    data: DataFacts
    fingerprints: dict[str, str]
    criteria: tuple[str, ...]
    conceded: str = "none"
    best: Candidate | None = None
    reasons: tuple[str, ...] = ()
    runner_ups: tuple[RunnerUp, ...] = ()
    front: tuple[FrontPoint, ...] = ()
    changes: tuple[Change, ...] = ()
    risks: tuple[Risk, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    nearest: tuple[Dropped, ...] = ()
    way_out: tuple[str, ...] = ()
    next_commands: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


class EstimateAnswer(Answer):
    """The answer to one plan, with the plan."""

    verdict: Verdict
    plan: Plan
    memory: MemoryEstimate
    speed: SpeedEstimate | None


def digest_model(model: ModelSpec) -> ModelDigest:
    """The digest of `model`."""
    fields: dict[str, Any] = {name: getattr(model, name) for name in ModelDigest.model_fields}
    return ModelDigest.model_construct(**fields)

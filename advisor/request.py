"""Request: what a person asks, as they can say it. Nothing in it is looked up yet."""

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from profiles.plan import Platform, Quantization, SmallCount, Task, Tokens
from profiles.record import Record

Goal = Literal["balanced", "fast", "cheap", "best"]
Deployment = Literal["adapter", "merged", "gguf", "vllm"]
Skill = Literal["low-code", "code"]
Preference = Literal["quality", "capacity", "method", "storage", "time", "cost", "headroom", "ease", "maturity"]

# Upper bounds keep slips of the keyboard out: no card has 100 TiB, no price is 1e6 USD an hour.
Gib = Annotated[float, Field(gt=0, le=100_000)]
Usd = Annotated[float, Field(gt=0, le=1_000_000)]


class Request(Record):
    """The question. Hardware: `gpu` (a name, `2x name`, cpu), `vram_gib`, both
    (that card with this much memory), or neither (this machine's). Empty restrictions allow everything.

    seq_len: the padded length wanted, tokens (None: from the data, else 2048 or the model's limit).
    replay: general examples, mixed in as this share of what is trained, so that the model keeps what it could (arXiv
    2403.08763: a weak shift of the data needs 5 %, a strong one 25 %).
    examples, mean_len: the data in numbers, for time and cost, where there is no file. max_steps: ends the run early.
    learning_rate: None means a published one for the method. max_hours and max_usd: limits on the whole run.
    usd_per_hour: for one card, in place of the catalogue's range. ram_gib, disk_gib: of the machine, for what is
    offloaded and saved (None: enough). prefer: criteria that come before the goal's own, the weightiest first.
    lora_rank, target_modules, packing: None or empty leaves the choice. field: a special one, whose own test has to
    judge. task: None means sft, or classification for an encoder.
    """

    model: str | dict[str, Any]
    gpu: str | None = None
    vram_gib: Gib | None = None
    n_gpus: SmallCount | None = None

    data: str | None = None
    replay: str | None = None
    replay_share: Annotated[float, Field(gt=0, lt=1)] = 0.05
    examples: Annotated[int, Field(ge=1, le=10**12)] | None = None
    mean_len: Annotated[float, Field(gt=0, le=16_777_216)] | None = None
    seq_len: Tokens | None = None
    num_epochs: Annotated[float, Field(gt=0, le=10_000)] = 1.0
    max_steps: PositiveInt | None = None
    learning_rate: Annotated[float, Field(gt=0, le=10)] | None = None

    task: Task | None = None
    goal: Goal = "balanced"
    prefer: tuple[Preference, ...] = ()
    deployment: Deployment = "adapter"
    skill: Skill | None = None
    field: Annotated[str, Field(min_length=1, max_length=60)] | None = None
    max_hours: PositiveFloat | None = None
    max_usd: Usd | None = None
    usd_per_hour: Usd | None = None
    ram_gib: Gib | None = None
    disk_gib: Gib | None = None

    platforms: tuple[Platform, ...] = ()
    methods: tuple[str, ...] = ()
    quantizations: tuple[Quantization, ...] = ()
    lora_rank: Annotated[int, Field(ge=1, le=65_536)] | None = None
    target_modules: tuple[str, ...] = ()
    packing: bool | None = None
    global_batch_size: PositiveInt = Field(16, le=1_048_576)
    micro_batch_size: SmallCount | None = None
    offline: bool = False

"""Request -> Facts: everything that is looked up (model, hardware, data, price), before anything is decided."""

from pathlib import Path

from advisor.facts import find_tokenizer, fingerprint, resolve_model
from advisor.hardware import resolve_hardware
from advisor.recommendation import DataFacts, Facts
from advisor.request import Request
from advisor.stored import stored_calibration
from estimators.methods import framework_methods, get_method
from profiles.dataset import TASK_FORMS, DatasetFacts
from profiles.errors import InvalidInputError, UnsupportedError
from profiles.gpu import Hardware, PriceRange
from profiles.model import ModelSpec
from profiles.plan import Task
from profiles.source import Source

DEFAULT_SEQ_LEN = 2048
SEQ_LEN_STEP = 64
SHORTEST_SAMPLED = 512  # tokens, half of which is what TRL's GRPOConfig lets a completion have (max_completion_length)
TOLERATED_LOSS = 0.01  # share of the data's tokens that a shorter length may cut


def assess(request: Request) -> Facts:
    """Look everything up.

    Raises:
        AdviseError: unknown names, broken files, values that cannot be.
    """
    for name in request.methods:
        if not get_method(name).framework:
            raise UnsupportedError(
                f"{name} is not weighed in advice",
                f"`ftadvise estimate --method {name}` estimates it. Weighed are {', '.join(framework_methods())}.",
            )
    model = resolve_model(request.model, offline=request.offline)
    hardware = resolve_hardware(request.gpu, request.vram_gib, request.n_gpus)
    task = resolve_task(request.task, model)
    dataset = _read(request, task) if request.data is not None else None
    assumptions: list[str] = []
    seq_len = _seq_len(request, model, dataset, task, assumptions)
    data = _data(request, dataset, seq_len, assumptions)
    calibration, said = stored_calibration(hardware)
    assumptions += said
    prints = {"model": fingerprint(model), "hardware": fingerprint(hardware)}
    if dataset is not None:
        prints["data"] = dataset.fingerprint
    if request.replay is not None:
        prints["replay"] = _read_replay(request, dataset, assumptions)
    return Facts.model_construct(
        model=model,
        hardware=hardware,
        data=data,
        lengths=None if dataset is None else dataset.lengths,
        task=task,
        seq_len=seq_len,
        price=find_price(request, hardware),
        calibration=calibration,
        fingerprints=prints,
        assumptions=tuple(assumptions),
    )


def resolve_task(task: Task | None, model: ModelSpec) -> Task:
    """The task as asked, or what the kind of model is for.

    Raises:
        InvalidInputError: an encoder cannot generate.
    """
    if task is None:
        return "classification" if model.kind == "encoder" else "sft"
    if model.kind == "encoder" and task != "classification":
        raise InvalidInputError("task", f"{model.name} is an encoder: it cannot learn {task}", "--task classification")
    return task


def _read(request: Request, task: Task) -> DatasetFacts:
    """Raises InvalidInputError for rows that the task cannot learn from."""
    from advisor.dataset import measure_lengths, read_dataset

    dataset = read_dataset(Path(str(request.data)))
    form = dataset.format.form
    if form not in TASK_FORMS[task]:
        others = [f"--task {name}" for name, forms in TASK_FORMS.items() if form in forms]
        raise InvalidInputError(
            str(request.data),
            f"holds rows of {form}, and the task {task} learns from {' or '.join(TASK_FORMS[task])}",
            f"Other data, or {' or '.join(others)}.",
        )
    return dataset.facts(measure_lengths(dataset, find_tokenizer(request.model)))


def _read_replay(request: Request, dataset: DatasetFacts | None, assumptions: list[str]) -> str:
    """Check the general examples; their fingerprint.

    Raises:
        InvalidInputError: they are of another form than the data.
    """
    from advisor.dataset import read_dataset

    general = read_dataset(Path(str(request.replay)))
    if dataset is not None and general.format.form != dataset.form:
        found = f"holds rows of {general.format.form}, the data those of {dataset.form}"
        raise InvalidInputError("replay", found, "Bring both into one form.")
    assumptions.append(f"general examples ({request.replay_share:.0%} of what is trained) are as long as the data's")
    return general.fingerprint


def _seq_len(
    request: Request, model: ModelSpec, dataset: DatasetFacts | None, task: Task, assumptions: list[str]
) -> int:
    """As asked; else the shortest that loses at most 1 % of the data's tokens; else 2048; never beyond the model.

    GRPO samples the second half of a sequence, which the data do not hold: twice the data's length, at least 512.
    """
    limit = model.max_position_embeddings
    if request.seq_len is not None:
        if request.seq_len > limit:
            raise InvalidInputError(
                "seq_len", f"{request.seq_len} is beyond the {limit} positions of {model.name}", f"At most {limit}."
            )
        return request.seq_len
    if dataset is None:
        seq_len = min(DEFAULT_SEQ_LEN, limit)
        assumptions.append(f"sequences of {seq_len} tokens (--seq-len, or --data to measure)")
        return seq_len
    low, high = 1, max(1, -(-round(dataset.lengths.max) // SEQ_LEN_STEP))
    while low < high:
        middle = (low + high) // 2
        if dataset.lengths.truncated(middle * SEQ_LEN_STEP).tokens_lost <= TOLERATED_LOSS:
            high = middle
        else:
            low = middle + 1
    length = low * SEQ_LEN_STEP
    if task == "grpo":
        length = max(2 * length, SHORTEST_SAMPLED)
        assumptions.append(f"half of {min(length, limit)} tokens is for sampled completions (--seq-len)")
    return min(length, limit)


def _data(request: Request, dataset: DatasetFacts | None, seq_len: int, assumptions: list[str]) -> DataFacts:
    if dataset is not None:
        lengths = dataset.lengths
        cut = lengths.truncated(seq_len)
        if cut.examples_cut > 0:
            assumptions.append(
                f"{cut.examples_cut:.1%} of the examples are cut to {seq_len} tokens ({cut.tokens_lost:.1%} of tokens)"
            )
        return DataFacts.model_construct(
            examples=dataset.examples,
            mean_len=lengths.mean_len(seq_len),
            max_len=round(lengths.max),
            tokens_lost=cut.tokens_lost,
            duplicates=dataset.duplicates,
            basis=f"lengths: {lengths.counted_by}",
        )
    if request.mean_len is not None and request.mean_len > seq_len:
        raise InvalidInputError(
            "mean_len", f"{request.mean_len:g} is more than seq_len {seq_len}", "The mean is of examples cut to it."
        )
    if request.examples is not None and request.mean_len is None:
        assumptions.append(f"every example fills {seq_len} tokens: the time is an upper bound (--mean-len)")
    basis = "as given" if request.examples is not None else "no data given"
    mean_len = request.mean_len if request.mean_len is not None else None
    if request.examples is not None and mean_len is None:
        mean_len = float(seq_len)
    return DataFacts.model_construct(examples=request.examples, mean_len=mean_len, basis=basis)


def find_price(request: Request, hardware: Hardware) -> PriceRange | None:
    """USD an hour and card: the user's, else the catalogue's range, else None."""
    if request.usd_per_hour is not None:
        return PriceRange(low=request.usd_per_hour, high=request.usd_per_hour, source=Source(url="as given", date=""))
    return hardware.gpu.price_usd_per_hour

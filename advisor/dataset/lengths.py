"""Tokens of every example: with the model's tokenizer, or by a stated assumption.

An example is as long as the sequence that the trainer makes of it: conversations through the chat template, plain
text with its end token. A preference pair counts as the longer of its two sequences.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from random import Random
from time import monotonic
from typing import NamedTuple

from advisor.dataset.chat import Render, read_config, renderer, special_token
from advisor.dataset.reader import PROGRESS_AFTER, PROGRESS_EVERY, Dataset, Progress
from advisor.dataset.turns import Example
from profiles.dataset import LengthDistribution
from profiles.errors import AdviseError, InvalidInputError
from profiles.token_density import density_of

# ChatML: <|im_start|> role \n ... <|im_end|> \n. Gemma: <start_of_turn> role \n ... <end_of_turn> \n.
# Llama 3: <|start_header_id|> role <|end_header_id|> \n\n ... <|eot_id|>. Five around each message in all three.
MESSAGE_OVERHEAD = 5

_CHUNK = 512  # texts that are tokenised at a time


class Sequence(NamedTuple):
    """One training sequence: its text, and the tokens that stand around it."""

    text: str
    extra: int


class Counted(NamedTuple):
    """Tokens of a text and by how many they may be off."""

    tokens: float
    error: float


@dataclass(frozen=True)
class TokenCounter:
    """How tokens are counted: texts to counts, the template of conversations, and the tokens around a plain text."""

    name: str
    count: Callable[[list[str]], list[Counted]]
    render: Render | None
    around_text: int
    eos_token: str


def measure_lengths(
    dataset: Dataset, tokenizer_path: Path | None, sample: int = 20_000, progress: Progress | None = None
) -> LengthDistribution:
    """Tokens an example, of all or of `sample` random ones (the same ones each time). The one
    of most characters is always measured, so that the maximum is right.

    `tokenizer_path`: a tokenizer.json, or the folder that holds it (and tokenizer_config.json, for the chat
    template). None: characters times the fitted densities of profiles/data/token_densities.json.
    Raises InvalidInputError for a broken tokenizer and for an example that the chat template refuses, AdviseError
    "missing-package" without the tokenizers library.
    """
    counter = _assumption() if tokenizer_path is None else _load_counter(tokenizer_path)
    indices = list(dataset.indices)
    longest = max(indices, key=dataset.characters.__getitem__)
    chosen = set(Random(0).sample(indices, sample)) if len(indices) > sample else set(indices)
    lengths: dict[int, float] = {}
    error, due = 0.0, monotonic() + PROGRESS_AFTER
    wanted = chosen | {longest}
    pending = ((i, _sequences(counter, where, example)) for i, where, example in dataset.located() if i in wanted)
    while chunk := list(islice(pending, _CHUNK)):
        counts = iter(counter.count([s.text for _, sequences in chunk for s in sequences]))
        for i, sequences in chunk:
            counted = [(next(counts), s.extra) for s in sequences]
            lengths[i] = max(c.tokens + extra for c, extra in counted)
            error += max(c.error for c, _ in counted) * (i in chosen)
        if progress is not None and monotonic() >= due:
            due = monotonic() + PROGRESS_EVERY
            progress(len(lengths), len(lengths) / len(wanted))
    measured = [lengths[i] for i in chosen]
    distribution = LengthDistribution.from_lengths(
        measured, counted_by=counter.name, relative_uncertainty=round(error / sum(measured), 3)
    )
    return distribution.with_longest(lengths[longest])


def _sequences(counter: TokenCounter, where: str, example: Example) -> list[Sequence]:
    """The sequences that an example becomes."""
    if "messages" in example:
        return [_conversation(counter, where, example)]
    if "text" in example:
        end = "" if "label" in example else counter.eos_token
        return [Sequence(example["text"] + end, counter.around_text)]
    answers = [example[key] for key in ("completion", "chosen", "rejected") if key in example]
    if not answers:  # a prompt alone
        answers = ["" if isinstance(example["prompt"], str) else []]
    if isinstance(example["prompt"], str):
        return [Sequence(example["prompt"] + a + counter.eos_token, counter.around_text) for a in answers]
    tools = {"tools": example["tools"]} if "tools" in example else {}
    return [_conversation(counter, where, {"messages": example["prompt"] + a, **tools}) for a in answers]


def _conversation(counter: TokenCounter, where: str, chat: Example) -> Sequence:
    if counter.render is None:
        parts = [m["content"] + str(m.get("tool_calls", "")) for m in chat["messages"]]
        return Sequence("\n".join([*parts, chat.get("tools", "")]), MESSAGE_OVERHEAD * len(parts))
    try:
        return Sequence(counter.render(chat), 0)
    except Exception as error:  # a template is a program: it may fail in any way, and training would fail as well
        raise InvalidInputError(
            where, f"the model's chat template refuses this conversation: {error}", "Change the row or leave it out."
        ) from None


def _load_counter(path: Path) -> TokenCounter:
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise InvalidInputError(str(path), "holds no tokenizer.json" if path.is_dir() else "does not exist")
    try:
        from tokenizers import Tokenizer
    except ImportError:
        raise AdviseError(
            "missing-package", "counting tokens needs tokenizers", "Install it: pip install 'ftadvise[data]'"
        ) from None
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise InvalidInputError(str(file), f"is not a readable tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    config = read_config(file.parent)
    render = renderer(config, file.parent)
    template = "with its chat template" if render else f"{MESSAGE_OVERHEAD} tokens assumed around each message"

    def count(texts: list[str]) -> list[Counted]:
        encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        return [Counted(len(encoding), 0.0) for encoding in encodings]

    name = f"tokenizer {file} ({tokenizer.get_vocab_size()} tokens), {template}"
    return TokenCounter(
        name, count, render, tokenizer.num_special_tokens_to_add(False), special_token(config, "eos_token")
    )


def _assumption() -> TokenCounter:
    def count(texts: list[str]) -> list[Counted]:
        return [_assumed(text) for text in texts]

    name = f"assumed tokens a character by script, {MESSAGE_OVERHEAD} around each message (no tokenizer at hand)"
    return TokenCounter(name, count, None, 1, "")


def _assumed(text: str) -> Counted:
    tokens = error = 0.0
    for character, n in Counter(text).items():
        density = density_of(character)
        tokens += n * density.tokens_per_character
        error += n * density.tokens_per_character * density.residual
    return Counted(tokens, error)

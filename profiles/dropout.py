"""Dropout of a model's own, from its config.json: it runs while training, whatever the plan says of adapters.

Each model type's keys, and the defaults of its config class (transformers 5.23, models/*/configuration_*.py).
"""

from typing import NamedTuple

from profiles.config_reader import ConfigReader
from profiles.model import ModelSpec, Outputs


class _Rates(NamedTuple):
    """Keys of the rates: attention's probabilities, the outputs of attention and MLP, the embeddings."""

    attention: str = "attention_dropout"
    outputs: str | None = None
    embedding: str | None = None
    default: float = 0.0
    attention_default: float = 0.0
    where: tuple[Outputs, ...] = ("attention", "mlp")


_ENCODER = _Rates("attention_probs_dropout_prob", "hidden_dropout_prob", "hidden_dropout_prob", 0.1, 0.1)
_RATES = {
    "bert": _ENCODER,
    "bloom": _Rates(outputs="hidden_dropout"),
    "deberta-v2": _ENCODER,
    "distilbert": _Rates("attention_dropout", "dropout", "dropout", 0.1, 0.1, where=("mlp",)),
    "falcon": _Rates(outputs="hidden_dropout"),
    "gpt2": _Rates("attn_pdrop", "resid_pdrop", "embd_pdrop", 0.1, 0.1),
    "gpt_neo": _Rates(outputs="resid_dropout", embedding="embed_dropout"),
    "gpt_neox": _Rates(outputs="hidden_dropout", embedding="hidden_dropout"),
    "gptj": _Rates("attn_pdrop", "resid_pdrop", "embd_pdrop"),
    "opt": _Rates(outputs="dropout", default=0.1),
    "phi": _Rates(outputs="resid_pdrop", embedding="embd_pdrop"),
    "phi3": _Rates(outputs="resid_pdrop"),
    "roberta": _ENCODER,
    "stablelm": _Rates(outputs="hidden_dropout", where=("mlp",)),
    "starcoder2": _Rates(outputs="residual_dropout", embedding="embedding_dropout"),
    "xlm-roberta": _ENCODER,
}  # fmt: skip


def with_dropout(spec: ModelSpec, f: ConfigReader) -> ModelSpec:
    """The model with its own dropout marked where a rate is above 0: at 0 torch runs nothing.

    Raises:
        InvalidModelError: a rate is no number from 0 to below 1.
    """
    rates = _RATES.get(spec.model_type, _Rates())
    attention = f.rate(rates.attention, default=rates.attention_default) > 0
    outputs = rates.outputs is not None and f.rate(rates.outputs, default=rates.default) > 0
    embedding = rates.embedding is not None and f.rate(rates.embedding, default=rates.default) > 0
    if not (attention or outputs or embedding):
        return spec
    return spec.replace(
        embedding_dropout=embedding,
        layers=tuple(
            g.replace(
                block=g.block.replace(
                    attention=g.block.attention.replace(dropout=attention), dropout=rates.where if outputs else ()
                )
            )
            for g in spec.layers
        ),
    )

"""P-tuning: virtual tokens made by a small prompt encoder (Liu et al. 2021, arXiv 2103.10385)."""

from collections.abc import Iterator

from estimators.methods.base import TrainedTensors
from estimators.methods.prompt import SoftPrompt
from profiles.model import ModelSpec
from profiles.plan import Plan


class PTuning(SoftPrompt):
    """A prompt table run through a three-layer MLP (PEFT's default; the LSTM is the paper's)."""

    id = "ptuning"
    title = "P-tuning"
    peft_type = "P_TUNING"

    def has_encoder(self, plan: Plan) -> bool:
        """The prompt encoder."""
        return True

    def trained(self, model: ModelSpec, plan: Plan) -> Iterator[TrainedTensors]:
        """Table and encoder (PEFT tuners/p_tuning/model.py: Linear-ReLU-Linear-ReLU-Linear)."""
        width = model.embeddings[0].width
        hidden = plan.encoder_hidden_size or width
        yield TrainedTensors(elements=plan.num_virtual_tokens * width, tensors=1)
        if plan.method_options.get("encoder_reparameterization_type") == "LSTM":
            yield from _bidirectional_lstm(width, hidden, int(plan.method_options.get("encoder_num_layers", 2)))
            yield from _linear(2 * hidden, 2 * hidden)
            yield from _linear(2 * hidden, width)
            return
        yield from _linear(width, hidden)
        yield from _linear(hidden, hidden)
        yield from _linear(hidden, width)


def _linear(n_in: int, n_out: int) -> Iterator[TrainedTensors]:
    yield TrainedTensors(elements=n_in * n_out, tensors=1)
    yield TrainedTensors(elements=n_out, tensors=1)


def _bidirectional_lstm(n_in: int, hidden: int, layers: int) -> Iterator[TrainedTensors]:
    """torch.nn.LSTM: four gates, two biases, two directions."""
    for layer in range(layers):
        yield TrainedTensors(elements=4 * hidden * (n_in if layer == 0 else 2 * hidden), tensors=2)
        yield TrainedTensors(elements=4 * hidden * hidden, tensors=2)
        yield TrainedTensors(elements=4 * hidden, tensors=4)


METHOD = PTuning()

"""Tell what is forgotten: the loss on the passages of data/general.jsonl, before the training and after it.

The passages have nothing to do with the task, so a rise shows what general ability the training costs. Put others
there, one {"text": ...} a line, or remove the file to leave the measurement out.
"""

import json
from pathlib import Path

import torch
from transformers import TrainerCallback

PASSAGES = Path("data/general.jsonl")
COUNT, TOKENS = 64, 256  # at most: seconds on a GPU, and the logits of 256 tokens need less than a training step


class GeneralText(TrainerCallback):
    """Writes an event "general" with each passage's loss, in nats a token."""

    def __init__(self, progress):
        self.progress = progress

    def on_train_begin(self, args, state, control, **kwargs):
        """Measure a new run; one that is resumed has done so."""
        if state.global_step == 0:
            self.measure(args, state, **kwargs)

    def on_train_end(self, args, state, control, **kwargs):
        """Measure what will be saved: by now the best checkpoint is loaded where that was asked for."""
        if not self.progress.stopping:
            self.measure(args, state, **kwargs)

    def measure(self, args, state, model=None, processing_class=None, **kwargs):
        """One passage at a time. All processes do the same, as sharded models need."""
        if not PASSAGES.is_file() or model.get_output_embeddings() is None:  # such a model says no next token
            return
        options = {"return_tensors": "pt", "truncation": True, "max_length": TOKENS}
        # The loss is to be that of the text alone: without an expert router's balance in it.
        text_config = model.config.get_text_config()
        routed = {"output_router_logits": False} if hasattr(text_config, "output_router_logits") else {}
        training, losses = model.training, []
        model.eval()
        with PASSAGES.open(encoding="utf-8") as file, torch.no_grad():
            for _, line in zip(range(COUNT), file, strict=False):
                tokens = processing_class(json.loads(line)["text"], **options)["input_ids"].to(args.device)
                if tokens.shape[1] > 1:
                    losses.append(model(input_ids=tokens, labels=tokens, **routed).loss.item())
        model.train(training)
        self.progress.write("general", step=state.global_step, losses=losses)

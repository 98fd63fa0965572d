"""Merge an adapter into its base model, save the whole, and look whether what was saved says the same.

`python merge.py ARGUMENTS`: a JSON object of base and adapter (folders or hub ids), out (a folder) and texts (a
sample). On the CPU, with the weights in memory once, in fp32: what computing in 16 bits rounds away would hide whether
the two say the same. The last line of the output is a JSON object.
"""

import gc
import json
import sys

import torch
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

TOKENS = 64  # of each text: the distributions over a large vocabulary are kept


def load(name):
    """A model in fp32, and the dtype that it is stored in."""
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto").eval()
    stored = model.dtype
    return model.float(), stored


def predict(model, samples):
    """The log probability of every next token, text by text."""
    with torch.no_grad():
        return [model(input_ids=tokens).logits[0].float().log_softmax(-1) for tokens in samples]


def main(base, adapter, out, texts):
    """Merge, save, load again, compare."""
    if getattr(AutoConfig.from_pretrained(base), "quantization_config", None) is not None:
        raise SystemExit(f"{base} holds quantised weights: name the 16-bit ones with --base")
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    options = {"return_tensors": "pt", "truncation": True, "max_length": TOKENS}
    samples = [tokenizer(text, **options)["input_ids"] for text in texts]
    model, stored = load(base)
    model = PeftModel.from_pretrained(model, adapter).eval()
    wanted = predict(model, samples)
    if not all(found.isfinite().all() for found in wanted):
        raise SystemExit("the trained model's predictions are no finite numbers: there is nothing to deploy")
    model = model.merge_and_unload(safe_merge=True).to(stored)  # safe: refuses what is no finite number
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    del model
    gc.collect()
    pairs = [(a, b) for a, b in zip(wanted, predict(load(out)[0], samples), strict=True)]
    divergence = torch.cat([(a.exp() * (a - b)).sum(-1) for a, b in pairs])
    same = torch.cat([a.argmax(-1) == b.argmax(-1) for a, b in pairs])
    dtype = str(stored).removeprefix("torch.")
    found = {"dtype": dtype, "tokens": same.numel(), "divergence": divergence.clamp(min=0).mean().item()}
    print("\n" + json.dumps({**found, "same_choice": same.float().mean().item()}))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))

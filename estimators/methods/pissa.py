"""PiSSA: LoRA that starts from the weight's principal singular vectors (Meng et al. 2024, arXiv 2404.02948)."""

from estimators.methods.lora import Lora


class Pissa(Lora):
    """LoRA while training; the start takes a singular value decomposition of each weight, one at a time."""

    id = "pissa"
    title = "PiSSA"
    starts_from_weights = True  # PEFT (tuners/lora/layer.py pissa_init) decomposes float weights only


METHOD = Pissa()

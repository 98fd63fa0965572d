"""LoftQ: LoRA that starts from what quantising the weight loses (Li et al. 2023, arXiv 2310.08659)."""

from estimators.methods.lora import Lora


class LoftQ(Lora):
    """LoRA while training; the start quantises each weight in turn and decomposes the difference."""

    id = "loftq"
    title = "LoftQ"
    starts_from_weights = True  # PEFT (utils/loftq_utils.py) quantises them itself, one at a time


METHOD = LoftQ()

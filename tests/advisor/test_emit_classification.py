"""Classification with quantised encoders: transformers and PEFT build what the emitted settings say, heads included."""

from pathlib import Path

import pytest
import torch
from peft import get_peft_config, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BitsAndBytesConfig,
    DistilBertConfig,
    ModernBertConfig,
    PretrainedConfig,
)

from advisor.emit.huggingface_config import quantization
from advisor.emit.peft_config import peft_config
from profiles.families import describe_model
from profiles.plan import Plan

pytestmark = pytest.mark.platform

SPECIAL = {"pad_token_id": 0, "cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
SMALL = {"hidden_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 128}
CONFIGS = {
    "bert": BertConfig(vocab_size=100, **SMALL),
    "distilbert": DistilBertConfig(vocab_size=100, dim=64, n_heads=2, n_layers=2, hidden_dim=128),
    "modernbert": ModernBertConfig(vocab_size=100, **SPECIAL, **SMALL),
}


@pytest.mark.parametrize("stored", ["bf16", "nf4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_head_learns_over_a_base_that_does_not(name: str, stored: str, tmp_path: Path) -> None:
    config: PretrainedConfig = CONFIGS[name]
    method = "qlora" if stored == "nf4" else "lora"
    plan = Plan.model_validate({"model": name, "method": method, "quantization": stored, "task": "classification"})
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path)
    settings = quantization(plan)
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path,
        dtype=torch.bfloat16,
        quantization_config=None if settings is None else BitsAndBytesConfig(**settings),
    )
    adapted = peft_config(plan, describe_model(config.to_dict(), name))
    assert adapted is not None
    model = get_peft_model(base, get_peft_config(adapted))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {n for n in trained if "classifier.modules_to_save" in n and n.endswith(".weight")}
    assert all("lora_" in n or "classifier" in n for n in trained)
    quantised = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    assert bool(quantised) == (stored == "nf4")

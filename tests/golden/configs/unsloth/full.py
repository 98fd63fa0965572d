# expect: {"plan": {"method": "full", "quantization": "bf16", "gradient_checkpointing": "full"}, "float_by_card": false}
import torch
from trl import SFTConfig, SFTTrainer
from unsloth import FastModel

model, tokenizer = FastModel.from_pretrained(
    model_name="meta-llama/Llama-3.2-1B",
    dtype=torch.bfloat16,
    full_finetuning=True,
    use_gradient_checkpointing=True,
)
trainer = SFTTrainer(model=model, train_dataset=data, args=SFTConfig(output_dir="out", bf16=True))

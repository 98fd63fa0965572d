# expect: {"plan": {"method": "qlora", "lora_rank": 16, "micro_batch_size": 4}, "unjudged_keys": ["get_peft_model.r", "per_device_train_batch_size"]}
import os

from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

rank = int(os.environ.get("RANK", 8))
for batch in (1, 2):
    pass
model, tokenizer = FastLanguageModel.from_pretrained(model_name="meta-llama/Llama-3.2-1B", load_in_4bit=True)
model = FastLanguageModel.get_peft_model(model, r=rank)
trainer = SFTTrainer(
    model=model, train_dataset=data, args=SFTConfig(output_dir="out", per_device_train_batch_size=batch)
)

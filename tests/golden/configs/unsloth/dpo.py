# expect: {"plan": {"task": "dpo"}}
from trl import DPOConfig, DPOTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained(model_name="meta-llama/Llama-3.2-1B")
model = FastLanguageModel.get_peft_model(model, r=64)
trainer = DPOTrainer(model=model, train_dataset=data, args=DPOConfig(output_dir="out", per_device_train_batch_size=1))

# expect: {"errors": ["from_pretrained.full_finetuning", "fp16", "learning_rate", "warmup_ratio"], "plan": {"method": "full"}}
from trl import SFTConfig, SFTTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("meta-llama/Llama-3.2-1B", load_in_4bit=False)
args = SFTConfig(output_dir="out", bf16=True, fp16=True, learning_rate="2e-4", warmup_ratio=0.1)
trainer = SFTTrainer(model=model, train_dataset=data, args=args)

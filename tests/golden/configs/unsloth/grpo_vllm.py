# expect: {"unjudged": "from_pretrained.fast_inference"}
from trl import GRPOConfig, GRPOTrainer
from unsloth import FastLanguageModel

model, tokenizer = FastLanguageModel.from_pretrained("meta-llama/Llama-3.2-1B", fast_inference=True)
model = FastLanguageModel.get_peft_model(model, r=16)
trainer = GRPOTrainer(model=model, train_dataset=data, args=GRPOConfig(output_dir="out"))

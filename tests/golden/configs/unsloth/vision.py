# expect: {"unjudged": "images"}
from trl import SFTConfig, SFTTrainer
from unsloth import FastVisionModel

model, tokenizer = FastVisionModel.from_pretrained("unsloth/Qwen2-VL-7B-Instruct")
model = FastVisionModel.get_peft_model(model, r=16)
trainer = SFTTrainer(model=model, train_dataset=data, args=SFTConfig(output_dir="out"))

# expect: {"plan": {"method": "qlora", "quantization": "nf4-dq", "micro_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": 5e-05, "optimizer": "adamw_8bit", "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"], "gradient_checkpointing": "unsloth"}}
import unsloth
from trl import SFTConfig, SFTTrainer

model, tokenizer = unsloth.FastLanguageModel.from_pretrained("meta-llama/Llama-3.2-1B")
model = unsloth.FastLanguageModel.get_peft_model(model)
SFTTrainer(model=model, args=SFTConfig(output_dir="out"), train_dataset=[]).train()

# expect: {"plan": {"micro_batch_size": 8, "gradient_accumulation_steps": 1, "optimizer": "adamw_torch_fused", "quantization": "int8", "packing": true, "seq_len": 1024}}
from transformers import TrainingArguments
from trl import SFTTrainer
from unsloth import FastLanguageModel

SETTINGS = {"r": 32, "use_rslora": False}
model, tokenizer = FastLanguageModel.from_pretrained(
    "meta-llama/Llama-3.2-1B", 2048, load_in_4bit=False, load_in_8bit=True
)
model = FastLanguageModel.get_peft_model(model, **SETTINGS)
trainer = SFTTrainer(
    model=model, train_dataset=data, max_seq_length=1024, packing=True, args=TrainingArguments(output_dir="out")
)

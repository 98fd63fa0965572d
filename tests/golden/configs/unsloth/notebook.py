# expect: {"plan": {"platform": "unsloth", "model": "unsloth/Meta-Llama-3.1-8B-bnb-4bit", "method": "qlora", "quantization": "nf4-dq", "lora_rank": 16, "lora_alpha": 16.0, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], "micro_batch_size": 2, "gradient_accumulation_steps": 4, "gradient_checkpointing": "unsloth", "seq_len": 2048, "optimizer": "adamw_8bit", "max_steps": 60}, "float_by_card": true, "errors": [], "warnings": [], "unjudged_keys": []}
from unsloth import FastLanguageModel, is_bfloat16_supported
from trl import SFTConfig, SFTTrainer

max_seq_length = 2048
dtype = None
load_in_4bit = True

model, tokenizer = FastLanguageModel.from_pretrained(
    model_name="unsloth/Meta-Llama-3.1-8B-bnb-4bit",
    max_seq_length=max_seq_length,
    dtype=dtype,
    load_in_4bit=load_in_4bit,
)
model = FastLanguageModel.get_peft_model(
    model,
    r=16,
    target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
    lora_alpha=16,
    lora_dropout=0,
    bias="none",
    use_gradient_checkpointing="unsloth",
    random_state=3407,
)
trainer = SFTTrainer(
    model=model,
    tokenizer=tokenizer,
    train_dataset=load_dataset("chat", split="train"),
    args=SFTConfig(
        per_device_train_batch_size=2,
        gradient_accumulation_steps=4,
        warmup_steps=5,
        max_steps=60,
        learning_rate=2e-4,
        fp16=not is_bfloat16_supported(),
        bf16=is_bfloat16_supported(),
        optim="adamw_8bit",
        output_dir="outputs",
    ),
)
trainer.train()

"""ftadvise: how to fine-tune a language model on the hardware you have. The Python API is `advisor.api`."""

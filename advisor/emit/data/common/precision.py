"""What the machine can compute in."""

import torch

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def choose_precision(wanted):
    """'bf16', 'fp16' or 'fp32': the wanted one where this machine has it."""
    if not torch.cuda.is_available():
        best, supported = "fp32", ("bf16", "fp32")
    elif torch.cuda.is_bf16_supported(including_emulation=False):
        best, supported = "bf16", ("bf16", "fp16", "fp32")
    else:
        best, supported = "fp16", ("fp16", "fp32")
    if wanted in supported:
        return wanted
    if wanted != "auto":
        print(f"note: no {wanted} on this machine, computing in {best}; memory and speed will differ")
    return best

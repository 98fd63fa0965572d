"""The request as it is typed: fields and the options of the command line that fill them."""

from advisor.request import Request

_OTHER_NAMES = {
    "vram_gib": "--vram",
    "num_epochs": "--epochs",
    "platforms": "--platform",
    "methods": "--method",
    "quantizations": "--quantization",
    "ram_gib": "--ram",
    "disk_gib": "--disk",
    "lora_rank": "--rank",
    "target_modules": "--target",
    "global_batch_size": "--batch",
    "micro_batch_size": "--micro-batch",
}


def flag_of(field: str) -> str:
    """The option of a field of Request."""
    return _OTHER_NAMES.get(field, f"--{field.replace('_', '-')}")


def request_flags(request: Request) -> list[str]:
    """The request as words of a command line, without what stands at its default."""
    words: list[str] = []
    for name, field in type(request).model_fields.items():
        value = getattr(request, name)
        if value == field.get_default(call_default_factory=True) or isinstance(value, dict):
            continue
        if value is False:
            words.append(f"--no-{flag_of(name).removeprefix('--')}")
            continue
        for item in value if isinstance(value, tuple) else (value,):
            words.append(flag_of(name))
            if item is not True:
                words.append(f"{item:.12g}" if isinstance(item, float) else str(item))
    return words

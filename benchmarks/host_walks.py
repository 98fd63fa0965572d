"""What the host does a layer, where nothing else takes time: `python -m benchmarks.host_walks`.

A Llama so small that its kernels take no time, on one CPU thread, CPU seconds: microseconds a dispatched operation of
forward and backward passes, and what gradient checkpoints cost beside running the layer again. `estimators/work.py`
(BARE_LAUNCH) and `estimators/step_time.py` (CHECKPOINT_LAUNCHES, HOOK_LAUNCHES) rest on it.
"""

import gc
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from itertools import product
from statistics import quantiles
from typing import Any

LAYERS, ROUNDS = 8, 24
KINDS, CHECKPOINTS = ("full", "lora"), ("none", "reentrant", "non-reentrant")
SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "num_hidden_layers": LAYERS, "use_cache": False,
}  # fmt: skip


def build(kind: str, checkpoints: str) -> Callable[[], tuple[float, float]]:
    """A step of that kind: seconds of its forward and of its backward pass."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES)).to(torch.bfloat16)
    if kind == "lora":
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    if checkpoints != "none":
        model.gradient_checkpointing_enable({"use_reentrant": checkpoints == "reentrant"})
        model.enable_input_require_grads()
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    tokens = torch.randint(0, SIZES["vocab_size"], (1, 8))

    def step() -> tuple[float, float]:
        start = time.process_time()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        middle = time.process_time()
        loss.backward()
        end = time.process_time()
        for parameter in trained:
            parameter.grad = None
        return middle - start, end - middle

    return step


def count(step: Callable[[], Any]) -> int:
    """Operations that `step` dispatches, views and empty tensors aside."""
    from torch.utils._python_dispatch import TorchDispatchMode

    from estimators.simulate.operations import NO_KERNEL

    class Counter(TorchDispatchMode):  # type: ignore[misc]
        n = 0

        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
        ) -> Any:
            self.n += not func.is_view and func._schema.name not in NO_KERNEL
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        step()
    return counter.n


def main() -> None:
    import torch

    torch.set_num_threads(1)
    gc.disable()  # as often as it runs, it walks through all of torch
    steps = {pair: build(*pair) for pair in product(KINDS, CHECKPOINTS)}
    seconds: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for _ in range(ROUNDS + 2):
        for pair, step in steps.items():
            seconds[pair].append(step())
    for (kind, checkpoints), runs in seconds.items():
        forward, backward = (quantiles(values, n=4)[0] * 1e6 / LAYERS for values in zip(*runs[2:], strict=True))
        operations = count(steps[kind, checkpoints]) / LAYERS
        print(
            f"{kind:5s} {checkpoints:14s} a layer: forward {forward:6.0f} us, backward {backward:6.0f} us, "
            f"{operations:.0f} operations"
        )


if __name__ == "__main__":
    main()

"""Kernels of adapters: the counts of the speed model against what PEFT dispatches around one linear."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from estimators.adapter_time import LAUNCHES

torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from estimators.simulate.operations import NO_KERNEL  # noqa: E402

ON_THE_HOST = {"aten::rand", "aten::gt", "aten::_local_scalar_dense", "aten::detach"}  # whether a module is dropped
TARGET = {"target_modules": ["inner"]}
CONFIGS = {
    "lora": peft.LoraConfig(r=8, **TARGET),
    "svd": peft.AdaLoraConfig(init_r=8, total_step=100, **TARGET),
    "dora": peft.LoraConfig(r=8, use_dora=True, **TARGET),
    "ia3": peft.IA3Config(feedforward_modules=[], **TARGET),
    "oft": peft.OFTConfig(oft_block_size=16, r=0, **TARGET),
    "loha": peft.LoHaConfig(r=8, **TARGET),
    "fourierft": peft.FourierFTConfig(n_frequency=100, **TARGET),
    "lokr": peft.LoKrConfig(r=8, **TARGET),
    "vera": peft.VeraConfig(r=8, **TARGET),
    "miss": peft.MissConfig(r=8, **TARGET),
}


class Counter(TorchDispatchMode):
    n = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.n += not func.is_view and func._schema.name not in NO_KERNEL | ON_THE_HOST
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Counter]:
    with Counter() as counter:
        yield counter


class Model(torch.nn.Module):
    """One linear."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, 64, bias=False)
        self.config = {"model_type": "one linear"}

    def forward(self, x: Any) -> Any:
        return self.inner(x)


def kernels(config: Any, *, fp32: bool) -> tuple[int, int]:
    """Of a forward and of a backward pass under autocast."""
    model: Any = Model().to(torch.bfloat16)
    if config is not None:
        model = peft.PeftModel(model, config, autocast_adapter_dtype=fp32)
    model.train()

    def step() -> tuple[int, int]:
        x = torch.randn(2, 8, 64, dtype=torch.bfloat16, requires_grad=True)
        with counted() as forward, torch.autocast("cpu", torch.bfloat16):
            out = model(x)
        with counted() as backward:
            out.backward(torch.ones_like(out))
        for parameter in model.parameters():
            parameter.grad = None
        return forward.n, backward.n

    step()
    return step()


@pytest.mark.parametrize("kind", LAUNCHES)
def test_an_adapter_launches_what_peft_dispatches(kind: str) -> None:
    plain = kernels(None, fp32=True)
    for fp32, expected in zip((True, False), LAUNCHES[kind], strict=True):
        found = kernels(CONFIGS[kind], fp32=fp32)
        added = [own - base for own, base in zip(found, plain, strict=True)]
        assert added == [pytest.approx(n, abs=1) for n in expected], (kind, fp32)

"""LLaMA-Factory's Muon (0.9.5, third_party/muon/muon.py): what its step keeps and makes, parameter by parameter."""

from collections.abc import Iterable

import torch

STEPS = 5  # of the Newton-Schulz iteration


class Muon(torch.optim.Optimizer):  # type: ignore[misc]
    """Momentum of matrices inside the layers, orthogonalised; Adam's moments of everything else."""

    def __init__(self, named_parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> None:
        """Choose as _create_muon_optimizer (train/trainer_utils.py) does."""
        named = [(n, p) for n, p in named_parameters if p.requires_grad]
        self.matrices = {id(p) for n, p in named if p.ndim == 2 and "embed" not in n and "lm_head" not in n}
        super().__init__(sorted((p for _, p in named), key=lambda p: id(p) not in self.matrices), {})

    @torch.no_grad()  # type: ignore[untyped-decorator]
    def step(self, closure: object = None) -> None:
        """One step; names are kept until they are bound again, as there."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if id(p) in self.matrices:
                    if "momentum_buffer" not in state:
                        state["momentum_buffer"] = torch.zeros_like(p.grad)
                    g = p.grad.add(state["momentum_buffer"], alpha=0.95)
                    u = _newton_schulz(g)
                    p.data.add_(u, alpha=-1e-3)
                    continue
                if "moment1" not in state:
                    state["moment1"], state["moment2"] = torch.zeros_like(p.grad), torch.zeros_like(p.grad)
                state["moment2"].lerp_(p.grad.square(), 0.1)
                g = state["moment1"] / (1e-8 + state["moment2"].sqrt())
                p.data.add_(g, alpha=-1e-3)


def _newton_schulz(g: torch.Tensor) -> torch.Tensor:
    x = g.bfloat16()
    if g.size(0) > g.size(1):
        x = x.T
    x = x / (x.norm() + 1e-7)
    for _ in range(STEPS):
        a = x @ x.T
        b = 2.0 * a + 2.0 * a @ a
        x = 2.0 * x + b @ x
    return x.T if g.size(0) > g.size(1) else x

"""GaLore, APOLLO and BAdam: the packages' own optimizers, given their parameters as the platforms give them.

transformers 5.23 trainer_optimizer.py (_setup_low_rank_optimizer), LLaMA-Factory 0.9.5 train/trainer_utils.py.
"""

from typing import Any

import torch

from estimators.methods.base import matches
from profiles.errors import UnsupportedError
from profiles.plan import Plan

# transformers' and LLaMA-Factory's update_proj_gap and scale; neither matters to memory
GALORE = {"update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
APOLLO = GALORE | {"proj": "random", "scale_type": "channel", "scale": 1.0}


def projected_optimizer(plan: Plan, model: torch.nn.Module, settings: dict[str, Any]) -> Any:
    """GaLore's or APOLLO's AdamW over plain parameters, then projected ones."""
    names = _target_weights(plan, model)
    named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    plain = [p for n, p in named if n not in names]
    if plan.platform == "llamafactory":  # those without weight decay come first
        plain.sort(key=lambda p: p.ndim > 1)
    options = {"rank": plan.lora_rank, **(GALORE if plan.method == "galore" else APOLLO)}
    groups = [{"params": plain}, {"params": [p for n, p in named if n in names], **options}]
    if plan.method == "galore":
        from galore_torch import GaLoreAdamW

        return GaLoreAdamW(groups, **settings, no_deprecation_warning=True)
    import apollo_torch.random_projector as projector
    from apollo_torch import APOLLOAdamW

    # random numbers need a generator of the device, and the next seed a value
    projector.stable_randn = lambda shape, *_, device=None, dtype=torch.float32, **__: torch.empty(
        shape, device=device, dtype=dtype
    )
    projector.next_seed = lambda seed, *_: seed
    return APOLLOAdamW(groups, **settings)


def _target_weights(plan: Plan, model: torch.nn.Module) -> set[str]:
    """Weights of the linears among the targets; LLaMA-Factory's "all" leaves the head out."""
    everywhere = "all-linear" in plan.target_modules
    found = set()
    for name, module in model.named_modules():
        is_head = name == "lm_head" and plan.platform == "llamafactory"
        targeted = everywhere or any(matches(target, name) for target in plan.target_modules)
        if isinstance(module, torch.nn.Linear) and targeted and not is_head:
            found.add(f"{name}.weight")
    return found


def block_optimizer(optimizer: torch.optim.Optimizer, model: torch.nn.Module) -> Any:
    """BAdam around `optimizer`, with the first layer active: the dearest one."""
    from badam import BlockOptimizer

    named = list(model.named_parameters())
    if not any(".layers." in n for n, _ in named):
        raise UnsupportedError("badam 1.4 tells layers by the name 'layers', which this model does not have")
    return BlockOptimizer(
        base_optimizer=optimizer, named_parameters_list=named, start_block=0, switch_mode="ascending", verbose=0
    )

"""accelerate's own YAML (`accelerate launch --config_file FILE`): how a run is placed, not what it trains."""

from collections.abc import Mapping
from typing import Any

from advisor.readers.base import OpenFile, Reader, Reading
from advisor.readers.placement import parse_accelerate


class Accelerate(Reader):
    """Launch configurations, as TRL and LLaMA-Factory ship them."""

    id = "accelerate"
    title = "accelerate"

    def recognises(self, content: Mapping[str, Any]) -> bool:
        """accelerate's first questions."""
        return "distributed_type" in content or "compute_environment" in content

    def read(self, content: Mapping[str, Any], open_file: OpenFile) -> Reading:
        """What it says of the cards."""
        placement = parse_accelerate(content)
        count = placement.n_gpus or 1
        cards = f"{count} card{'s' * (count > 1)}, sharding {placement.sharding}"
        return Reading(
            format=self.id,
            release="accelerate 1.15.0",
            plan=None,
            unjudged=f"it trains nothing: it launches on {cards}. Give it with --accelerate beside the training file",
            n_gpus=placement.n_gpus,
            sharding=placement.sharding,
            offload_optimizer=placement.offload_optimizer,
            offload_parameters=placement.offload_parameters,
        )


READER = Accelerate()

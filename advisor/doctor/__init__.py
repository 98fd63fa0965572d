"""The state of this machine for fine-tuning. Nothing heavy is imported: what is installed is read from its files."""

from advisor.doctor.card import examine_card
from advisor.doctor.disk import examine_disk
from advisor.doctor.finding import Finding
from advisor.doctor.hub import examine_hub
from advisor.doctor.software import examine_environments, examine_own_packages
from advisor.environments import find_environments
from advisor.hardware import resolve_hardware

__all__ = ["Finding", "examine"]


def examine(*, ask_hub: bool = False) -> tuple[Finding, ...]:
    """Look at everything. The network is used only if `ask_hub`."""
    hardware = resolve_hardware()
    return (
        *examine_card(hardware),
        *examine_own_packages(hardware),
        *examine_environments(find_environments(), hardware),
        *examine_disk(),
        *examine_hub(ask=ask_hub),
    )

"""The platforms' own virtual environments: their pins conflict, so each platform has one of its own."""

from advisor.environments.build import create_environment, remove_environment
from advisor.environments.check import check_environment
from advisor.environments.environment import Environment, find_environment, find_environments

__all__ = [
    "Environment",
    "check_environment",
    "create_environment",
    "find_environment",
    "find_environments",
    "remove_environment",
]

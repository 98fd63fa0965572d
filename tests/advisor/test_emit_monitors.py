from typing import get_args

import pytest
import yaml

from advisor.emit import Source, emit, emitters
from advisor.emit.base import MONITOR_PACKAGES, Monitor
from advisor.environments.lock import load_lock
from advisor.launch.interpreter import choose_interpreter
from profiles.errors import AdviseError
from profiles.plan import Plan
from tests.advisor.test_emit_base import MODEL, PLAN

SETTINGS = {"hf": "config.yaml", "unsloth": "config.yaml", "llamafactory": "train.yaml"}


def report_to(plan: Plan, source: Source) -> object:
    settings = yaml.safe_load(emit(plan, MODEL, source).files[SETTINGS[plan.platform]])
    return settings.get("training", settings)["report_to"]


def test_every_platform_reports_to_nobody_unless_asked() -> None:
    assert set(SETTINGS) == set(emitters())
    for platform in SETTINGS:
        plan = PLAN.replace(platform=platform)
        assert report_to(plan, Source(model_ref="x")) == "none"
        assert report_to(plan, Source(model_ref="x", report_to=("tensorboard", "wandb"))) == ["tensorboard", "wandb"]


def test_every_monitor_brings_its_package() -> None:
    assert set(MONITOR_PACKAGES) == set(get_args(Monitor))
    for platform in SETTINGS:
        for monitor, package in MONITOR_PACKAGES.items():
            files = emit(PLAN.replace(platform=platform), MODEL, Source(model_ref="x", report_to=(monitor,))).files
            assert package in files["requirements.txt"].splitlines()
            assert package in files["plan.json"]


def test_tensorboard_is_in_every_environment_that_env_builds() -> None:
    for platform in SETTINGS:
        name, version = MONITOR_PACKAGES["tensorboard"].split("==")
        assert load_lock(platform).for_cpu().pins[name] == version


def test_a_monitor_that_is_not_installed_stops_the_launch() -> None:
    with pytest.raises(AdviseError, match="has no no-such-monitor"):
        choose_interpreter("hf", ["no-such-monitor==1.0"])


def test_scripts_tell_nobody_of_the_run() -> None:
    for platform in SETTINGS:
        script = emit(PLAN.replace(platform=platform), MODEL, Source(model_ref="x")).files["train.py"]
        imports = script.index("import torch") if platform != "unsloth" else script.index("import unsloth")
        assert 0 < script.index('"HF_HUB_DISABLE_TELEMETRY", "1"') < imports

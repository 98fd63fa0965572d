"""Projects of a Python script that reads config.yaml: what Hugging Face's and Unsloth's share."""

from typing import Any, ClassVar

import yaml

from advisor.axes import PACKED_TASKS
from advisor.emit.accelerate import accelerate_config
from advisor.emit.base import Emitter, Forecast, Source, template
from advisor.emit.readme import readme
from advisor.emit.yaml_text import dump_commented
from estimators.methods import get_method
from profiles.dataset import TASK_FORMS
from profiles.model import ModelSpec
from profiles.plan import Plan
from profiles.platform import load_platforms

COMMON = ("general.py", "precision.py", "progress.py", "rows.py", "running.py")
TRAINING_COMMENT = "eval_steps, save_steps and warmup_steps below 1 are shares of the whole run."


class ScriptEmitter(Emitter):
    """`folder`: of the templates. Subclasses give the values of config.yaml and say what the platform cannot do."""

    folder: str
    header: str
    comments: ClassVar[dict[str, str]]

    def config(self, plan: Plan, model: ModelSpec, model_ref: str) -> dict[str, Any]:
        """All of config.yaml, section by section."""
        raise NotImplementedError

    def plan_refusal(self, plan: Plan, model: ModelSpec) -> str | None:
        """Say what of the plan the platform cannot do, or None."""
        raise NotImplementedError

    def scripts(self, plan: Plan, source: Source) -> dict[str, str]:
        """The platform's own files."""
        return {"train.py": template(self.folder, "train.py")}

    def refusal(self, plan: Plan, model: ModelSpec, source: Source) -> str | None:
        """Tasks, models and rows that no script of ours is for; then what the platform cannot do."""
        return task_refusal(plan, model, source) or self.plan_refusal(plan, model)

    def command(self, plan: Plan) -> tuple[str, ...]:
        """`python train.py`, through accelerate where cards share or main memory helps."""
        if plan.sharding == "none":
            return ("python", "train.py")
        return ("python", "-m", "accelerate.commands.launch", "--config_file", "accelerate.yaml", "train.py")

    def files(self, plan: Plan, model: ModelSpec, source: Source, forecast: Forecast | None) -> dict[str, str]:
        """Scripts, settings, versions and a page to read; the values stand in YAML only, never in code."""
        found = self.scripts(plan, source)
        found |= {name: template("common", name) for name in COMMON}
        values = self.config(plan, model, source.model_ref)
        values["training"]["report_to"] = list(source.report_to) or "none"
        sections = (dump_commented({key: value}, self.comments) for key, value in values.items())
        found["config.yaml"] = "\n".join((self.header, *sections))
        found["requirements.txt"] = "\n".join(self.pins(plan, source)) + "\n"
        if plan.sharding != "none":
            found["accelerate.yaml"] = yaml.safe_dump(accelerate_config(plan), sort_keys=False)
        trainable = get_method(plan.method).trainable_parameters(model, plan)
        found["README.md"] = readme(plan, model, source, trainable, " ".join(self.command(plan)), forecast)
        return found


def task_refusal(plan: Plan, model: ModelSpec, source: Source) -> str | None:
    """Tasks that no project is written for, models that are not for the task, and rows that it cannot learn from."""
    platform = load_platforms()[plan.platform]
    if plan.task not in platform.emitted_tasks:
        tasks = ", ".join(platform.emitted_tasks)
        return f"the task {plan.task} is not emitted for {platform.name} yet, only {tasks}"
    kinds = ("causal-lm", "encoder") if plan.task == "classification" else ("causal-lm",)
    if model.kind not in kinds:
        return f"{model.name} is an {model.kind}: only causal language models are emitted"
    forms = TASK_FORMS[plan.task]
    if source.form not in forms:
        return f"the task {plan.task} needs rows of {' or '.join(forms)}, not {source.form}"
    if plan.packing and plan.task not in PACKED_TASKS:
        return f"rows of {source.form} are not packed"
    return None


def option_refusal(plan: Plan, known: frozenset[str]) -> str | None:
    """Options that nobody would read."""
    unknown = sorted(set(plan.method_options) - known)
    if not unknown:
        return None
    knows = f" (it knows {', '.join(sorted(known))})" if known else ""
    return f"{plan.method} knows no option {', '.join(unknown)}{knows}"


def optimizer_refusal(plan: Plan) -> str | None:
    """What transformers' Trainer does not do around the step."""
    if plan.optimizer in ("muon", "adamw_torch_forloop"):
        return f"transformers has no optim named {plan.optimizer}"
    if not plan.zero_grad_set_to_none:
        return "transformers' Trainer always frees gradients (zero_grad_set_to_none)"
    return None

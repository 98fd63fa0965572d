"""What the child process does not import: as long as the rest takes would go to modules that a trace never calls.

torch's compiler (imported by the first function that is excluded from it), sympy with torch's symbolic sizes, pandas
with datasets (imported by TRL's utils and DPO trainer), a table of transformers' that stands in two places. They are
replaced by modules that answer every name, most of them with something that does nothing; submodules are still the real
ones. What libraries can do without is said to be missing: packages, and on one card torch.distributed.
"""

import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from estimators.simulate.plain_sizes import ANSWERS

COMPILER = "torch._dynamo"
ASKED_FOR = {  # by torch.distributed's start and by accelerate's is_compiled_module
    "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
    "eval_frame": SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {})),
}
MODELS = "transformers.models"  # reads its 1,700 files for their names, as transformers just did
REAL_SUBMODULES = (COMPILER, MODELS)
SIZES = "torch.fx.experimental.symbolic_shapes"
WHOLE = (  # needless where tensors are whole, and their sizes numbers
    "torch.utils._sympy.functions", "sympy", "torch._dynamo.source",
    "torch.distributed.tensor",  # torch's own C++ asks it for the class
)  # fmt: skip
TABLES = ("pandas", "datasets", "datasets.fingerprint")
OPTIONAL = ("PIL", "jinja2", "rich", "sentencepiece")  # for images, chat templates, printing, tokenizers
QUANTIZER = "bitsandbytes"
METHODS = "peft.tuners"
# PEFT itself, or others of its methods, use these
SHARED_METHODS = frozenset({"lora", "prompt_tuning", "cartridge", "trainable_tokens"})


def skip_needless_imports(*, sharded: bool, quantizes: bool) -> None:
    """Put stand-ins in place, where the real modules are not there already. Call after `import torch`.

    sharded: DTensors are used, and propagate their placements with symbolic sizes. quantizes: weights or optimizer
    states are bitsandbytes'.
    """
    import torch

    if not sharded:
        torch.distributed.is_available = lambda: False
    for name in OPTIONAL if quantizes else (*OPTIONAL, QUANTIZER):
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # Python's own way to say: not installed

    if COMPILER not in sys.modules:
        torch._dynamo = _stand_in(COMPILER, lambda _: _undecorated)
        vars(torch._dynamo).update(ASKED_FOR)
    if SIZES not in sys.modules and not sharded:
        vars(_stand_in(SIZES, lambda name: type(name, (Exception,), {}))).update(ANSWERS)
    for name in TABLES if sharded else (*WHOLE, *TABLES):
        if name not in sys.modules and importlib.util.find_spec(name.partition(".")[0]) is not None:
            _stand_in(name, _empty_class)
    if MODELS not in sys.modules:
        _stand_in(MODELS, _model)


def skip_other_methods(method: str) -> None:
    """Of PEFT's forty methods import this one: a PEFT type, like "LORA". Call before PEFT is imported."""
    peft = importlib.util.find_spec("peft")
    places = peft.submodule_search_locations if peft is not None else None
    methods = {file.parent.name for place in places or () for file in Path(place, "tuners").glob("*/__init__.py")}
    if method.lower() in methods:  # otherwise it may be any of them (their specs are made: finding them imports PEFT)
        for name in methods - SHARED_METHODS - {method.lower()}:
            _stand_in(f"{METHODS}.{name}", _empty_class, ModuleSpec(f"{METHODS}.{name}", None))


def _empty_class(name: str) -> type:
    return type(name, (), {"__init__": lambda *_, **__: None})


def _stand_in(name: str, answer: Callable[[str], Any], spec: ModuleSpec | None = None) -> ModuleType:
    spec = spec or importlib.util.find_spec(name) or ModuleSpec(name, None)  # a stand-in's submodule cannot be found
    module = ModuleType(name)
    module.__spec__ = spec
    module.__path__ = list(spec.submodule_search_locations or ()) if name in REAL_SUBMODULES else []

    def answer_all(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return answer(attribute)

    module.__getattr__ = answer_all  # type: ignore[method-assign]
    sys.modules[name] = module
    return module


def _model(name: str) -> Any:
    """A model's package, or a class, which transformers itself finds as well."""
    if importlib.util.find_spec(f"{MODELS}.{name}") is not None:
        return importlib.import_module(f"{MODELS}.{name}")
    return getattr(sys.modules["transformers"], name)


def _undecorated(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """`disable`, `allow_in_graph` and their like, as decorators with or without arguments."""
    return function if function is not None else (lambda f: f)

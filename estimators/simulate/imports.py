"""What the child process does not import: two of seven seconds would go to modules that a trace never calls.

torch's compiler (imported by the first function that is excluded from it) and pandas with datasets (imported by
TRL's utils). Their places are taken by modules that answer every name with something that does nothing; submodules of
the compiler that hold constants are still the real ones.
"""

import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

COMPILER = "torch._dynamo"
ASKED_FOR = {  # by torch.distributed's start and by accelerate's is_compiled_module
    "trace_rules": SimpleNamespace(clear_lru_cache=lambda: None),
    "eval_frame": SimpleNamespace(OptimizedModule=type("OptimizedModule", (), {})),
}
TABLES = ("pandas", "datasets")


def skip_needless_imports() -> None:
    """Put stand-ins in place, where the real modules are not there already. Call after `import torch`."""
    import torch

    if COMPILER not in sys.modules:
        stand_in = _stand_in(COMPILER, _undecorated)
        torch._dynamo = stand_in
        vars(stand_in).update(ASKED_FOR)
    for name in TABLES:
        if name not in sys.modules and importlib.util.find_spec(name) is not None:
            _stand_in(name, type(name, (), {}))


def _stand_in(name: str, answer: Any) -> ModuleType:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    module = ModuleType(name)
    module.__spec__ = spec
    module.__path__ = list(spec.submodule_search_locations or ()) if name == COMPILER else []

    def answer_all(attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)
        return answer

    module.__getattr__ = answer_all  # type: ignore[method-assign]
    sys.modules[name] = module
    return module


def _undecorated(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """`disable`, `allow_in_graph` and their like, as decorators with or without arguments."""
    return function if function is not None else (lambda f: f)

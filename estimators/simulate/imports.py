"""What the child process does not import: three of eight seconds would go to modules that a trace never calls.

torch's compiler (imported by the first function that is excluded from it), sympy with torch's symbolic sizes, pandas
with datasets (imported by TRL's utils and DPO trainer), a table of transformers' that stands in two places. They are
replaced by modules that answer every name, most of them with something that does nothing; submodules are still the real
ones. On one card torch.distributed is said to be missing, as it is from some builds: libraries then leave it out.
"""

import importlib.metadata
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from functools import partial
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
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
NAME = re.compile(r"""["'](\w+)["']""")
TABLES = ("pandas", "datasets", "datasets.fingerprint")


def look_up_quickly() -> None:
    """Let `inspect` say from a frame alone where in the sources it is. Call before `import torch`, which asks that of
    115 frames; the answers take a tenth of its time, with paths resolved and lines read that it does not use."""
    module_of = inspect.getmodule

    def getmodule(thing: object, _filename: str | None = None) -> ModuleType | None:
        return sys.modules.get(thing.f_globals["__name__"]) if inspect.isframe(thing) else module_of(thing, _filename)

    inspect.getmodule = getmodule  # type: ignore[assignment]  # its first parameter is named `object`
    inspect.getframeinfo = partial(inspect.getframeinfo, context=0)


def skip_needless_imports(*, sharded: bool) -> None:
    """Put stand-ins in place, where the real modules are not there already. Call after `import torch`.

    sharded: DTensors are used, and propagate their placements with symbolic sizes.
    """
    import torch

    importlib.metadata.packages_distributions = _Namesakes  # TRL's question; the answer takes reading every package
    sys.meta_path.insert(0, _NamesReader())
    if not sharded:
        torch.distributed.is_available = lambda: False

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


def _empty_class(name: str) -> type:
    return type(name, (), {"__init__": lambda *_, **__: None})


def _stand_in(name: str, answer: Callable[[str], Any]) -> ModuleType:
    spec = importlib.util.find_spec(name) or ModuleSpec(name, None)  # a stand-in's submodule cannot be found
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


class _Namesakes(dict[str, list[str]]):
    """The distributions that bring a package: one of its own name."""

    def __missing__(self, name: str) -> list[str]:
        return [name]


class _NamesReader(MetaPathFinder):
    """Gives transformers' import_utils another way to find the names that a file exports: transformers asks it of all
    its 1,700 files when it is imported, and its own goes through them line by line."""

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if name != "transformers.utils.import_utils":
            return None
        sys.meta_path.remove(self)
        spec = PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                module.fetch__all__ = _exported  # type: ignore[attr-defined]

            spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _exported(source: str) -> list[str]:
    """The names in the last list that is assigned to __all__ at the start of a line."""
    start = source.rfind("\n__all__")
    return NAME.findall(source, start, source.find("]", start)) if start >= 0 else []


def _model(name: str) -> Any:
    """A model's package, or a class, which transformers itself finds as well."""
    if importlib.util.find_spec(f"{MODELS}.{name}") is not None:
        return importlib.import_module(f"{MODELS}.{name}")
    return getattr(sys.modules["transformers"], name)


def _undecorated(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    """`disable`, `allow_in_graph` and their like, as decorators with or without arguments."""
    return function if function is not None else (lambda f: f)

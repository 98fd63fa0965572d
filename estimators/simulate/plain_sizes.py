"""What torch.fx.experimental.symbolic_shapes answers where every size is a plain number, as it is in a trace.

That module brings sympy with it: 0.8 of seven seconds, and half a second in which it looks at numbers. Names and
answers are those of torch 2.13.
"""

from collections.abc import Iterator
from typing import Any


def _itself(value: Any, *_: Any, **__: Any) -> Any:
    return value


def _no(*_: Any, **__: Any) -> bool:
    return False


def _yes(*_: Any, **__: Any) -> bool:
    return True


def _none(*_: Any, **__: Any) -> None:
    return None


def _nothing(*_: Any, **__: Any) -> set[Any]:
    return set()


def _no_more(*_: Any, **__: Any) -> Iterator[Any]:
    return iter(())


def _equal(a: Any, b: Any) -> bool:
    return bool(a == b)


def _all(*values: Any) -> bool:
    return all(values)


def _any(*values: Any) -> bool:
    return any(values)


ANSWERS = {
    "guard_bool": _itself,
    "guard_int": _itself,
    "guard_or_false": _itself,
    "guard_or_true": _itself,
    "guard_size_oblivious": _itself,
    "guarding_hint_or_throw": _itself,
    "optimization_hint": _itself,
    "expect_true": _itself,
    "statically_known_true": _itself,
    "has_guarding_hint": _yes,
    "has_free_symbols": _no,
    "has_free_unbacked_symbols": _no,
    "is_nested_int": _no,
    "is_symbolic": _no,
    "free_symbols": _nothing,
    "free_unbacked_symbols": _nothing,
    "_iterate_exprs": _no_more,
    "_iterate_nodes": _no_more,
    "compute_unbacked_bindings": _none,
    "constrain_range": _none,
    "_constrain_range_for_size": _none,
    "_advise_is_bounded": _none,
    "_advise_is_size": _none,
    "sym_eq": _equal,
    "sym_and": _all,
    "sym_or": _any,
}

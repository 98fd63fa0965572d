"""What torch.fx.experimental.symbolic_shapes answers where every size is a plain number, as it is in a trace.

That module brings sympy with it: 0.8 of seven seconds, and half a second in which it looks at numbers. Names and
answers are those of torch 2.13.
"""

import operator
from collections.abc import Callable
from typing import Any

THEMSELVES = (
    "guard_bool", "guard_int", "guard_or_false", "guard_or_true", "guard_size_oblivious", "guarding_hint_or_throw",
    "optimization_hint", "expect_true", "statically_known_true",
)  # fmt: skip
NO = ("has_free_symbols", "has_free_unbacked_symbols", "is_nested_int", "is_symbolic")
NONE = (
    "compute_unbacked_bindings", "constrain_range", "_constrain_range_for_size", "_advise_is_bounded",
    "_advise_is_size",
)  # fmt: skip

ANSWERS: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(THEMSELVES, lambda value, *_, **__: value),
    **dict.fromkeys(NO, lambda *_, **__: False),
    **dict.fromkeys(NONE, lambda *_, **__: None),
    **dict.fromkeys(("free_symbols", "free_unbacked_symbols"), lambda *_, **__: set()),
    **dict.fromkeys(("_iterate_exprs", "_iterate_nodes"), lambda *_, **__: iter(())),
    "has_guarding_hint": lambda *_, **__: True,
    "sym_eq": operator.eq,
    "sym_and": lambda *values: all(values),
    "sym_or": lambda *values: any(values),
}

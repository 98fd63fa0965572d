"""A Python script as the calls that it makes with constants, read through `ast` and never run."""

import ast
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from profiles.errors import InvalidInputError

# Whether the card has bf16, in the words of Unsloth's notebooks: what depends on it is left to the card
CARD_QUESTIONS = frozenset({"is_bfloat16_supported", "is_bf16_supported"})
DTYPES = frozenset({"bfloat16", "float16", "float32"})


class Call(NamedTuple):
    """A call by its last two names (`FastLanguageModel.from_pretrained`, `SFTConfig`).

    positional: arguments without a name, where they are constants. values: those with one. computed: the code of those
    whose values only running the script would tell.
    """

    name: str
    positional: tuple[Any, ...]
    values: dict[str, Any]
    computed: dict[str, str]


class _ComputedError(Exception):
    """An expression is no constant."""


def parse_calls(text: str, where: str) -> tuple[Call, ...]:
    """All calls with named or constant arguments, in the order of the text.

    Raises:
        InvalidInputError: it is no Python; with the line.
    """
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        raise InvalidInputError(f"{where}:{error.lineno}", f"is not Python: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise InvalidInputError(where, f"is not Python: {error or type(error).__name__}") from None
    try:
        constants = _constants(tree)
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _name(node.func)]
        calls.sort(key=lambda node: (node.lineno, node.col_offset))
        return tuple(_call(node, constants) for node in calls)
    except RecursionError:
        raise InvalidInputError(where, "is nested too deeply to be read") from None


def _constants(tree: ast.AST) -> dict[str, Any]:
    """Names that are bound once, to a constant."""
    bound: Counter[str] = Counter(_bindings(tree))
    constants: dict[str, Any] = {}
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    for node in sorted(assignments, key=lambda node: node.lineno):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        for target in targets:
            for name, value in _pairs(target, node.value):
                if bound[name] == 1:
                    try:
                        constants[name] = _resolve(value, constants)
                    except _ComputedError:
                        continue
    return constants


def _pairs(target: ast.expr, value: ast.expr | None) -> Iterator[tuple[str, ast.expr]]:
    """Names with what they are bound to, also of `a, b = 1, 2`."""
    if value is None:
        return
    if isinstance(target, ast.Name):
        yield target.id, value
    elif (
        isinstance(target, ast.Tuple | ast.List)
        and isinstance(value, ast.Tuple | ast.List)
        and len(target.elts) == len(value.elts)
    ):
        for inner, its in zip(target.elts, value.elts, strict=True):
            yield from _pairs(inner, its)


def _bindings(tree: ast.AST) -> Iterator[str]:
    """Every name that something binds: assignment, loop, parameter, import, definition."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).split(".")[0]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.ExceptHandler) and node.name:
            yield node.name


def _call(node: ast.Call, constants: dict[str, Any]) -> Call:
    values: dict[str, Any] = {}
    computed: dict[str, str] = {}
    for keyword in node.keywords:
        try:
            value = _resolve(keyword.value, constants)
        except _ComputedError:
            computed[keyword.arg or "**"] = ast.unparse(keyword.value)[:60]
            continue
        if keyword.arg is not None:
            values[keyword.arg] = value
        elif isinstance(value, dict):
            values |= {str(key): inner for key, inner in value.items()}
    positional: list[Any] = []
    for argument in node.args:
        try:
            positional.append(_resolve(argument, constants))
        except _ComputedError:
            positional.append(None)
    return Call(_name(node.func), tuple(positional), values, computed)


def _name(func: ast.expr) -> str:
    """The last two parts of a dotted name; nothing of any other callee."""
    if isinstance(func, ast.Name):
        return func.id
    if isinstance(func, ast.Attribute):
        owner = _name(func.value).rsplit(".", 1)[-1]
        return f"{owner}.{func.attr}" if owner else func.attr
    return ""


def _resolve(node: ast.expr, constants: dict[str, Any]) -> Any:
    """The constant that `node` is. A question to the card is None: its answer is the card's."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name) and node.id in constants:
        return constants[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_resolve(item, constants) for item in node.elts]
    if isinstance(node, ast.Dict) and all(key is not None for key in node.keys):
        return {
            str(_resolve(key, constants)): _resolve(value, constants)
            for key, value in zip(node.keys, node.values, strict=True)
            if key is not None
        }
    if isinstance(node, ast.UnaryOp):
        return _resolve_unary(node, constants)
    if isinstance(node, ast.Attribute) and node.attr in DTYPES:
        return node.attr
    if isinstance(node, ast.Call) and _name(node.func).rsplit(".", 1)[-1] in CARD_QUESTIONS:
        return None
    raise _ComputedError


def _resolve_unary(node: ast.UnaryOp, constants: dict[str, Any]) -> Any:
    value = _resolve(node.operand, constants)
    if isinstance(node.op, ast.Not) and (value is None or isinstance(value, bool)):
        return None if value is None else not value
    if isinstance(node.op, ast.USub) and isinstance(value, int | float):
        return -value
    raise _ComputedError

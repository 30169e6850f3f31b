"""Collects every condition reason that the code can write, by reading it.

A reason is a string that goes to a parameter or field named `reason`, wherever in the operator, or is assigned to such a name or
dictionary key; and the reasons that the images' stages end with (`EXIT_CODES`), which the operator passes on.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tunesmith_contract.reasons import EXIT_CODES

ROOT = Path(__file__).resolve().parents[3]
OPERATOR = ROOT / "operator" / "tunesmith"
# Parameters named `reason` that are not a condition's: of a validation rule in a CRD, and of an answer of the API server, or instead of one.
NO_CONDITIONS = frozenset(("Conflict", "FieldValueForbidden", "FieldValueInvalid", "NotLeading", "Unknown"))
CAMEL_CASE = re.compile(r"[A-Z][A-Za-z]+")


def positions(tree: ast.AST) -> dict[str, int]:
    """Where callables take their `reason`: name -> index among the positional arguments, as a caller counts them."""
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names = [argument.arg for argument in node.args.args if argument.arg != "self"]
            if "reason" in names:
                found[node.name] = names.index("reason")
        if isinstance(node, ast.ClassDef):
            fields = [each.target.id for each in node.body if isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name)]
            if "reason" in fields:
                found[node.name] = fields.index("reason")
            inner = positions(ast.Module(node.body, []))
            found |= {node.name: inner["__init__"]} if "__init__" in inner else {}
            for base in (base.id for base in node.bases if isinstance(base, ast.Name)):
                # Subclasses take what their base takes, unless they have an __init__ of their own.
                found |= {node.name: found[base]} if base in found and "__init__" not in inner else {}
    return found


def literals(node: ast.AST) -> Iterator[str]:
    """CamelCase strings that the expression can have as its value; comparisons and keys inside it are none."""
    match node:
        case ast.Constant(value=str(text)) if CAMEL_CASE.fullmatch(text):
            yield text
        case ast.IfExp(body=body, orelse=other):
            yield from literals(body)
            yield from literals(other)
        case ast.BoolOp(values=values):
            for value in values:
                yield from literals(value)
        case ast.Call(func=ast.Attribute(attr="get"), args=[_, default]):
            yield from literals(default)


def assigned(node: ast.AST) -> Iterator[ast.AST]:
    """What an assignment gives to names `reason`."""
    if not isinstance(node, ast.Assign):
        return
    for target in node.targets:
        if isinstance(target, ast.Name) and target.id == "reason":
            yield node.value
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
            pairs = zip(target.elts, node.value.elts, strict=True)
            yield from (value for name, value in pairs if isinstance(name, ast.Name) and name.id == "reason")


def variables(tree: ast.AST) -> dict[str, list[ast.AST]]:
    """Name -> all that the module assigns to it, in whatever function."""
    found: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            found.setdefault(node.targets[0].id, []).append(node.value)
    return found


def given(node: ast.AST, where: dict[str, int]) -> Iterator[ast.AST]:
    """What a node gives as a reason."""
    yield from assigned(node)
    match node:
        case ast.Call(func=function, args=arguments, keywords=keywords):
            name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
            yield from (keyword.value for keyword in keywords if keyword.arg == "reason")
            if name in where and len(arguments) > where[name]:
                yield arguments[where[name]]
        case ast.Dict(keys=keys, values=values):
            pairs = zip(keys, values, strict=True)
            yield from (value for key, value in pairs if isinstance(key, ast.Constant) and key.value == "reason")


def collect() -> dict[str, str]:
    """Reason -> the file that first gives it."""
    trees = {path: ast.parse(path.read_text()) for path in sorted(OPERATOR.rglob("*.py"))}
    where: dict[str, int] = {}
    for _ in range(2):
        # A second time for subclasses in files that come before their base's.
        for tree in trees.values():
            where |= positions(tree)
    found: dict[str, str] = {}
    for path, tree in trees.items():
        named = variables(tree)
        values = [value for node in ast.walk(tree) for value in given(node, where)]
        values += [value for name in values if isinstance(name, ast.Name) for value in named.get(name.id, ())]
        for reason in (text for value in values for text in literals(value)):
            found.setdefault(reason, str(path.relative_to(ROOT)))
    found = {reason: path for reason, path in found.items() if reason not in NO_CONDITIONS}
    return found | dict.fromkeys(EXIT_CODES, "contract/tunesmith_contract/reasons.py")

"""Was a method extracted? Found in the syntax trees of a Python program before and after.

True where the program after has a new function whose body matches statements (or one expression) that left an old
function, up to names, and where a call of it stands in their place and nothing else of that function has changed. The
arguments of the call are not judged: whether the program still does the same is for tests to say.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

Function = ast.FunctionDef | ast.AsyncFunctionDef
_BLOCKS = ("body", "orelse", "finalbody")


def extracted(before: str, after: str) -> str:
    """Name of the first extracted function; empty where there is none, or where one of the programs does not parse."""
    try:
        old, new = _functions(ast.parse(before)), _functions(ast.parse(after))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ""
    for name in new:
        if name in old or not _own(new[name]):
            continue
        for shared in old:
            if shared in new and _same(old[shared].args, new[shared].args) and \
                    _left(old[shared].body, new[shared].body, new[name], _local(old[shared])):
                return name
    return ""


def _functions(tree: ast.Module) -> dict[str, Function]:
    """Functions and methods by their names, those of classes with the class's."""
    found: dict[str, Function] = {}
    for node in tree.body:
        if isinstance(node, Function):
            found[node.name] = node
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{n.name}": n for n in node.body if isinstance(n, Function)}
    return found


def _own(function: Function) -> list[ast.stmt]:
    """The statements of a function without its docstring."""
    first = function.body[0]
    told = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return function.body[1:] if told else list(function.body)


def _local(function: Function) -> frozenset[str]:
    """Parameters and names that a function binds: those that may have another name in the extracted one."""
    arguments = function.args
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs, arguments.vararg, arguments.kwarg]
    bound = {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
    return frozenset(bound | {a.arg for a in given if a})


def _left(before: Sequence[ast.stmt], after: Sequence[ast.stmt], helper: Function, local: frozenset[str]) -> bool:
    """Whether some statements of a block are the helper's body now, with a call of it in their place."""
    for at, statement in enumerate(after):
        rest = len(after) - at - 1
        taken = before[at:len(before) - rest]
        same = _alike(before[:at], after[:at]) and _alike(before[len(before) - rest:], after[at + 1:])
        if not same or not taken:
            continue
        if _calls(statement, helper) and (_moved(taken, statement, helper, local) or
                                          (len(taken) == 1 and _inlined(taken[0], statement, helper, local))):
            return True
        if len(taken) == 1 and _inside(taken[0], statement, helper, local):
            return True
    return False


def _inside(before: ast.stmt, after: ast.stmt, helper: Function, local: frozenset[str]) -> bool:
    """The same within a compound statement of which one block alone has changed."""
    if type(before) is not type(after):
        return False
    changed = [name for name, value in ast.iter_fields(before) if not _same(value, getattr(after, name))]
    return len(changed) == 1 and changed[0] in _BLOCKS and _left(
        getattr(before, changed[0]), getattr(after, changed[0]), helper, local)


def _moved(taken: Sequence[ast.stmt], call: ast.stmt, helper: Function, local: frozenset[str]) -> bool:
    """Whether the helper's statements are those that were taken, its last one perhaps giving back what they bound."""
    own = _own(helper)
    if isinstance(call, ast.Return):  # what was taken ended with the return itself
        return _renamed(taken, own, local)
    last = own[-1]
    if not isinstance(last, ast.Return):
        return isinstance(call, ast.Expr) and _renamed(taken, own, local)
    if not isinstance(call, ast.Assign | ast.AugAssign | ast.AnnAssign) or last.value is None:
        return False
    names = last.value.elts if isinstance(last.value, ast.Tuple) else [last.value]
    if all(isinstance(n, ast.Name) for n in names) and _renamed(taken, own[:-1], local):
        return True
    final = taken[-1]  # x = e became return e
    return isinstance(final, ast.Assign) and isinstance(call, ast.Assign) and _alike(final.targets, call.targets) and \
        _renamed([*taken[:-1], ast.Return(final.value)], own, local)


def _inlined(before: ast.stmt, after: ast.stmt, helper: Function, local: frozenset[str]) -> bool:
    """Whether one expression of a statement is what the helper returns, and its call stands there."""
    own = _own(helper)
    if len(own) != 1 or not isinstance(own[0], ast.Return) or own[0].value is None:
        return False
    places = [(b, a) for b, a in _differing(before, after) if _is_call(a, helper)]
    return len(places) == 1 and len(list(_differing(before, after))) == 1 and isinstance(places[0][0], ast.expr) and \
        _renamed([places[0][0]], [own[0].value], local)


def _differing(before: ast.AST, after: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """The outermost pairs of nodes in which two trees differ."""
    if _same(before, after):
        return
    pairs: list[tuple[ast.AST, ast.AST]] = []
    if type(before) is type(after):
        for name, value in ast.iter_fields(before):
            other = getattr(after, name)
            if isinstance(value, ast.AST) and isinstance(other, ast.AST):
                pairs.append((value, other))
            elif isinstance(value, list) and isinstance(other, list) and len(value) == len(other) and \
                    all(isinstance(v, ast.AST) for v in [*value, *other]):
                pairs += zip(value, other, strict=True)
            elif value != other:
                pairs = []
                break
        else:
            found = [d for b, a in pairs for d in _differing(b, a)]
            if len(found) == 1 or not isinstance(before, ast.expr):
                yield from found
                return
    yield before, after


def _renamed(taken: Sequence[ast.AST], own: Sequence[ast.AST], local: frozenset[str]) -> bool:
    """Whether two lists of trees are the same but for the names of local variables, one name for one."""
    if len(taken) != len(own):
        return False
    there: dict[str, str] = {}
    back: dict[str, str] = {}

    def name(old: str, new: str) -> bool:
        if old not in local:
            return old == new
        return there.setdefault(old, new) == new and back.setdefault(new, old) == old

    def match(old: object, new: object) -> bool:
        if isinstance(old, ast.Name) and isinstance(new, ast.Name):
            return type(old.ctx) is type(new.ctx) and name(old.id, new.id)
        if isinstance(old, ast.AST) and isinstance(new, ast.AST):
            return type(old) is type(new) and all(match(v, getattr(new, n)) for n, v in ast.iter_fields(old))
        if isinstance(old, list) and isinstance(new, list):
            return len(old) == len(new) and all(map(match, old, new))
        return type(old) is type(new) and old == new

    return all(map(match, taken, own))


def _calls(statement: ast.stmt, helper: Function) -> bool:
    return any(_is_call(node, helper) for node in ast.walk(statement))


def _is_call(node: ast.AST, helper: Function) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return bool(called == helper.name)


def _same(one: object, two: object) -> bool:
    if isinstance(one, ast.AST) and isinstance(two, ast.AST):
        return ast.dump(one) == ast.dump(two)
    if isinstance(one, list) and isinstance(two, list):
        return _alike(one, two)
    return one == two


def _alike(one: Sequence[object], two: Sequence[object]) -> bool:
    return len(one) == len(two) and all(map(_same, one, two))

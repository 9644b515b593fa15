"""Python programs as `code-bleu` compares them: words, subtrees of the syntax tree, and where values come from.

Nothing of a program is run: it is read by `ast`.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence

Flow = tuple[str, str, tuple[str, ...]]

_WORD = re.compile(r"[^\W\d]\w*|\d[\w.]*|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'|\S")
_COMMENT = re.compile(r"#[^\n]*")


def code_words(text: str) -> list[str]:
    """Names, numbers, strings of one line, and single signs, without comments; programs that don't parse have words, too."""
    return _WORD.findall(_COMMENT.sub("", text))


def parsed(text: str) -> ast.Module | None:
    """The syntax tree without docstrings, or nothing for what does not parse or is empty."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node):
            node.body = node.body[1:]
    return tree if tree.body else None


def subtrees(tree: ast.AST) -> Counter[str]:
    """Every subtree with children, as its kinds of nodes in order: names, numbers and strings themselves are left out."""
    found: Counter[str] = Counter()

    def shape(node: ast.AST) -> str:
        # Where a name stands (loaded or stored) is said by what stands around it.
        parts = [shape(child) for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr_context)]
        kind = type(node).__name__
        if not parts:
            return kind
        whole = f"({kind} {' '.join(parts)})"
        found[whole] += 1
        return whole

    shape(tree)
    return found


def flows(tree: ast.AST) -> Counter[Flow]:
    """Where values come from: (variable, "computedFrom", variables of the value) for each assignment, (variable, "comesFrom",
    the variable) for each use of what was assigned before. Variables are named var_0, var_1, … as they first occur in these."""
    known: dict[str, str] = {}

    def name(variable: str) -> str:
        return known.setdefault(variable, f"var_{len(known)}")

    reader = _Reader()
    reader.visit(tree)
    return Counter((name(to), how, tuple(name(v) for v in source)) for to, how, source in reader.found)


class _Reader(ast.NodeVisitor):
    """The same by the variables' own names, in the order of the program.

    A name is one variable in the whole program, and a loop's body is read once: what comes round from its end to its beginning
    is not seen.
    """

    def __init__(self) -> None:
        self.found: list[Flow] = []
        self.known: set[str] = set()

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id in self.known:
            self.found.append((node.id, "comesFrom", (node.id,)))

    def visit_arguments(self, node: ast.arguments) -> None:
        self.generic_visit(node)  # defaults
        given = (*node.posonlyargs, *node.args, *node.kwonlyargs, *filter(None, (node.vararg, node.kwarg)))
        self.known.update(a.arg for a in given)

    def visit_Assign(self, node: ast.Assign) -> None:
        self._bind(node.targets, node.value)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        self._bind([node.target], node.value, own=True)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind([node.target], node.value)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind([node.target], node.value)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self._bind([node.target], node.iter)
        for child in (*node.body, *node.orelse):
            self.visit(child)

    visit_AsyncFor = visit_For

    def visit_withitem(self, node: ast.withitem) -> None:
        self._bind([node.optional_vars] if node.optional_vars else [], node.context_expr)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind([node.target], node.iter)
        for condition in node.ifs:
            self.visit(condition)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:  # they bind what the element uses
            self.visit(generator)
        for part in ([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt]):
            self.visit(part)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def _bind(self, targets: Sequence[ast.expr], value: ast.expr, own: bool = False) -> None:
        """Targets get a value; `own`: what they had goes in, too."""
        before = len(self.found)
        self.visit(value)
        sources = [variable for variable, how, _ in self.found[before:] if how == "comesFrom"]
        for target in targets:
            self.visit(target)  # a[i] = x uses a and i
            for variable in [n.id for n in ast.walk(target) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]:
                given = ([variable] if own and variable in self.known else []) + sources
                if given:
                    self.found.append((variable, "computedFrom", tuple(dict.fromkeys(given))))
                self.known.add(variable)

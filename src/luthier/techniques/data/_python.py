"""Python functions within passages of code: parsed where they stand, so that every slice is the passage's own text."""

from __future__ import annotations

import ast
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.core.example import Passage

Function = ast.FunctionDef | ast.AsyncFunctionDef
_CLASS = re.compile(r"class\s+(\w+)")
# An indented passage is parsed below this line, which leaves its letters where they are.
_ABOVE = "if 1:\n"


@dataclass(frozen=True)
class Found:
    """A function of a passage: its name within the module and where it is."""

    name: str
    node: Function
    lines: tuple[str, ...]
    above: int

    def text(self, node: ast.AST) -> str:
        """The letters of a node, as they stand in the passage."""
        first, last = node.lineno - 1 - self.above, node.end_lineno - 1 - self.above  # type: ignore[attr-defined]
        rows = [line.encode() for line in self.lines[first:last + 1]]
        rows[-1] = rows[-1][:node.end_col_offset]  # type: ignore[attr-defined]
        rows[0] = rows[0][node.col_offset:]  # type: ignore[attr-defined]
        return b"\n".join(rows).decode()


def functions(passage: Passage) -> list[Found] | None:
    """The whole functions of a passage, methods by `Class.method`; None when its text is no Python."""
    text, above = passage.text, 0
    if text[:1] in (" ", "\t"):
        text, above = _ABOVE + text, 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape in somebody else's code is not ours to announce
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    outer = [match[1] for heading in passage.headings if (match := _CLASS.match(heading))]
    lines = tuple(passage.text.split("\n"))
    # The passage may be the class itself, whose name is then a heading too.
    holds = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    prefix = [name for name in outer if name not in holds]
    return [Found(".".join([*prefix, *path, node.name]), node, lines, above) for path, node in _walk(tree, ())]


def _walk(node: ast.AST, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield path, child
        elif isinstance(child, ast.ClassDef):
            yield from _walk(child, (*path, child.name))
        elif isinstance(child, (ast.If, ast.Try, ast.With)):
            yield from _walk(child, path)


def docstring_of(node: Function) -> ast.Expr | None:
    """The statement that is a function's docstring."""
    first = node.body[0]
    holds = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str)
    return first if holds else None  # type: ignore[return-value]

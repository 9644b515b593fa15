"""What Python's own tools say of a function, as labels that cost nothing: tags of tokens, its tree, its complexity."""

from __future__ import annotations

import ast
import importlib
import inspect
import io
import keyword
import textwrap
import tokenize
from collections.abc import Iterator
from functools import cache

TAGS = ("keyword", "name", "number", "string", "operator")
LIBRARY = (
    "argparse", "ast", "bisect", "calendar", "configparser", "copy", "csv", "dataclasses", "difflib", "dis",
    "fnmatch", "fractions", "functools", "gettext", "glob", "heapq", "inspect", "json.decoder",
    "json.encoder", "linecache", "locale", "mailbox", "netrc", "optparse", "pathlib", "pickletools",
    "pkgutil", "platform", "pprint", "random", "shlex", "shutil", "statistics", "string", "tarfile",
    "tempfile", "textwrap", "timeit", "tokenize", "traceback", "types", "uuid", "warnings", "zipfile")
COMPLEXITIES = 6  # 1 to 5, and more
MOST_CHARACTERS = 1500
_BRANCHES = (ast.If, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.IfExp)


def token_tags(code: str) -> list[tuple[int, int, str]]:
    """(first character, one after the last, tag) of each token of a program; layout and comments have none."""
    starts = [0]
    for line in code.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    found = []
    for token in tokenize.generate_tokens(io.StringIO(code).readline):
        tag = {tokenize.NAME: "keyword" if keyword.iskeyword(token.string) else "name", tokenize.NUMBER: "number",
               tokenize.STRING: "string", tokenize.OP: "operator"}.get(token.type)
        if tag:
            found.append((starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1], tag))
    return found


def complexity(code: str) -> int:
    """McCabe's cyclomatic number: 1 + branches, loops, handlers, cases, clauses of comprehensions, and `and` / `or`."""
    count = 1
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, _BRANCHES):
            count += 1
        elif isinstance(node, ast.comprehension):
            count += 1 + len(node.ifs)
        elif isinstance(node, ast.BoolOp):
            count += len(node.values) - 1
        elif isinstance(node, ast.match_case):
            count += not (isinstance(node.pattern, ast.MatchAs) and node.pattern.pattern is None and node.guard is None)
    return count


def tree_of(code: str) -> str:
    """The syntax tree as a sequence by structure-based traversal: ( kind children ) kind, lower-cased; contexts left out."""
    def told(node: ast.AST) -> Iterator[str]:
        kind = type(node).__name__.lower()
        yield f"( {kind}"
        for child in ast.iter_child_nodes(node):
            if not isinstance(child, ast.expr_context):
                yield from told(child)
        yield f") {kind}"

    return " ".join(told(ast.parse(code)))


def library(most: int) -> list[str]:
    """Functions and methods of Python's own library with their source, of this interpreter's version; each once."""
    found = _sources()
    return [found[i * len(found) // min(most, len(found))] for i in range(min(most, len(found)))]


@cache
def _sources() -> list[str]:
    """All of them."""
    found: dict[str, None] = {}
    for name in LIBRARY:
        module = importlib.import_module(name)
        tree = ast.parse(text := inspect.getsource(module))
        lines = text.splitlines(keepends=True)
        members = [m for top in tree.body for m in (top.body if isinstance(top, ast.ClassDef) else [top])]
        for member in members:
            if isinstance(member, ast.FunctionDef) and member.end_lineno:
                code = textwrap.dedent("".join(lines[member.lineno - 1:member.end_lineno]))
                if len(code) <= MOST_CHARACTERS and code.count("\n") > 2 and _reads(code):
                    found[code] = None
    return list(found)


def _reads(code: str) -> bool:
    """Whether Python reads it by itself: text that is not indented with its block does not."""
    try:
        ast.parse(code)
        token_tags(code)
    except (SyntaxError, tokenize.TokenError):
        return False
    return True

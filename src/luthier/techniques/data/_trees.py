"""Definitions in a tree-sitter tree: where one begins and ends, its signature, and what is broken."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.techniques.data._languages import EXTRA, Language

if TYPE_CHECKING:
    from tree_sitter import Node, Parser

# A signature longer than this is its beginning in a heading; the text holds the whole.
_SIGNATURE_LETTERS = 200
# Wrappers around a definition.
_DEEPEST = 8
_KEYWORD = re.compile(r"(?:async\s+def|def|function\*?|func|fn)\s+")
_REST_OF_LINE = re.compile(rb"[ \t;,]*(?:(?:#|//|--)[^\n]*)?(?:\n|\Z)")
_REMARKS = ("comment", "line_comment", "block_comment", "marginalia")
_FUNCTION_VALUES = ("arrow_function", "function_expression", "function")


@cache
def parser(language: Language) -> Parser:
    """Raises UserError naming the extra."""
    try:
        import tree_sitter

        grammar: Any = getattr(import_module(language.module), language.grammar)
    except ImportError as error:
        raise UserError(f"read-code: {language.name} files need {error.name or language.module}, which is not installed: "
                        f"pip install 'luthier[{EXTRA}]'") from None
    return tree_sitter.Parser(tree_sitter.Language(grammar()))


def errors(root: Node) -> tuple[int, int]:
    """Errors of a tree, and the bytes that lie within them."""
    stack, count, within = [root], 0, 0
    while stack:
        node = stack.pop()
        if node.is_error or node.is_missing:
            count += 1
            within += node.end_byte - node.start_byte
        elif node.has_error:
            stack.extend(node.children)
    return count, within


def definition(node: Node, language: Language) -> Node | None:
    """The definition that a node is or wraps; a value counts where it is a function."""
    for _ in range(_DEEPEST):
        if node.type in ("lexical_declaration", "variable_declaration"):
            value = next((c.child_by_field_name("value") for c in node.named_children), None)
            named = value is not None and value.type in _FUNCTION_VALUES
            return node if named and node.type in language.functions else None
        if node.type in language.functions or node.type in language.holders:
            return node
        if node.type not in language.wrappers:
            return None
        kinds = language.functions | language.holders | language.wrappers
        inner = next((c for c in node.named_children if c.type in kinds), None)
        if inner is None:
            return None
        node = inner
    return None


def docstring(members: Sequence[Node]) -> Node | None:
    first = next((m for m in members if m.type != "comment"), None)
    holds = first is not None and first.type == "expression_statement" and first.named_child_count == 1
    return first if holds and first.named_children[0].type == "string" else None  # type: ignore[union-attr]


def with_comments(members: Sequence[Node], i: int, language: Language) -> Node:
    """The first of the comments and attributes that stand directly above member `i`, or the member itself."""
    first = members[i]
    while i and members[i - 1].type in language.leading:
        above = members[i - 1]
        # Some grammars end a comment at the start of the next line.
        if first.start_point[0] - above.end_point[0] > (1 if above.end_point[1] else 0):
            break
        if i > 1 and members[i - 2].end_point[0] == above.start_point[0] and members[i - 2].type not in language.leading:
            break  # a remark at the end of another line
        first, i = above, i - 1
    return first


def line_start(data: bytes, at: int) -> int:
    """Where a definition's line begins if nothing but white space stands before it there."""
    start = data.rfind(b"\n", 0, at) + 1
    return start if not data[start:at].strip() else at


def line_end(data: bytes, at: int, end: int) -> int:
    """Behind the line's end if only a remark or a closing sign follows there."""
    match = _REST_OF_LINE.match(data, at, end)
    return match.end() if match else at


def signature(data: bytes, node: Node) -> str:
    """What stands before the body, on one line, without the keyword of a function."""
    body = node.child_by_field_name("body")
    if body is None and node.type in ("lexical_declaration", "variable_declaration"):
        value = next((c.child_by_field_name("value") for c in node.named_children), None)
        body = value.child_by_field_name("body") if value is not None else None
    end = body.start_byte if body is not None else node.end_byte
    raw = bytearray(data[node.start_byte:end])
    parts = [part for child in node.children if child.start_byte < end for part in (child, *child.children)]
    for remark in (part for part in parts if part.type in _REMARKS and part.start_byte < end):
        raw[remark.start_byte - node.start_byte:remark.end_byte - node.start_byte] = b" " * (
            min(remark.end_byte, end) - remark.start_byte)
    text = raw.decode("utf-8", "replace")
    if body is None:
        text = re.split(r"[{;]|\n\s*\n|\bAS\b|\bend\s*\Z", text, maxsplit=1)[0]
    flat = " ".join(text.split())
    flat = _KEYWORD.sub("", flat.rstrip(":{ ").removesuffix("=>").rstrip(), count=1) if flat else ""
    flat = flat.replace("( ", "(").replace(", )", ")").replace(" )", ")")
    if len(flat) > _SIGNATURE_LETTERS:
        flat = flat[:flat.rfind(" ", 0, _SIGNATURE_LETTERS) + 1 or _SIGNATURE_LETTERS].rstrip() + " …"
    return flat or node.type



"""signature-questions: questions about the signatures of Python functions, made by rules from passages of code.

Parameters, their types and defaults, the type that is returned, and the error that is raised where there is one: each
answer is a slice of the passage, letter by letter. Answers that run over several lines are left out, and so is what says
nothing (a default of None, an error that is raised again).

When it helps: a first set of questions about code without any model; a check of a model's questions. Source: the rule
mode of Mathav Raj et al. 2024, "Fine Tuning LLM for Enterprise". Seed 126.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._python import Found, functions
from luthier.techniques.data._questions import written

_SELF = ("self", "cls")


class SignatureQuestions(DataStep, name="signature-questions", seeds=[126]):
    """Asks for parameters, defaults, types and errors of functions; needs no model."""

    max_answer_letters: int = Field(120, ge=1, description="longer answers are left out")
    private: bool = Field(False, description="ask about functions whose name begins with _ too")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        """The questions of each passage, in the order of its functions; a reason for one that is no Python."""
        asked: set[str] = set()
        for passage in rows:
            found = functions(passage)
            if found is None:
                yield Dropped(f"{self.info.name}/{passage.id}", "no whole Python code")
                continue
            number = 0
            for function in found:
                if function.node.name.startswith("_") and not self.private:
                    continue
                for text, answer in _pairs(function):
                    fits = "\n" not in answer and 0 < len(answer) <= self.max_answer_letters
                    if text in asked or not fits:
                        continue
                    asked.add(text)
                    yield written(passage, number, self.info.name, text, answer)
                    number += 1


def _pairs(function: Found) -> Iterator[tuple[str, str]]:
    name, node = function.name, function.node
    arguments = node.args
    named = [*arguments.posonlyargs, *arguments.args]
    taken = [a for i, a in enumerate(named) if i or a.arg not in _SELF]
    if taken and not (arguments.vararg or arguments.kwonlyargs or arguments.kwarg):
        yield f"Which parameters does {name} take?", _between(function, taken[0], _last(function, named, arguments))
    defaults = dict(zip([a.arg for a in named][-len(arguments.defaults):] if arguments.defaults else [],
                        arguments.defaults, strict=True))
    defaults |= {a.arg: d for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None}
    for parameter in [*taken, *arguments.kwonlyargs]:
        if parameter.annotation is not None:
            yield f"What is the type of the parameter {parameter.arg} of {name}?", function.text(parameter.annotation)
        default = defaults.get(parameter.arg)
        if default is not None and not (isinstance(default, ast.Constant) and default.value is None):
            yield f"What is the default of the parameter {parameter.arg} of {name}?", function.text(default)
    if node.returns is not None and not (isinstance(node.returns, ast.Constant) and node.returns.value is None):
        yield f"What type does {name} return?", function.text(node.returns)
    errors = {function.text(e): None for e in _raised(node)}
    if len(errors) == 1:
        yield f"Which error does {name} raise?", next(iter(errors))


def _last(function: Found, named: list[ast.arg], arguments: ast.arguments) -> ast.AST:
    """The default of the last parameter where it has one, else the parameter."""
    return arguments.defaults[-1] if arguments.defaults else named[-1]


def _between(function: Found, first: ast.AST, last: ast.AST) -> str:
    span = ast.Expr(ast.Constant(0))
    span.lineno, span.col_offset = first.lineno, first.col_offset  # type: ignore[attr-defined]
    span.end_lineno, span.end_col_offset = last.end_lineno, last.end_col_offset  # type: ignore[attr-defined]
    return function.text(span)


def _raised(node: ast.AST) -> Iterator[ast.AST]:
    """The names of what a function raises itself; not what functions within it do."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)):
            continue
        if isinstance(child, ast.Raise) and child.exc is not None:
            raised = child.exc.func if isinstance(child.exc, ast.Call) else child.exc
            name = raised.attr if isinstance(raised, ast.Attribute) else getattr(raised, "id", "")
            if name[:1].isupper():  # a variable that is raised again says nothing
                yield raised
        yield from _raised(child)

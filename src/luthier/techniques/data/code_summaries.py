"""code-summaries: rows "summary -> function" from passages of Python.

For every whole function of a passage the question is its summary, the first paragraph of its docstring (or one given by
name in `summaries`), and the answer its source, moved to the left margin. The docstring is taken out of the answer unless
`keep_docstring`: the model would copy the question. Every answer is parsed again, and its syntax tree must equal that of
the source; the lines within a string stay as they are.

When it helps: to teach a model the functions of a code base by what they are for. Source: Mathav Raj et al. 2024,
"Fine Tuning LLM for Enterprise: Practical Guidelines and Recommendations", section on code recipes. Seed 126.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage, question
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._python import Found, Function, docstring_of, functions


class CodeSummaries(DataStep, name="code-summaries", seeds=[126]):
    """Writes rows from the summary of a function to its source; needs no model."""

    instruction: str = Field("Write the Python function {name}: {summary}",
                             description="the question; {name} and {summary} are filled in")
    keep_docstring: bool = Field(False, description="leave the docstring in the function that is to be written")
    summaries: dict[str, str] = Field({}, description="summaries of functions without a docstring, by name (Class.method)")
    min_summary_words: int = Field(3, ge=1, description="a shorter summary says too little; the function is left out")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        """An example, or a reason, for each function; a reason for each passage that is no Python."""
        for passage in rows:
            found = functions(passage)
            if found is None:
                yield Dropped(f"{self.info.name}/{passage.id}", "no whole Python code")
                continue
            for number, function in enumerate(found):
                name = f"{self.info.name}/{passage.id}/{number}"
                summary = self._summary(function)
                if len(summary.split()) < self.min_summary_words:
                    yield Dropped(name, "no summary", function.name)
                    continue
                target, why = self._target(function)
                if why:
                    yield Dropped(name, why, function.name)
                    continue
                asked = self.instruction.replace("{name}", function.name).replace("{summary}", summary)
                yield question(name, asked, target, source=passage.id, cluster=passage.section, references=(target,),
                               task="code", meta={"generator": self.info.name, "gold": [passage.id],
                                                  "headings": list(passage.headings)})

    def _summary(self, function: Found) -> str:
        docstring = ast.get_docstring(function.node) or inspect.cleandoc(self.summaries.get(function.name, ""))
        return " ".join(docstring.split("\n\n")[0].split())

    def _target(self, function: Found) -> tuple[str, str]:
        """Source of the answer, or empty and the reason."""
        wanted, docstring = function.node, docstring_of(function.node)
        text = _at_margin(function)
        if docstring is not None and not self.keep_docstring:
            if len(wanted.body) == 1:
                return "", "nothing but a docstring"
            text = _without(text, docstring_of(_parsed(text) or wanted) or docstring)
            wanted = _bare(wanted)
        made = _parsed(text)
        if made is None or ast.dump(made) != ast.dump(wanted):
            return "", "its source can't be moved without change"
        return text, ""


def _bare(node: Function) -> Function:
    """The function without its docstring; the original is left as it is."""
    values = {name: getattr(node, name) for name in node._fields}
    return type(node)(**{**values, "body": node.body[1:]})


def _parsed(text: str) -> Function | None:
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError):
        return None
    return body[0] if len(body) == 1 and isinstance(body[0], Function) else None


def _at_margin(function: Found) -> str:
    """The function's lines, decorators included, moved left; the lines within strings stay."""
    node = function.node
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
    within = {n for part in ast.walk(node) if isinstance(part, (ast.Constant, ast.JoinedStr))
              for n in range(part.lineno + 1, (part.end_lineno or part.lineno) + 1)}
    end = node.end_lineno or node.lineno
    lines = list(function.lines[first - 1 - function.above:end - function.above])
    lines[-1] = lines[-1].encode()[:node.end_col_offset].decode()
    indent = len(lines[0]) - len(lines[0].lstrip())
    return "\n".join(line if first + i in within or line[:indent].strip() else line[indent:]
                     for i, line in enumerate(lines))


def _without(text: str, statement: ast.Expr) -> str:
    """The text without one statement, and without the lines that are empty then."""
    lines = text.encode().split(b"\n")
    first, last = statement.lineno - 1, (statement.end_lineno or statement.lineno) - 1
    before, after = lines[first][:statement.col_offset], lines[last][statement.end_col_offset:]
    rest = after.lstrip(b" \t;")
    joined = [before + rest] if (before + rest).strip() else []
    return b"\n".join([*lines[:first], *joined, *lines[last + 1:]]).decode()

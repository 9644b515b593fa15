"""code-search: functions of Python's library and what their docstrings say first; the docstring is taken out of the code.

`problem: search` has rows whose question is that first sentence and whose part `document` is the code. `clones` has two
programs as one text, and whether they are of one family: the second is the first with other names for arguments and local
variables, or another function written anew in the same way. Versions of Python differ in a few functions.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn
from luthier.core.rng import Rng
from luthier.core.step import Ctx, Step
from luthier.studies._worlds._names import words
from luthier.techniques.evaluation._code_labels import library

EVERY = 100_000


class CodeSearch(Step, name="code-search"):
    """Real functions to be found, or to be known again."""

    output: ClassVar[str] = "examples"
    seeded: ClassVar[bool] = False
    problem: Literal["search", "clones"] = Field("search", description="what is to be learned of functions")
    train: int = Field(400, ge=2, description="functions to learn from")
    test: int = Field(160, ge=2, description="further functions to be asked about")
    seed: int = Field(0, ge=0, description="which functions; a study's training seeds leave them as they are")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where this Python's library has fewer documented functions."""
        draw = Rng(self.seed).within("code-search")
        found = list(dict(_documented()).items())
        if len(found) < self.train + self.test:
            raise UserError(f"code-search: {len(found)} documented functions are here, and {self.train + self.test} are "
                            "wanted. Ask for fewer rows.")
        order = draw("order").permutation(len(found))
        parts = {"train": [found[i] for i in order[:self.train]], "test": [found[i] for i in order[self.train:][:self.test]]}
        if self.problem == "search":
            made = {name: [_sought(f"{name}/{n}", *row) for n, row in enumerate(rows)] for name, rows in parts.items()}
            return write_examples(ctx.folder, made)
        made = {name: [self._pair(f"{name}/{n}", n, [code for _, code in rows], draw) for n in range(len(rows))]
                for name, rows in parts.items()}
        return write_examples(ctx.folder, made, labels=["other", "same"])

    def _pair(self, name: str, n: int, codes: list[str], draw: Rng) -> Example:
        rng = draw("pair", name)
        same = n % 2 == 0
        other = n if same else (n + 1 + int(rng.integers(len(codes) - 1))) % len(codes)
        text = f"{codes[n]}\n\n\n{renamed(codes[other], words(rng, 40))}"
        return Example(name, (Turn("user", (Part(text),)),), task="classify", cluster=name, label="same" if same else "other")


def _sought(name: str, said: str, code: str) -> Example:
    return Example(name, (Turn("user", (Part(code, name="document"), Part(said, name="question"))),), task="qa", cluster=name,
                   meta={"document": name})


def _documented() -> Iterator[tuple[str, str]]:
    """(first sentence of the docstring, code without it); a function that says too little is passed over."""
    for code in library(EVERY):
        tree = ast.parse(code)
        function = tree.body[0]
        if not isinstance(function, ast.FunctionDef) or len(function.body) < 2 or not ast.get_docstring(function):
            continue
        said = str(ast.get_docstring(function)).split("\n\n")[0].replace("\n", " ").strip()
        if len(said.split()) < 4:
            continue
        function.body = function.body[1:]
        yield said, ast.unparse(tree)


def renamed(code: str, names: list[str]) -> str:
    """The program with other names for its own and for its arguments and local variables."""
    tree = ast.parse(code)
    own = sorted({n.id for n in ast.walk(tree) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
                 | {n.arg for n in ast.walk(tree) if isinstance(n, ast.arg)}
                 | {n.name for n in tree.body if isinstance(n, ast.FunctionDef)})
    given = dict(zip(own, (name.lower() for name in names), strict=False))

    class Renaming(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.AST:
            return ast.copy_location(ast.Name(given.get(node.id, node.id), node.ctx), node)

        def visit_arg(self, node: ast.arg) -> ast.AST:
            return ast.copy_location(ast.arg(given.get(node.arg, node.arg)), node)

        def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
            self.generic_visit(node)
            node.name = given.get(node.name, node.name)
            return node

    return ast.unparse(ast.fix_missing_locations(Renaming().visit(tree)))

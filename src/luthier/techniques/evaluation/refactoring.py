"""refactoring: a point each for a program that parses, compiles, has a method extracted, and passes its tests.

value = sum over `rewards` of weight x point, the points independent of each other (the released scorer goes on after a
syntax error, too):

    syntax          the syntax tree (tree-sitter) has no error and no missing node
    compile         it compiles: Python's own compiler, or javac on the methods in a class
    extract_method  a method was extracted from the program before (`_extract_method`; Python alone)
    tests           `meta["tests"]` of the row, run below the program, raise nothing; in the sandbox

The program before is `meta["before"]`, or the row's question. As a reward of `ppo` it teaches to refactor; without `tests`
it can be earned by programs that do something else. Source: Palit & Sharma 2024, "Generating refactored code accurately
using reinforcement learning" (seed 143); its third point comes from RefactoringMiner, which reads Java.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.techniques.evaluation._extract_method import extracted
from luthier.techniques.evaluation._shared import pairs

Reward = Literal["syntax", "compile", "extract_method", "tests"]


class Refactoring(Metric, name="refactoring", seeds=[143]):
    """Points of a refactored program: it parses, compiles, has a method extracted, passes tests."""

    language: Literal["python", "java"] = Field("python", description="language of the programs")
    rewards: tuple[Reward, ...] = Field(("syntax", "compile", "extract_method"), min_length=1, description="what earns points")
    weights: dict[Reward, float] = Field({}, description="points of each reward; 1 where nothing is said")
    seconds: float = Field(5.0, gt=0, description="longest time of one program's tests, or of the compiler")

    @model_validator(mode="after")
    def _can(self) -> Self:
        if self.language == "java":
            lacking = {"extract_method", "tests"} & set(self.rewards)
            if lacking:
                raise ValueError(f"rewards {sorted(lacking)} need a reader of Java refactorings, which is not here; "
                                 "java has syntax and compile")
        return self

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """A record with `value` and 1.0 or 0.0 for each reward. Raises UserError without a compiler, or without tests."""
        self._check(examples)
        found = list(pairs(examples, predictions))
        points = {reward: getattr(self, f"_{reward}")(found, ctx) for reward in dict.fromkeys(self.rewards)}
        return [{"id": e.id, "value": sum(self.weights.get(r, 1.0) * points[r][n] for r in points),
                 **{r: points[r][n] for r in points}} for n, (e, _) in enumerate(found)]

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Share of answers that earned each point."""
        return {r: sum(row[r] for row in records) / len(records) for r in dict.fromkeys(self.rewards)} if records else {}

    def _check(self, examples: Sequence[Example]) -> None:
        if self.language == "java" and "compile" in self.rewards and not shutil.which("javac"):
            raise UserError("refactoring: the reward 'compile' needs the compiler javac, which is not installed. Without it: "
                            "refactoring:language=java,rewards=[syntax].")
        bare = next((e.id for e in examples if not e.meta.get("tests")), None)
        if "tests" in self.rewards and bare is not None:
            raise UserError(f"refactoring: row {bare} has no tests (meta.tests). Give it some, or drop the reward tests.")

    def _syntax(self, found: Sequence[tuple[Example, Prediction]], ctx: Ctx) -> list[float]:
        return [float(not _parser(self.language).parse(p.text.encode()).root_node.has_error and bool(p.text.strip()))
                for _, p in found]

    def _compile(self, found: Sequence[tuple[Example, Prediction]], ctx: Ctx) -> list[float]:
        made = _compiles if self.language == "python" else self._java
        return [float(bool(p.text.strip()) and made(p.text)) for _, p in found]

    def _extract_method(self, found: Sequence[tuple[Example, Prediction]], ctx: Ctx) -> list[float]:
        return [float(bool(extracted(e.meta.get("before") or e.part("question"), p.text))) for e, p in found]

    def _tests(self, found: Sequence[tuple[Example, Prediction]], ctx: Ctx) -> list[float]:
        from luthier.engine.sandbox import Limits

        programs = [f"{p.text}\n\n{e.meta['tests']}" for e, p in found]
        return [float(r.ok) for r in ctx.engine.execute(programs, Limits(seconds=self.seconds))]

    def _java(self, text: str) -> bool:
        """javac only reads a text: annotation processors, which could run something, are off."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "Holder.java"
            path.write_text(f"class Holder {{\n{text}\n}}\n", encoding="utf-8")
            try:
                done = subprocess.run(["javac", "-proc:none", "-implicit:none", "-d", folder, str(path)], cwd=folder,
                                      capture_output=True, timeout=4 * self.seconds, check=False)
            except subprocess.TimeoutExpired:
                return False
        return done.returncode == 0


def _compiles(text: str) -> bool:
    """Whether Python compiles a text; nothing of it is run."""
    try:
        compile(text, "<answer>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


@cache
def _parser(language: str) -> Any:
    try:
        import tree_sitter

        grammar: Any = import_module(f"tree_sitter_{language}")
    except ImportError as error:
        raise UserError(f"refactoring: the reward 'syntax' needs {error.name}, which is not installed: "
                        "pip install 'luthier[code]'; or leave it out: rewards=[compile].") from None
    return tree_sitter.Parser(tree_sitter.Language(grammar.language()))

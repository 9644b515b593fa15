"""merge: models tuned on one base, made one by a rule on their weights: what `luthier merge` does, within a recipe.

Tensors are streamed from the artifacts' files, so models may be larger than memory. What comes of it is an adapter, a delta or
a model, as the rule leaves it: `tuned` on the same base, and, where it is a model without a head, a base of its own, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError, nearest
from luthier.core.example import Example
from luthier.core.files import Journal, write_lines
from luthier.core.finding import Finding
from luthier.core.kinds import WeightRule
from luthier.core.step import Ctx, Step
from luthier.pipelines import merging
from luthier.pipelines.mergeable import Given, check_alike, resting


class Merge(Step, name="merge"):
    """Apply a weight rule to what was tuned on a base; models are taken in the order of the inputs."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples?": "examples", "*": "adapter|delta|model"}
    output: ClassVar[str] = "adapter|delta|model"
    rule: Slot[WeightRule] = Field(named("linear"), description="how they are merged; a rule that takes the base gets it first")
    files: dict[str, str] = Field({}, description="fields of the rule that name a file -> the subset of `examples` that is "
                                                  "written there: questions and answers, texts and labels, or texts alone")

    def check(self) -> None:
        """Refuse a field that the rule does not have, or that is filled already."""
        fields = type(self.rule).model_fields
        for name in self.files:
            if name not in fields:
                raise UserError(f"merge.files: {self.rule.info.name} has no field '{name}'. {nearest(name, fields)}")
            if getattr(self.rule, name):
                raise UserError(f"merge.files: rule.{name} is {getattr(self.rule, name)!r} already. Leave out one of the two.")

    def content(self) -> dict[str, Any]:
        """Hashes of outside files that the rule reads."""
        return self.rule.content()

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Look at what does not fit, then merge.

        Raises:
            UserError: models that can't be merged with one another or by this rule, or rows that a file is to hold and are
                not there.
        """
        base = inputs["base"]
        given = [resting(n, a, base) for n, a in inputs.items() if n not in ("base", "examples")]
        root = Given(str(base.meta["name"]), base)
        scratch = ctx.folder / merging.STATISTICS
        scratch.mkdir(exist_ok=True)
        rule: WeightRule = build("weight_rule", {**self.rule.to_dict(), **self._files(inputs, ctx)})
        merging.check_rule(rule, len(given))
        check_alike(rule, given, root)
        own = Ctx(**{**ctx.__dict__, "folder": scratch, "journal": Journal(scratch / "journal.jsonl")})
        job = merging.Merging(rule, given, root, ctx.folder, own, ctx.journal)
        found = merging.written(job, {"rule": self.rule.to_dict(), "files": self.files})
        ctx.journal.do("found", lambda: [f.to_dict() for f in found])
        return merging.sealed(rule, given, root, ctx.folder, base.folder.name, note=base.meta.get("note", ""))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """What was written is what the rule says, and opens as a model where it is one."""
        return [Finding.from_dict(row) for row in ctx.journal.values["found"]]

    def _files(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, str]:
        """The rows of each subset as the file that a rule reads, by the rule's field."""
        made = {}
        for field, subset in self.files.items():
            if "examples" not in inputs or subset not in inputs["examples"].subsets:
                there = inputs["examples"].subsets if "examples" in inputs else []
                raise UserError(f"merge.files: {field} is to hold the subset '{subset}' of the input examples, which "
                                f"{'has ' + ', '.join(there) if there else 'is not there'}.")
            path = ctx.folder / merging.STATISTICS / field
            rows = list(inputs["examples"].examples(subset))
            if any(e.task == "text" for e in rows):
                path.write_text("".join(f"{_text(e)}\n" for e in rows), encoding="utf-8")
            else:
                write_lines(path, _lines(rows))
            made[field] = str(path)
        return made


def _text(example: Example) -> str:
    """A text on one line."""
    return " ".join("\n".join(t.text for t in example.turns).split())


def _lines(rows: Iterable[Example]) -> Iterable[dict[str, str]]:
    for e in rows:
        asked = "\n".join(t.text for t in e.turns if not t.target)
        answer = "".join(t.text for t in e.turns if t.target)
        yield {"question": asked, "answer": answer} if answer else {"text": asked, "label": str(e.label)}

"""An artifact that another run left, and rows of a new file beside the rows it was trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import RECORD, Artifact, copy_licenses, open_artifact, seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import link_tree
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step

ANY = "documents|examples|index|adapter|delta|model|records"


class Existing(Step, name="existing"):
    """Use an artifact of another run; its files are linked, not made again."""

    output: ClassVar[str] = ANY
    seeded: ClassVar[bool] = False
    path: str = Field(description="folder of the artifact")
    kind: str = Field(description="its kind, checked")

    def check(self) -> None:
        """Refuse a folder that is no artifact of that kind."""
        found = open_artifact(Path(self.path)).kind
        if found != self.kind:
            raise UserError(f"{self.path} is of the kind '{found}', not '{self.kind}'.")

    def content(self) -> dict[str, Any]:
        """The artifact's identity."""
        return {"identity": open_artifact(Path(self.path)).identity}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Copy the files by hard link where the file system allows it."""
        source = open_artifact(Path(self.path))
        link_tree(source.folder, ctx.folder, (RECORD, "step.json", "journal.jsonl", "receipts.jsonl"))
        meta = {k: v for k, v in source.meta.items() if k not in ("schema", "kind")}
        return seal(source.kind, ctx.folder, **meta)


class TestRows(Step, name="test-rows"):
    """New rows as test sets; rows that were trained on are refused."""

    __test__ = False  # the name is not a test's
    inputs: ClassVar[dict[str, str]] = {"rows": "examples", "trained": "examples"}
    output: ClassVar[str] = "examples"
    sets: tuple[str, ...] = Field((), description="which sets of rows that come divided; empty: all rows are one set, test")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The new rows by set; train and dev are those of the run, for solved examples and choices."""
        given = inputs["rows"]
        tests = {n: list(given.examples(n)) for n in self.sets} if self.sets else {"test": list(given.examples("all"))}
        kept = {name: list(inputs["trained"].examples(name)) for name in ("train", "dev")}
        seen = {_text(e): e.id for part in kept.values() for e in part}
        rows = [e for part in tests.values() for e in part]
        leaked = [(e.id, seen[_text(e)]) for e in rows if _text(e) in seen]
        if leaked:
            raise UserError(f"{len(leaked)} of {len(rows)} rows were trained on; first: {leaked[0][0]} is {leaked[0][1]} of "
                            "the training rows. A score on them would mean nothing: take them out.")
        copy_licenses([a.folder for a in inputs.values()], ctx.folder)
        return write_examples(ctx.folder, {**kept, **tests}, read=len(rows))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every new row is in a test set."""
        asked = sum(artifact.meta["rows"][name] for name in self.sets or ("test",))
        return [receipt("test-rows/rows", artifact.meta["read"], asked, unit="rows")]


def _text(example: Example) -> str:
    asked = example.part("question") or "\n".join(t.text for t in example.turns if not t.target)
    return " ".join(asked.casefold().split())

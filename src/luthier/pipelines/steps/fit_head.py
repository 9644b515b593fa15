"""fit-head: a head that is solved for, not trained, on what an encoder says to labelled rows; the encoder stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import RECORD, Artifact, copy_licenses, seal
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.files import link_tree
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Head
from luthier.core.step import Ctx, Step

TASK = "labels"


class FitHead(Step, name="fit-head"):
    """Embed labelled rows and solve for the head; what was tuned before, if anything, is kept beside it."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples", "tuned?": "adapter|delta|model"}
    output: ClassVar[str] = "adapter|delta|model"
    seeded: ClassVar[bool] = False
    head: Slot[Head] = Field(named("logistic"), description="a head that can be solved for")
    subset: str = Field("train", description="the rows it is fitted to")
    max_tokens: int = Field(256, ge=8, description="how much of a text is read")

    def check(self) -> None:
        """Refuse a head that is trained by gradients."""
        if not hasattr(self.head, "fit"):
            raise UserError(f"fit-head: '{self.head.info.name}' is trained by gradients (tasks of fit); legal here: logistic.")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError where no row has a label, or too few labels are there."""
        import torch
        from safetensors.torch import save_file

        from luthier.engine.classification import features
        from luthier.engine.weights import HEADS_FILE

        base, tuned = inputs["base"], inputs.get("tuned")
        rows = [e for e in inputs["examples"].examples(self.subset) if e.label is not None]
        if not rows:
            raise UserError(f"fit-head: no row of '{self.subset}' has a label.")
        model = ctx.engine.load(base, tuned, dtype=torch.float32)
        given = [str(e.label) for e in rows]
        head: Any = self.head
        labels = head.labels_of(given)
        seen = features(model, rows, self.max_tokens)
        module = head.build(model, labels)
        head.fit(module, seen, given, labels)
        if tuned is not None:
            link_tree(tuned.folder, ctx.folder, (RECORD, HEADS_FILE, "step.json", "journal.jsonl", "receipts.jsonl",
                                                 "state.json"))
        else:
            save_file({}, ctx.folder / "delta.safetensors", metadata={"format": "pt"})
        save_file({f"{TASK}.{n}": t.detach().contiguous() for n, t in module.state_dict().items()}, ctx.folder / HEADS_FILE,
                  metadata={"format": "pt"})
        copy_licenses([base.folder], ctx.folder)
        kept = {k: v for k, v in (tuned.meta if tuned else {}).items() if k not in ("schema", "kind", "identity")}
        own = {"base": {"name": base.meta["name"], "note": base.meta.get("note", ""), "identity": base.identity,
                        "step": base.folder.name}, "template": {"name": "plain", "max_tokens": self.max_tokens}}
        return seal(tuned.kind if tuned else "delta", ctx.folder, **{
            **own, **kept, "template": own["template"], "heads": {TASK: self.head.to_dict()}, "labels": {TASK: labels},
            "head_rows": len(rows)})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Loaded from its files the model knows the rows that its head was solved for as well as when it was."""
        from luthier.engine.classification import classify

        rows = [e for e in inputs["examples"].examples(self.subset) if e.label is not None]
        model = ctx.engine.load(inputs["base"], artifact)
        said = classify(model, artifact, rows, ctx)
        return [receipt("fit-head/rows", len(rows), len(said), unit="rows",
                        detail="labelled rows against rows with a label said")]

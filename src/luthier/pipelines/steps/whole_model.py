"""whole-model: a base and what was tuned on it as one model that needs neither, merged and compared."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step

WEIGHTS = "weights"
# What sentence-transformers reads beside the weights, so that the model opens there as its base does.
POOLING = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "1_Pooling", "2_Normalize")
PROBES = ("What is a module?", "yield value", "the cat sat on the mat " * 20)


class WholeModel(Step, name="whole-model"):
    """Write a tuned model as a model folder, to be used wherever a base is."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "tuned": "adapter|delta|model"}
    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Merge in float32 and save; licences of both travel along."""
        import torch

        from luthier.engine import models, weights

        base, tuned = inputs["base"], inputs["tuned"]
        model = models.add_tuned(ctx.engine.fresh(base, torch.float32), tuned)
        if tuned.kind == "adapter":
            model.module = model.module.merge_and_unload()
        shutil.rmtree(ctx.folder / WEIGHTS, ignore_errors=True)  # of an attempt that was killed
        (ctx.folder / WEIGHTS).mkdir()
        weights.SAVERS["model"](model, ctx.folder / WEIGHTS)
        for name in POOLING:
            source, target = models.folder_of(base) / name, ctx.folder / WEIGHTS / name
            if source.is_dir():
                shutil.copytree(source, target)
            elif source.exists():
                shutil.copyfile(source, target)
        copy_licenses([base.folder, tuned.folder], ctx.folder)
        return seal("model", ctx.folder, name=f"{base.meta['name']}, tuned", note=base.meta.get("note", ""), path=WEIGHTS,
                    architecture=base.meta["architecture"], merged=tuned.kind,
                    base={"name": base.meta["name"], "identity": base.identity})

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """The merged model embeds, or foretells tokens, as base and tuned weights do together."""
        import torch

        apart = ctx.engine.load(inputs["base"], inputs["tuned"], dtype=torch.float32)
        whole = ctx.engine.load(artifact, dtype=torch.float32)
        if whole.architecture != "encoder":
            ids = [[i % whole.vocabulary for i in range(start, start + 16)] for start in (5, 50, 200)]
            said = [ctx.engine.score(model, [(row[:1], row[1:]) for row in ids]) for model in (apart, whole)]
            lost = max(abs(a[0] - b[0]) / (len(row) - 1) for a, b, row in zip(*said, ids, strict=True))
            return [receipt("whole-model/merged = unmerged", 0.0, lost, 1e-4, unit="nats a token",
                            detail=f"largest difference of {len(ids)} rows of tokens")]
        one, two = (ctx.engine.embed(model, PROBES) for model in (apart, whole))
        return [receipt("whole-model/merged = unmerged", 0.0, float(abs(one - two).max()), 1e-5, unit="of a unit vector",
                        detail=f"largest difference of {len(PROBES)} embeddings")]


def same_files(source: Artifact, ctx: Ctx, **more: Any) -> Artifact:
    """An artifact in a step's folder that is another one: its files linked, its identity kept."""
    from luthier.core.artifact import RECORD
    from luthier.core.files import link_tree

    link_tree(source.folder, ctx.folder, (RECORD, "step.json", "journal.jsonl", "receipts.jsonl", "state.json"))
    meta = {k: v for k, v in source.meta.items() if k not in ("schema", "kind", "identity")}
    return seal(source.kind, ctx.folder, identity=source.identity, **{**meta, **more})

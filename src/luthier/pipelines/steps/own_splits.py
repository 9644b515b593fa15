"""Own splits: rows that come divided keep their division, under the names that a recipe reads.

train stays train; validation (or dev, valid) becomes dev; test becomes unseen. Where there is no test, validation is the
test and dev is drawn from train by cluster; where there is no validation, dev is drawn. A test is never changed: a
training or dev row that asks what a test row asks, word for word, is left out and stands in the ledger.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.files import write_rows
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import Ledger

TRAIN, DEV, TEST = ("train", "training"), ("validation", "dev", "valid", "val", "development"), ("test", "unseen")


class OwnSplits(Step, name="own-splits"):
    """Keep the division that the rows came with."""

    inputs: ClassVar[dict[str, str]] = {"rows": "examples"}
    output: ClassVar[str] = "examples"
    dev_share: float = Field(0.1, gt=0, lt=1, description="share of the training clusters drawn as dev where none is given")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The subsets train, dev and unseen. Raises UserError where no test or no training row can be had."""
        given = inputs["rows"]
        train, dev, test = places(given.subsets)
        shutil.rmtree(ctx.folder / "examples", ignore_errors=True)  # of an attempt that was killed
        chosen = set() if dev else self._drawn(given, train, ctx)
        questions = {asked(e) for e in given.examples(test)}
        kept: dict[str, int] = {}

        def rows(wanted: str) -> Iterator[Example | Dropped]:
            for example in given.examples(dev if wanted == "dev" and dev else train):
                if not dev and (example.cluster in chosen) != (wanted == "dev"):
                    continue
                yield Dropped(example.id, "asked in the test", wanted) if asked(example) in questions else example

        with Ledger(ctx.folder / "ledger.jsonl") as ledger:
            for name in ("train", "dev"):
                kept[name] = write_rows(ctx.folder / "examples" / name, (e.to_dict() for e in ledger.kept(rows(name))))
            kept["unseen"] = write_rows(ctx.folder / "examples" / "unseen", (e.to_dict() for e in given.examples(test)))
        empty = next((n for n, count in kept.items() if not count), None)
        if empty:
            raise UserError(f"No row is left for {empty} ({ledger.told() or 'nothing left out'}). Divide the rows anew: "
                            "luthier data split, over one file.")
        ctx.log(", ".join(f"{n} {name}" for name, n in kept.items()) + f"; {ledger.count} left out")
        copy_licenses([Path(given.folder)], ctx.folder)
        used = {train, dev, test} - {""}
        noted = {k: given.meta[k] for k in ("format", "labels") if given.meta.get(k)}
        return seal("examples", ctx.folder, rows=kept, dropped=ledger.count, reasons=dict(ledger.reasons), **noted,
                    subsets={"train": train, "dev": dev or f"drawn from {train}", "unseen": test},
                    unused=[s for s in given.subsets if s not in used])

    def _drawn(self, given: Artifact, train: str, ctx: Ctx) -> set[str]:
        clusters = sorted({e.cluster for e in given.examples(train)})
        count = max(1, round(self.dev_share * len(clusters)))
        return {clusters[i] for i in ctx.rng("dev").permutation(len(clusters))[:count]}

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows in = rows out + ledger; no test question in training."""
        given = inputs["rows"]
        train, dev, test = places(given.subsets)
        read = sum(1 for name in (train, dev, test) if name for _ in given.examples(name))
        written = sum(1 for name in artifact.subsets for _ in artifact.examples(name))
        questions = {asked(e) for e in artifact.examples("unseen")}
        leaked = sum(asked(e) in questions for name in ("train", "dev") for e in artifact.examples(name))
        return [receipt("own-splits/rows", read, written + artifact.meta["dropped"], unit="rows", evidence="ledger.jsonl"),
                receipt("own-splits/leaked questions", 0, leaked, unit="questions")]


def places(subsets: list[str]) -> tuple[str, str, str]:
    """Which subsets are train, dev (empty: drawn from train) and test. Raises UserError where one can't be had."""
    train, dev, test = (next((n for n in names if n in subsets), "") for names in (TRAIN, DEV, TEST))
    if train and dev and not test:
        dev, test = "", dev
    if not train or not test:
        raise UserError(f"The rows come divided into {', '.join(subsets)}; train and test (or validation) are needed. Read one "
                        "of them alone, such as FOLDER/train, and it is divided here.")
    return train, dev, test


def asked(example: Example) -> bytes:
    import hashlib

    text = example.part("question") or "\n".join(t.text for t in example.turns if not t.target)
    shown = example.part("passage")  # the same question about another passage is another question
    return hashlib.blake2b(" ".join(f"{shown} {text}".casefold().split()).encode("utf-8", "surrogatepass"),
                           digest_size=16).digest()

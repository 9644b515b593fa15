"""retriever-pairs: what a retriever learns from, questions of a run and clicks of users, with hard negatives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, write_examples
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, SourceFile, Turn
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step
from luthier.pipelines.ledger import without_dropped
from luthier.pipelines.steps.index import open_retriever

SUBSETS = ("train", "dev")
_DUPLICATE = "duplicate of "


class RetrieverPairs(Step, name="retriever-pairs"):
    """Pairs of query and document from the questions of train and dev, and from a click log for train."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples", "documents": "documents", "index": "index", "encoder": "model"}
    output: ClassVar[str] = "examples"
    clicks: str | None = Field(None, description="file of clicks: one {query, doc_id, clicks, impressions} a line")
    reader: Slot[DataStep] = Field(named("click-log"), description="who reads the clicks and weighs the pairs")
    steps: tuple[Slot[DataStep], ...] = Field(named(("mine-negatives",)), description="applied to the pairs, in this order")

    def check(self) -> None:
        """Refuse a click log that is not there."""
        if self.clicks is not None and not Path(self.clicks).is_file():
            raise UserError(f"clicks: there is no file {self.clicks}.")

    def content(self) -> dict[str, Any]:
        """Hash of the click log."""
        return {"clicks": hash_file(Path(self.clicks))} if self.clicks else {}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Pairs of both subsets; nothing that dev or a test asks, and no section kept for them, is trained on.

        Raises:
            UserError: no pair is left to train on, or the click log can't be used.
        """
        documents, examples = inputs["documents"], inputs["examples"]
        retriever = open_retriever(inputs["index"])
        texts = {p.id: retriever.searched(p) for p in documents.passages()}
        kept = {entry["id"]: entry["reason"].removeprefix(_DUPLICATE) for entry in documents.ledger()
                if entry["reason"].startswith(_DUPLICATE)}
        streams = {"passages": documents.passages, "texts": texts.items, "duplicates": kept.items}
        encoder = ctx.engine.load(inputs["encoder"])
        inner = replace(ctx, roles={**ctx.roles, "encoder": encoder}, stream=lambda name: streams[name]())
        ledger: list[Dropped] = []
        read: Counter[str] = Counter()
        subsets: dict[str, list[Example]] = {}
        for name in SUBSETS:
            asked = list(examples.examples(name))
            read[name] = len(asked)
            subsets[name] = list(without_dropped(_questions(asked, texts, kept), ledger))
        if self.clicks:
            made = list(self.reader.apply(iter([SourceFile(Path(self.clicks).name, self.clicks)]), inner))
            read["clicks"] = len(made)
            subsets["train"] += without_dropped(_allowed(made, examples), ledger)
        subsets["train"] = _one_right_set(subsets["train"])
        if not subsets["train"]:
            raise UserError("No question of train has a passage that answers it: there is nothing to tune a retriever on.")
        for step in self.steps:
            subsets = {name: list(without_dropped(step.apply(iter(rows), inner), ledger)) for name, rows in subsets.items()}
        with_hard = sum(bool(r.meta.get("negatives")) for r in subsets["train"])
        ctx.log(", ".join(f"{len(rows)} pairs of {name}" for name, rows in subsets.items())
                + f"; {with_hard} of train with hard negatives; {len(ledger)} rows left out")
        copy_licenses([documents.folder, examples.folder], ctx.folder)
        return write_examples(ctx.folder, {n: rows for n, rows in subsets.items() if rows}, ledger, read=dict(read),
                              with_negatives=with_hard)

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every question and click is a pair, several, or in the ledger; no negative is right for its query."""
        rows = [r for name in artifact.subsets for r in artifact.examples(name)]
        from_rows = len({r.meta["row"] for r in rows}) + len({entry["id"] for entry in artifact.ledger()})
        right = sum(bool(set(r.meta.get("negatives") or ()) & set(r.meta["positives"])) for r in rows)
        return [receipt("retriever-pairs/rows", sum(artifact.meta["read"].values()), from_rows, unit="rows",
                        detail="questions and clicked pairs against those in pairs plus ledger"),
                receipt("retriever-pairs/false negatives", 0, right, unit="rows",
                        detail="rows with a negative that is right for their query")]


def _questions(rows: Iterable[Example], texts: Mapping[str, str], kept: Mapping[str, str]) -> Iterator[Example | Dropped]:
    """One pair for each passage that answers a question; a repetition stands for what it repeats."""
    for row in rows:
        named_ = row.meta.get("gold") or ()
        gold = list(dict.fromkeys(kept.get(g, g) for g in ([named_] if isinstance(named_, str) else named_)))
        known = [g for g in gold if g in texts]
        if not known or not row.part("question"):
            yield Dropped(row.id, "no passage that answers it", ", ".join(gold))
            continue
        for n, name in enumerate(known, 1):
            turns = (Turn("user", (Part(row.part("question"), name="question"),)),
                     Turn("assistant", (Part(texts[name], name="document"),), target=True))
            yield Example(f"{row.id}/{n}", turns, source=name, cluster=row.cluster, task="retrieval", meta={
                "generator": row.meta.get("generator", ""), "row": row.id, "weight": 1.0, "document": name,
                "positives": known, "gold": known})


def _allowed(rows: Sequence[Example | Dropped], examples: Artifact) -> Iterator[Example | Dropped]:
    """Clicked pairs whose query no dev or test question asks, about sections that are not kept out of training."""
    held = [e for name in examples.subsets if name != "train" for e in examples.examples(name)]
    asked = {_flat(e.part("question")): e.id for e in held}
    trained = {e.cluster for e in examples.examples("train")}
    sections = {e.cluster for e in held} - trained
    for row in rows:
        if isinstance(row, Dropped):
            yield row
        elif _flat(row.part("question")) in asked:
            yield Dropped(row.id, "asked in dev or test", f"{row.part('question')} (as {asked[_flat(row.part('question'))]})")
        elif row.cluster in sections:
            yield Dropped(row.id, "section kept out of training", row.cluster)
        else:
            yield replace(row, meta={**row.meta, "row": row.id})


def _one_right_set(rows: Sequence[Example]) -> list[Example]:
    """Rows of the same query share what is right for it, whoever said so."""
    right: dict[str, list[str]] = {}
    for row in rows:
        right.setdefault(_flat(row.part("question")), []).extend(row.meta["positives"])
    return [replace(r, meta={**r.meta, "positives": list(dict.fromkeys(right[_flat(r.part("question"))]))}) for r in rows]


def _flat(text: str) -> str:
    return " ".join(text.casefold().split())


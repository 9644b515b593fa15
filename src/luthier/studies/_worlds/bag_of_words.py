"""bag-of-words: logistic regression on tf-idf of words, what a classifier of few texts must beat without any model."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.component import Slot, named
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import Head, Metric, Prediction
from luthier.core.step import Ctx, Step


class BagOfWords(Step, name="bag-of-words"):
    """Answer with a head that is solved for, on weighted counts of words: (1 + log n) log((1 + N)/(1 + d)) + 1, length 1."""

    inputs: ClassVar[dict[str, str]] = {"examples": "examples"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("bag of words", description="name of this arm in tables")
    sets: tuple[str, ...] = Field(("test",), description="subsets that are asked")
    head: Slot[Head] = Field(named("logistic"), description="a head that can be solved for")
    metrics: tuple[Slot[Metric], ...] = Field(named(("accuracy",)), description="what is measured")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Count, solve, answer, score."""
        import torch

        train = list(inputs["examples"].examples("train"))
        rows = [(s, e) for s in self.sets for e in inputs["examples"].examples(s)]
        words = [Counter(re.findall(r"\w+", "\n".join(t.text for t in e.turns).lower())) for e in (*train,
                                                                                                   *(e for _, e in rows))]
        held = Counter(word for counts in words[:len(train)] for word in counts)
        known = {word: n for n, word in enumerate(sorted(held))}
        table = torch.zeros(len(words), max(1, len(known)))
        for n, counts in enumerate(words):
            for word, count in counts.items():
                if word in known:
                    table[n, known[word]] = (1 + math.log(count)) * (math.log((1 + len(train)) / (1 + held[word])) + 1)
        table = torch.nn.functional.normalize(table, dim=1)
        given = [str(e.label) for e in train]
        head = self.head
        labels = head.labels_of(given)  # type: ignore[attr-defined]
        module = torch.nn.Linear(table.shape[1], len(labels))
        head.fit(module, table[:len(train)], given, labels)  # type: ignore[attr-defined]
        with torch.no_grad():
            chances = head.predict(module(table[len(train):])).tolist()
        said = [Prediction(e.id, label=head.label(dict(zip(labels, row, strict=True))), probabilities=dict(
            zip(labels, row, strict=True))) for (_, e), row in zip(rows, chances, strict=True)]
        examples = [e for _, e in rows]
        about = {e.id: {"id": e.id, "set": s, "cluster": e.cluster or e.id} for s, e in rows}
        lines = [{**about[str(r["id"])], "metric": m.info.name, **r}
                 for m in self.metrics for r in m.score(examples, said, ctx)]
        write_lines(ctx.folder / "scores.jsonl", lines)
        return seal("records", ctx.folder, arm=self.arm, metrics={m.info.name: m.higher_is_better for m in self.metrics},
                    lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every row has one record of each metric."""
        wanted = sum(1 for s in self.sets for _ in inputs["examples"].examples(s)) * len(self.metrics)
        return [receipt("bag-of-words/records", wanted, artifact.meta["lines"], unit="records")]

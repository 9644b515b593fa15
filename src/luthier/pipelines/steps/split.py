"""Split: train, dev and test by section, so that nothing learned is asked again in the same words.

`unseen` holds sections kept out of training (measures transfer and format); `known` holds new questions by another
author or generator on sections that are trained on (measures knowledge). With hand-written test questions both come
from them; without, `unseen` sections are drawn and `known` is what another generator asked about trained sections.

After the split `augment` changes the training rows; `validation` holds the dev rows changed alike, so that the loss
that is watched is that of the rows that are learned, while the dev questions stay as they are asked. `unanswerable`
adds questions without an answer, made from the test questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, write_examples
from luthier.core.component import Slot
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example
from luthier.core.finding import Finding, receipt
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx, Step

# Sets that training sees: it learns from the first, and is watched by the others.
LEARNED = ("train", "dev", "validation")


class Split(Step, name="split"):
    """Divide questions by section into train, dev and test, and refuse leaks."""

    inputs: ClassVar[dict[str, str]] = {
        "questions": "examples", "test?": "examples", "documents?": "documents", "index?": "index", "encoder?": "model"}
    output: ClassVar[str] = "examples"
    unseen_share: float = Field(0.2, ge=0, lt=1, description="share of sections kept out of training for the test")
    dev_share: float = Field(0.1, gt=0, lt=1, description="share of the other sections used for choices, never trained on")
    known_generator: str = Field("few-shot", description="whose questions on trained sections are the known test set")
    max_test_rows: int | None = Field(None, ge=1, description="most rows of each drawn test set; all if left out")
    min_clusters: int = Field(6, ge=3, description="fewer sections than this can't be split")
    max_overlap: float = Field(0.8, gt=0, le=1, description="share of common words from which a trained question leaks")
    augment: tuple[Slot[DataStep], ...] = Field((), description="applied to the training rows, after the split")
    unanswerable: Slot[DataStep] | None = Field(None, description="makes questions without an answer from the test questions")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Assign sections, drop training rows that come too close to a test question, report the overlap."""
        rows = list(inputs["questions"].examples("all"))
        test = {name: list(inputs["test"].examples(name)) for name in inputs["test"].subsets} if "test" in inputs else {}
        clusters = sorted({r.cluster for r in rows})
        if len(clusters) < self.min_clusters:
            raise UserError(f"The rows come from {len(clusters)} section(s) or sources; at least {self.min_clusters} needed "
                            "for train, dev and test that do not overlap. Add documents, or lower split.min_clusters.")
        unseen = {e.cluster for e in test["unseen"]} if test else self._drawn(clusters, self.unseen_share, "unseen", ctx)
        known = {e.cluster for e in test.get("known", ())}
        both = sorted(unseen & known)
        if both:
            raise UserError(f"Section '{both[0]}' has test questions of both sets; it can't be trained on and kept out.")
        free = [c for c in clusters if c not in unseen and c not in known]
        dev = self._drawn(free, self.dev_share, "dev", ctx)
        subsets, ledger = self._divide(rows, test, unseen, dev)
        if not test:
            ledger += self._capped(subsets, ctx)
        ctx.roles = {**ctx.roles, **_roles(inputs, unseen, ctx)}
        unused, added = self._augmented(subsets, ctx)
        ledger += unused
        for name in ("train", "dev"):
            if not subsets[name]:
                raise UserError(f"No row is left for {name}. Add documents, or change split.unseen_share and dev_share.")
        trained = {r.cluster for r in subsets["train"]}
        lost = [r for r in subsets.get("known", ()) if r.cluster not in trained]
        ledger += [Dropped(r.id, "known question about a section without training rows", r.cluster) for r in lost]
        subsets = {n: [r for r in rows if n != "known" or r.cluster in trained] for n, rows in subsets.items()}
        made = added + self._unanswered(subsets, ctx)
        overlap = _overlap(subsets)
        ctx.log(", ".join(f"{len(r)} {n}" for n, r in subsets.items()) + f"; {len(ledger)} left out")
        copy_licenses([Path(a.folder) for a in inputs.values()], ctx.folder)
        labels = inputs["questions"].meta.get("labels")
        return write_examples(ctx.folder, subsets, ledger, overlap=overlap, made=made, **({"labels": labels} if labels else {}),
                              read=len(rows) + sum(map(len, test.values())))

    def _augmented(self, subsets: dict[str, list[Example]], ctx: Ctx) -> tuple[list[Dropped], int]:
        """Change the training rows, and a copy of the dev rows by which training is watched.

        Returns what training loses, and how many rows it gains by steps that give more; those see no dev rows.
        """
        if not self.augment:
            return [], 0
        ledger: list[Dropped] = []
        added = 0
        for name, source in (("train", "train"), ("validation", "dev")):
            rows = subsets[source]
            for step in self.augment:
                more = type(step).gives == "more"
                if more and name == "validation":
                    continue
                made = list(step.apply(iter(rows), ctx))
                added += len(made) - len(rows) if more else 0
                rows = [r for r in made if isinstance(r, Example)]
                if name == "train":
                    ledger += [r for r in made if isinstance(r, Dropped)]
            subsets[name] = rows
        return ledger, added

    def _unanswered(self, subsets: dict[str, list[Example]], ctx: Ctx) -> int:
        """Add questions without an answer to the set `unanswerable`; how many were made."""
        if self.unanswerable is None:
            return 0
        asked = [r for name in ("known", "unseen") for r in subsets.get(name, ())]
        made = list(self.unanswerable.apply(iter(asked), ctx))
        subsets["unanswerable"] = [*subsets.get("unanswerable", ()), *made]
        return len(made)

    def _drawn(self, clusters: Sequence[str], share: float, name: str, ctx: Ctx) -> set[str]:
        count = max(1, round(share * len(clusters))) if share else 0
        return {clusters[i] for i in ctx.rng(name).permutation(len(clusters))[:count]}

    def _divide(self, rows: Iterable[Example], test: Mapping[str, list[Example]], unseen: set[str], dev: set[str]
                ) -> tuple[dict[str, list[Example]], list[Dropped]]:
        subsets: dict[str, list[Example]] = {"train": [], "dev": [], **{n: list(r) for n, r in test.items()}}
        ledger: list[Dropped] = []
        several = len({r.meta.get("generator") for r in rows}) > 1
        for row in rows:
            writer = row.meta.get("generator")
            if row.cluster in unseen:
                if test:
                    ledger.append(Dropped(row.id, "section kept out of training", row.cluster))
                else:
                    subsets.setdefault("unseen", []).append(row)
            elif row.cluster in dev:
                subsets["dev"].append(row)
            elif not test and several and writer == self.known_generator:
                subsets.setdefault("known", []).append(row)
            else:
                subsets["train"].append(row)
        asked = [e for name in subsets if name not in LEARNED for e in subsets[name]]
        for name in ("train", "dev"):
            kept = []
            for row, (place, share) in zip(subsets[name], _closest(subsets[name], asked), strict=True):
                if share >= self.max_overlap:
                    ledger.append(Dropped(row.id, "too close to a test question", f"{share:.2f} of {asked[place].id}"))
                else:
                    kept.append(row)
            subsets[name] = kept
        return subsets, ledger

    def _capped(self, subsets: dict[str, list[Example]], ctx: Ctx) -> list[Dropped]:
        """Cut the drawn test sets to `max_test_rows`, at random; what goes is not trained on either."""
        gone = []
        for name in ("known", "unseen"):
            rows = subsets.get(name, [])
            if self.max_test_rows is not None and len(rows) > self.max_test_rows:
                chosen = set(ctx.rng(f"test/{name}").permutation(len(rows))[:self.max_test_rows].tolist())
                subsets[name] = [r for i, r in enumerate(rows) if i in chosen]
                gone += [Dropped(r.id, f"beyond max_test_rows={self.max_test_rows}", name)
                         for i, r in enumerate(rows) if i not in chosen]
        return gone

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Rows in = out + ledger; no test question in training, no unseen section in training."""
        rows = {name: list(artifact.examples(name)) for name in artifact.subsets}
        watched = rows.pop("validation", [])
        trained = {" ".join(sorted(_words(r))) for n in ("train", "dev") for r in rows[n]}
        trained |= {" ".join(sorted(_words(r))) for r in watched}
        tested = [r for n, part in rows.items() if n not in LEARNED for r in part]
        leaked = sum(" ".join(sorted(_words(r))) in trained for r in tested)
        sections = {r.cluster for r in rows["train"]}
        crossed = len(sections & {r.cluster for n in ("unseen", "dev") for r in rows.get(n, ())})
        counted = sum(map(len, rows.values())) - artifact.meta.get("made", 0) + artifact.meta["dropped"]
        found = []
        if "documents" in inputs and any(r.meta.get("shown") for r in rows["train"]):
            unseen = {r.cluster for r in rows.get("unseen", ())}
            hidden = {p.id for p in inputs["documents"].passages() if p.section in unseen}
            shown = sum(name in hidden for r in (*rows["train"], *watched) for name in r.meta.get("shown", ()))
            found = [receipt("split/unseen passages shown", 0, shown, unit="passages", detail="in rows that are trained on")]
        return [
            *found,
            receipt("split/rows", artifact.meta["read"], counted, unit="rows", detail="rows in against subsets plus ledger"),
            receipt("split/leaked questions", 0, leaked, unit="questions", detail="test questions asked in training"),
            receipt("split/leaked sections", 0, crossed, unit="sections", detail="dev and unseen sections in training"),
        ]


def _roles(inputs: Mapping[str, Artifact], unseen: set[str], ctx: Ctx) -> dict[str, Any]:
    """What augmentation may ask: all passages of the documents, and the index without the sections that are unseen."""
    roles: dict[str, Any] = {}
    if "documents" in inputs:
        roles["passages"] = inputs["documents"].passages
    if "index" in inputs and "encoder" in inputs:
        from luthier.pipelines.steps.index import searcher

        search = searcher(inputs["index"], inputs["encoder"], ctx)
        roles["retriever"] = lambda queries, k: search(queries, k, [unseen] * len(queries))
    return roles


def _words(row: Example) -> frozenset[str]:
    asked = row.part("question") or "\n".join(t.text for t in row.turns if not t.target)
    # A text of signs alone ("!!!") is known by its signs.
    return frozenset(asked.lower().translate(_PUNCTUATION).split() or asked.split())


_PUNCTUATION = str.maketrans(dict.fromkeys("?!.,;:\"'`()[]", " "))


def _closest(rows: Sequence[Example], others: Sequence[Example]) -> list[tuple[int, float]]:
    """For each row the place of the most similar of `others` and the Jaccard similarity of their words."""
    import numpy as np
    from scipy.sparse import csr_array

    if not rows or not others:
        return [(0, 0.0)] * len(rows)
    one, two = ([_words(e) for e in part] for part in (rows, others))
    numbers = {w: n for n, w in enumerate(sorted(set().union(*one, *two)))}

    def table(sets: Sequence[frozenset[str]]) -> Any:
        columns = [numbers[w] for s in sets for w in s]
        starts = np.cumsum([0, *map(len, sets)])
        return csr_array((np.ones(len(columns), dtype=np.float32), columns, starts), shape=(len(sets), len(numbers)))

    left, right = table(one), table(two).T.tocsc()
    sizes, their_sizes = np.array([*map(len, one)]), np.array([*map(len, two)])
    found: list[tuple[int, float]] = []
    for start in range(0, len(one), 512):
        common = (left[start:start + 512] @ right).toarray()
        share = common / np.maximum(sizes[start:start + 512, None] + their_sizes[None] - common, 1)
        best = share.argmax(1)
        found += [(int(b), float(share[i, b])) for i, b in enumerate(best)]
    return found


def _overlap(subsets: Mapping[str, list[Example]]) -> dict[str, Any]:
    """For each test set: the share of its sections that were trained on, and its closest trained question."""
    sections = {r.cluster for r in subsets["train"]}
    report: dict[str, Any] = {}
    for name, rows in subsets.items():
        if name in LEARNED or not rows:
            continue
        closest = [share for _, share in _closest(rows, subsets["train"])]
        report[name] = {
            "questions": len(rows), "sections": len({r.cluster for r in rows}),
            "share of sections trained on": round(sum(r.cluster in sections for r in rows) / len(rows), 3),
            "largest share of words common with a trained question": round(max(closest), 3),
        }
    return report

"""near-duplicates: leaves out passages or examples that say the same as an earlier one.

Two of them are the same when their texts agree up to case and white space, or when the Jaccard similarity of their
sets of word 5-grams, |A ∩ B| / |A ∪ B|, is at least `threshold`. MinHash with locality-sensitive hashing (128
permutations, fixed seed) proposes pairs, the exact sets decide; the first stays. A text of fewer than five
words is one gram, hence only equal texts of that length are left out. Of an example the passages it shows do not count:
many questions belong to one passage.

When it helps: manuals repeat themselves between versions and pages; a repeated passage in training and in test is a
leak. Source: Broder 1997, "On the resemblance and containment of documents"; Lee et al. 2022, "Deduplicating training
data makes language models better".
"""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._curation import whole
from luthier.techniques.data._shared import NearTexts, exact_key


class NearDuplicates(DataStep, name="near-duplicates"):
    """Keeps the first of passages or examples with the same or nearly the same words."""

    threshold: float = Field(0.9, ge=0.1, le=1, description="least Jaccard similarity of word 5-grams to be left out")

    def apply(self, rows: Iterator[Example | Passage], ctx: Ctx) -> Iterator[Example | Passage | Dropped]:
        """Each row, or `Dropped` with the id of the one it repeats. Keeps hashes, not texts, in memory."""
        seen: dict[bytes, str] = {}
        near = NearTexts(self.threshold)
        for row in rows:
            text = whole(row, without=("passage",))
            key = exact_key(text)
            if key in seen:
                yield Dropped(row.id, f"duplicate of {seen[key]}", "same text")
                continue
            found, prepared = near.match(text)
            if found:
                share, first = found[0]
                seen[key] = first
                yield Dropped(row.id, f"duplicate of {first}", f"Jaccard {share:.2f}")
                continue
            seen[key] = row.id
            near.add(row.id, prepared)
            yield row

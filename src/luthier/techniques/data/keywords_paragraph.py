"""keywords-paragraph: from the heading and the keywords of a passage to the passage.

Keywords are the words with the largest TF-IDF, tf(w) · log((1 + N) / (1 + df(w))), over N passages; ties by first place.
When it helps: a model that is to write in the manner of the documents. Source: Mathav Raj et al. 2024. Seed 126.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator

from pydantic import Field

from luthier.core.example import Dropped, Example, Part, Passage, Turn
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._questions import STOPWORDS, words


class KeywordsParagraph(DataStep, name="keywords-paragraph", seeds=[126], version=1):
    """Keywords and heading in, the paragraph out."""

    keywords: int = Field(5, ge=1, description="how many keywords are shown")
    min_words: int = Field(8, ge=1, description="shorter passages are left out")

    def apply(self, rows: Iterator[Passage], ctx: Ctx) -> Iterator[Example | Dropped]:
        passages = list(rows)
        seen = Counter(word for p in passages for word in set(words(p.text)))
        for passage in passages:
            name = f"{self.info.name}/{passage.id}"
            if len(passage.text.split()) < self.min_words:
                yield Dropped(name, "too short", passage.text)
                continue
            found = top_words(passage.text, seen, len(passages), self.keywords)
            if not found:
                yield Dropped(name, "no keyword", passage.text[:200])
                continue
            title = f"Section: {' / '.join(passage.headings)}\n" if passage.headings else ""
            yield Example(name, (Turn("user", (Part(f"{title}Keywords: {', '.join(found)}\nParagraph:", name="prompt"),)),
                                 Turn("assistant", (Part(f" {passage.text}"),), target=True)),
                          source=passage.id, cluster=passage.section, task="completion",
                          meta={"generator": self.info.name, "gold": [passage.id], "headings": list(passage.headings)})


def top_words(text: str, seen: Counter[str], passages: int, count: int) -> list[str]:
    """The words of largest TF-IDF; those that stand in every passage have none."""
    often = Counter(w for w in words(text) if w not in STOPWORDS and not w.isdigit())
    weights = {w: n * math.log((1 + passages) / (1 + seen[w])) for w, n in often.items()}
    best = sorted(weights, key=lambda w: -weights[w])
    return [w for w in best if weights[w] > 0 or passages == 1][:count]

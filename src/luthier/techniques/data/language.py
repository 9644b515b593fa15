"""language: leaves out rows that are in another language than those to keep.

The language of a row's text is found by a naive Bayes classifier over byte n-grams (py3langid, 97 languages, no
network). Short texts can't be told apart and mixed ones have no single language: a row is left out only when it has at
least `min_letters` letters and the classifier gives another language at least `confidence`.

When it helps: crawled manuals carry translations side by side, and a small model trained on them mixes languages.
Source: Lui and Baldwin 2012, "langid.py: an off-the-shelf language identification tool".
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

from pydantic import Field

from luthier.core.errors import UserError, nearest
from luthier.core.example import Dropped, Example, Passage
from luthier.core.kinds import DataStep
from luthier.core.step import Ctx
from luthier.techniques.data._curation import whole


class Language(DataStep, name="language"):
    """Leave out rows in another language."""

    keep: tuple[str, ...] = Field(("en",), min_length=1, description="two-letter codes of the languages to keep")
    min_letters: int = Field(40, ge=1, description="a text with fewer letters is kept, whatever it looks like")
    confidence: float = Field(0.9, ge=0, le=1, description="how sure another language must be for a row to be left out")

    def apply(self, rows: Iterator[Example | Passage], ctx: Ctx) -> Iterator[Example | Passage | Dropped]:
        """Each row, or `Dropped` with the language found and its probability."""
        classifier = _classifier()
        legal = set(classifier.nb_classes)
        for code in self.keep:
            if code not in legal:
                raise UserError(f"language: keep names '{code}', which is no language known here. {nearest(code, legal)}")
        for row in rows:
            text = whole(row)
            if sum(map(str.isalpha, text)) < self.min_letters:
                yield row
                continue
            found, sure = classifier.classify(text)
            if found in self.keep or sure < self.confidence:
                yield row
            else:
                yield Dropped(row.id, "other language", f"{found}, probability {float(sure):.2f}")


@cache
def _classifier() -> Any:
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        raise UserError("language needs py3langid. Run: pip install 'luthier[curation]'") from None
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

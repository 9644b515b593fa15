"""What the metrics share: normalisation, words, which answers count as right, abstention, pairs of equal id."""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from luthier.core.citing import ABSTENTION, words
from luthier.core.errors import GateError
from luthier.core.example import Example
from luthier.core.kinds import Prediction, Tokens

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_UNSPACED = re.compile(r"([\u0e00-\u0e7f\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff])")
_ARTICLES = re.compile(r"\b(a|an|the)\b")

ABSTENTIONS = (
    ABSTENTION, "unknown", "unanswerable", "no answer", "not stated", "not in the documents", "not in the passage",
    "not mentioned", "i don't know", "i do not know", "the passage does not say", "the passage doesn't say",
    "the documents do not say", "the documents don't say", "cannot be answered", "can't be answered",
)


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and repeated white space: SQuAD's `normalize_answer`.

    A step that would leave nothing is left out: an answer such as `**` or `a` stands for itself, where SQuAD's own
    script makes every such answer equal to saying nothing.
    """
    text = text.lower()
    bare = text.translate(_PUNCTUATION)
    text = bare if bare.strip() else text
    bare = _ARTICLES.sub(" ", text)
    return " ".join((bare if bare.strip() else text).split())


def tokens(text: str) -> list[str]:
    """Lower-case words in order; a text of signs alone stands for its signs, as in `normalise`."""
    return words(text) or text.split()


def bag(text: str) -> list[str]:
    """Normalised words; each letter of a script without spaces (kana, Chinese, Thai) is a word, as in MLQA and JaQuAD."""
    return normalise(_UNSPACED.sub(r" \1 ", text)).split()


def gold_answers(example: Example) -> tuple[str, ...]:
    """Every acceptable answer; none for a question without an answer.

    An example that was written to teach abstention has an abstention as its only answer: it has no answer either.
    """
    answers = tuple(dict.fromkeys(a for a in (example.answer, *example.references) if a.strip()))
    return () if not example.references and all(_only_abstains(a) for a in answers) else answers


def abstained(text: str, phrases: Sequence[str] = ABSTENTIONS) -> bool:
    """Whether a text says nothing, or begins with the words of one of the phrases."""
    words = _words(text)
    return not words or any(words[:len(p)] == p for p in map(_words, phrases) if p)


def pairs(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Iterator[tuple[Example, Prediction]]:
    """Each example with its prediction. Raises GateError when the two lists are not of the same ids in order."""
    if len(examples) != len(predictions):
        raise GateError(f"{len(examples)} examples but {len(predictions)} predictions.")
    for number, (example, prediction) in enumerate(zip(examples, predictions, strict=True), 1):
        if example.id != prediction.id:
            raise GateError(f"Row {number}: the prediction is for '{prediction.id}', the example is '{example.id}'.")
        yield example, prediction


def retrieves(predictions: Sequence[Prediction]) -> bool:
    """Whether these predictions come from an arm with retrieval. One question may find nothing; not all of them."""
    return any(p.passages for p in predictions)


def gold_passages(example: Example) -> frozenset[str]:
    """Ids of the passages that hold the answer, from `meta["gold"]`."""
    gold = example.meta.get("gold") or ()
    return frozenset([gold] if isinstance(gold, str) else gold)


def ranked(examples: Sequence[Example], predictions: Sequence[Prediction], k: int,
           value: Callable[[Sequence[str], frozenset[str]], float]) -> list[dict[str, Any]]:
    """Records of a metric of ranked passages: `value(first k passages, gold)`, or None without gold or retrieval."""
    applies = retrieves(predictions)
    return [{"id": example.id, "value": value(prediction.passages[:k], gold) if applies and gold else None, "k": k,
             "shown": len(prediction.passages)}
            for example, prediction in pairs(examples, predictions) for gold in [gold_passages(example)]]


def parted(row: Tokens) -> tuple[list[int], list[int]]:
    """Prompt and answer ids of a row whose answer stands last."""
    if row.decoder_ids is not None:
        return row.ids, row.decoder_ids[1:]
    start = row.targets.index(True)
    return row.ids[:start], row.ids[start:]


def _words(text: str) -> list[str]:
    return normalise(text.replace("’", "'")).split()


def _only_abstains(text: str) -> bool:
    return _words(text) in [_words(p) for p in ABSTENTIONS]

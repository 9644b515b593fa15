"""What training gained, in two parts that are never added up silently: format and knowledge.

All of it compares a trained arm X with the reference arm (the base, asked in the best way found on dev: instruction, number
of solved examples, stop), both closed-book or both with retrieval, by paired differences d of a metric, X - reference.

- **Format gain**: the mean of d on `unseen`, whose sections nobody was trained on. What is gained there is form, length
  and manner of answering, and skill that carries over; it is no knowledge of the sections.
- **Knowledge gain**: the mean of d on `known` less the mean of d on `unseen`. What is gained on sections that were
  trained on, beyond what is gained anywhere.
- **Brevity gain**: the mean difference of the answers' lengths in tokens over both sets; shorter is better.

Format and brevity are tested as every paired difference. The knowledge gain is a difference of two means over different
sections: it enters by its cluster jackknife values. Each set needs 6 sections; with fewer it is undecided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from luthier.core.finding import Finding
from luthier.engine import statistics
from luthier.pipelines.alike import settle

GAIN = "gain/"
KNOWN, UNSEEN = "known", "unseen"
TOKENS = "answer tokens"
BREVITY_MARGIN = 1.0  # tokens
# question id -> (cluster, value)
Values = Mapping[str, tuple[str, float]]


def pairs(arms: Sequence[str], reference: str) -> list[tuple[str, str]]:
    """(reference, trained arm) with the same retrieval behind the +."""
    def split(arm: str) -> tuple[str, str]:
        model, plus, rest = arm.partition("+")
        return model, plus + rest

    with_ = {split(a)[1]: a for a in arms if split(a)[0] == reference}
    return [(with_[split(a)[1]], a) for a in arms if split(a)[0] != reference and split(a)[1] in with_]


def knowledge(known: tuple[Values, Values], unseen: tuple[Values, Values], **options: Any) -> statistics.Comparison:
    """The difference of differences; each set is (left, right), scores by question.

    options: margin, level, seed, higher_is_better, resamples of `statistics.paired`.
    """
    rows = [(name, f"{name}/{cluster}", d) for name, values in ((KNOWN, known), (UNSEEN, unseen))
            for cluster, d in _differences(*values)]

    def gain(records: Sequence[tuple[str, str, float]]) -> float:
        means = {n: np.mean([d for name, _, d in records if name == n]) for n in (KNOWN, UNSEEN)}
        return float(means[KNOWN] - means[UNSEEN])

    clusters = [c for _, c, _ in rows]
    counts = Counter(name for name, _ in {(n, c) for n, c, _ in rows})
    fewest = min(counts[KNOWN], counts[UNSEEN])
    if fewest < statistics.FEWEST_CLUSTERS:
        smaller = min((KNOWN, UNSEEN), key=lambda n: counts[n])
        asked = sum(n == smaller for n, _, _ in rows)
        needed = -(-asked * (statistics.FEWEST_CLUSTERS - fewest) // fewest)
        return statistics.Comparison(gain(rows), None, None, None, len(rows), len(set(clusters)), "none", "undecided",
                                     needed, options.get("margin"))
    values = statistics.jackknife_values(gain, rows, clusters)
    before = np.zeros(len(rows))
    result = settle(statistics.paired(before, values, clusters, **options), before, values, options.get("level", 0.95))
    return statistics.Comparison(**{**{n: getattr(result, n) for n in result.__slots__}, "difference": gain(rows)})


def finding(part: str, metric: str, left: str, right: str, means: tuple[float | None, float | None],
            result: statistics.Comparison, level: float, unit: str = "") -> Finding:
    """`gain/PART/METRIC/LEFT|RIGHT` from a comparison."""
    interval = None if result.low is None or result.high is None else (float(result.low), float(result.high))
    verdict = "no difference" if result.verdict.startswith("no difference") else result.verdict
    return Finding(
        f"{GAIN}{part}/{metric}/{left}|{right}", *means, float(result.difference), verdict,  # type: ignore[arg-type]
        interval=interval, unit=unit or metric, evidence="scores.jsonl of the arms",
        detail=DETAIL[part], extra={
            "gain": part, "test": result.test, "p": result.p, "clusters": result.clusters, "questions": result.n,
            "needed": result.needed, "left_arm": left, "right_arm": right, "metric": metric, "margin": result.margin,
            "level": level})


DETAIL = {
    "format": "difference on unseen sections, which nobody was trained on",
    "knowledge": "difference on known sections beyond the difference on unseen ones",
    "brevity": "length of the answers, in tokens",
}


def _differences(left: Values, right: Values) -> list[tuple[str, float]]:
    return [(left[i][0], right[i][1] - left[i][1]) for i in left if i in right]

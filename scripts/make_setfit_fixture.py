"""Record the pairs that SetFit's own package draws: the oracle of `text-pairs`.

    python -m venv setfit && setfit/bin/pip install torch setfit && setfit/bin/python scripts/make_setfit_fixture.py

writes tests/fixtures/setfit.json: pairs of texts by each of its strategies, and how often each pair comes. Its logistic head is
scikit-learn's, which the tests ask themselves.
"""

from __future__ import annotations

from collections import Counter
from importlib.metadata import version

from _fixture import write
from setfit.sampler import ContrastiveDataset

LABELS = {"even": ["a", "b"] * 3, "uneven": ["a", "a", "a", "a", "a", "b", "c"], "alone": ["a", "b", "c", "c"]}
# Its settings, and how ours are called.
CASES = [({"sampling_strategy": "unique"}, "unique"), ({"sampling_strategy": "oversampling"}, "oversample"),
         ({"sampling_strategy": "undersampling"}, "undersample"), ({"num_iterations": 3}, "per-text")]


def pairs(name: str, given: dict, ours: str) -> dict:
    """Texts are their numbers."""
    labels = LABELS[name]
    drawn = ContrastiveDataset([str(i) for i in range(len(labels))], labels, multilabel=False, **given)
    counted = Counter((*sorted((int(p["sentence_1"]), int(p["sentence_2"]))), p["label"]) for p in drawn)
    return {"labels": labels, "by": ours, "setting": given, "count": len(drawn),
            "pairs": [[*pair, times] for pair, times in sorted(counted.items())]}


if __name__ == "__main__":
    found = [pairs(name, *case) for name in LABELS for case in CASES]
    write("setfit", __file__, {n: version(n) for n in ("setfit", "transformers")}, pairs=found)
    print([(r["by"], r["count"]) for r in found])

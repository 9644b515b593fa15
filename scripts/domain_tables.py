"""The tables of docs/domain-qa.md from finished runs: `python scripts/domain_tables.py RUN...`, Markdown on the output."""

from __future__ import annotations

import json
import sys
from pathlib import Path

COLUMNS = {
    "f1": "F1", "exact-match": "exact", "rouge-l": "ROUGE-L", "recall": "gold among 5", "mrr": "MRR",
    "groundedness": "grounded", "citation-precision": "citation precision", "abstains": "declines",
    "over-abstains": "declines wrongly", "stops": "stops",
}
SETS = ("known", "unseen", "unanswerable")


def main() -> None:
    for run in map(Path, sys.argv[1:]):
        print(f"### {run.name}\n")
        print(documents(run), "\n")
        for name in SETS:
            print(scores(run, name), "\n")
        print(verdicts(run), "\n")
        print(yields(run), "\n")
        print(seconds(run), "\n")


def documents(run: Path) -> str:
    """One line of what was read."""
    lines = (run / "log.txt").read_text(encoding="utf-8").splitlines()
    kept = [line.partition("] ")[2] for line in lines if any(f"[{step}] " in line and "finished in" not in line
                                                               for step in ("documents", "split"))]
    return "; ".join(dict.fromkeys(kept))


def scores(run: Path, name: str) -> str:
    """Every arm's scores on one set of questions."""
    table = [r for r in json.loads((run / "steps/comparison/table.json").read_text(encoding="utf-8")) if r["set"] == name]
    shown = [m for m in COLUMNS if any(r["metric"] == m for r in table)]
    arms = list(dict.fromkeys(r["arm"] for r in table))
    count = max((r["questions"] for r in table), default=0)
    by = {(r["arm"], r["metric"]): r for r in table}
    rows = [[arm, *(cell(by.get((arm, metric))) for metric in shown)] for arm in arms]
    return markdown([f"{name}, {count} questions", *(COLUMNS[m] for m in shown)], rows)


def cell(row: dict[str, float] | None) -> str:
    """A mean with its interval."""
    if row is None:
        return "–"
    return f"{row['value']:.2f}" + (f" ({row['low']:.2f}–{row['high']:.2f})" if row["low"] is not None else "")


def verdicts(run: Path) -> str:
    """Every paired comparison of F1."""
    found = [json.loads(line) for line in (run / "steps/comparison/findings.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = []
    for f in found:
        _, metric, *rest = f["name"].split("/")
        if f["name"].startswith("compare/") and metric == "f1":
            between = " ({:+.3f} to {:+.3f})".format(*f["interval"]) if f["interval"] else ""
            rows.append([rest[0], rest[1].replace("|", " → "), f"{f['difference']:+.3f}{between}",
                         f"{f['extra']['p_holm']:.3f}" if f["extra"].get("p_holm") is not None else "–", f["verdict"]])
    return markdown(["set", "pair", "difference of F1 (95 %)", "p after Holm", "verdict"], rows)


def yields(run: Path) -> str:
    """What each source wrote, and how much of what went into the filters came out of them."""
    made = json.loads((run / "steps/questions/luthier.json").read_text(encoding="utf-8"))["yields"]
    stages = list(dict.fromkeys(stage for counts in made.values() for stage in counts))
    rows = []
    for name, counts in made.items():
        share = counts[stages[-1]] / max(1, counts.get("drawn", counts["parsed"]))
        rows.append([name, *(str(counts.get(stage, "–")) for stage in stages), f"{100 * share:.0f} %"])
    return markdown(["source", *stages, "yield"], rows)


def seconds(run: Path) -> str:
    """What each step took."""
    rows = []
    for step in sorted((run / "steps").iterdir(), key=lambda p: json.loads((p / "step.json").read_text())["started"]):
        record = json.loads((step / "step.json").read_text(encoding="utf-8"))
        rows.append([step.name, f"{record['seconds']:.0f}"])
    return markdown(["step", "seconds"], rows)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


if __name__ == "__main__":
    main()

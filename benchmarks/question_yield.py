"""Yield and quality of question writers on a folder of documents: rules, few-shot prompting, a tuned writer.

Yield is the share of a generator's attempts that survives parsing and all filters; quality is that of the survivors
(`question-quality`). The filters ask the untuned base for every generator, so that all are judged alike.

    python benchmarks/question_yield.py DOCUMENTS --questions SET --base gemma3-270m --passages 24 --rows 200 --out FILE.json
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core.artifact import open_artifact
from luthier.core.component import build
from luthier.core.example import Dropped
from luthier.core.files import Journal, write_json
from luthier.core.recipe import load_recipe
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.steps.base import Base
from luthier.engine.workshop import Engine
from luthier.pipelines import jobs
from luthier.pipelines.steps.ingest import Ingest
from luthier.techniques.data._questions import spread

FILTERS = ("self-contained", "answerable", "distinct")


def ctx(folder: Path, engine: Engine) -> Ctx:
    """A context in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return Ctx(Rng(0), folder, Journal(folder / "journal.jsonl"), engine)


def measured(name: str, source: Any, writer: Any, judge: Any, chosen: list[Any], engine: Engine, root: Path) -> dict[str, Any]:
    """Counts after each filter, quality of the survivors, seconds, three samples."""
    own, began = replace(ctx(root / name, engine), roles={"writer": writer}), time.perf_counter()
    rows = list(source.apply(iter(chosen), own))
    seconds, counts = time.perf_counter() - began, {"attempts": len(rows)}
    kept = [r for r in rows if not isinstance(r, Dropped)]
    counts["parsed"] = len(kept)
    judging = replace(ctx(root / f"{name}-judged", engine), roles={"writer": judge})
    for spec in FILTERS:
        kept = [r for r in build("data_step", spec).apply(iter(kept), judging) if not isinstance(r, Dropped)]
        counts[spec] = len(kept)
    quality = build("data_step", "question-quality").measure(kept, chosen, judging)
    return {"generator": name, "counts": counts, "yield": len(kept) / max(1, len(rows)), "quality": quality,
            "writing_seconds": round(seconds, 1),
            "samples": [{"question": r.part("question"), "answer": r.answer} for r in kept[:8]]}


def main() -> None:
    """Run all three and write the result."""
    ask = argparse.ArgumentParser(description=__doc__)
    ask.add_argument("documents")
    ask.add_argument("--questions", required=True, help="question set that the writer is tuned on")
    ask.add_argument("--base", default="gemma3-270m")
    ask.add_argument("--passages", type=int, default=24)
    ask.add_argument("--rows", type=int, default=200, help="rows of the question set")
    ask.add_argument("--out", default="question_yield.json")
    given = ask.parse_args()
    engine = Engine()
    with TemporaryDirectory() as folder:
        root = Path(folder)
        base = Base(model=given.base).run({}, ctx(root / "base", engine))
        ingest = Ingest(paths=[given.documents])
        ingest.check()
        documents = ingest.run({"base": base}, ctx(root / "documents", engine))
        few = build("data_step", f"few-shot:passages={given.passages}")
        fitting = [p for p in documents.passages() if len(p.text.split()) >= few.min_words]
        chosen = spread(fitting, lambda p: p.section, given.passages, Rng(0, "chosen"))
        recipe = load_recipe("question-writer").edit(**{"base.model": given.base, "rows.path": given.questions,
                                                       "rows.max_rows": given.rows})
        began = time.perf_counter()
        jobs.run(recipe, root / "writer")
        tuning = time.perf_counter() - began
        plain = engine.load(base)
        tuned = engine.load(base, open_artifact(root / "writer" / "steps" / "tuned"))
        short = build("data_step", f"few-shot:passages={given.passages},shots=0")
        results = [measured("headings", build("data_step", "headings"), plain, plain, chosen, engine, root),
                   measured("few-shot", few, plain, plain, chosen, engine, root),
                   measured("tuned-writer", short, tuned, plain, chosen, engine, root)]
    found = {"base": given.base, "passages": len(chosen), "rows": given.rows, "tuning_seconds": round(tuning, 1),
             "generators": results}
    write_json(Path(given.out), found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()

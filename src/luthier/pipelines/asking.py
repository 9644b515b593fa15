"""Asking a run: one arm answers a question and names the passages it was shown."""

from __future__ import annotations

import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from luthier.core.artifact import Artifact
from luthier.core.citing import ABSTENTION
from luthier.core.component import build
from luthier.core.errors import UserError, nearest
from luthier.core.example import question as make_question
from luthier.core.files import Journal
from luthier.core.kinds import Prediction
from luthier.core.recipe import Node, Recipe
from luthier.core.rng import Rng
from luthier.core.run import Run
from luthier.core.step import Ctx
from luthier.engine.rendering import Prompting
from luthier.pipelines.showing import as_shot, citations
from luthier.pipelines.steps.evaluate import Evaluate

PREFERRED = ("tuned+retrieval", "base+retrieval", "tuned", "base")
EXCERPT = 240


def arms(run: Run) -> dict[str, Node]:
    """The finished arms of a run by name."""
    import yaml

    recipe = Recipe(yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8")))
    return {n.step.arm: n for n in recipe.nodes if isinstance(n.step, Evaluate) and run.has(n.name)}


def ask(run: Run, text: str, *, arm: str | None = None, passages: int | None = None, decoder: Any = None) -> dict[str, Any]:
    """The arm's answer with the passages it was shown.

    Raises:
        UserError: no such arm, or no finished arm.
    """
    from luthier.engine.workshop import Engine

    found = arms(run)
    if not found:
        raise UserError(f"{run.folder} has no finished arm yet. Run its command again to finish it.")
    name = arm or next((a for a in PREFERRED if a in found), next(iter(found)))
    if name not in found:
        raise UserError(f"This run has no arm '{name}'. {nearest(name, found)}")
    node = found[name]
    step, record = node.step, run.step(node.name)
    assert isinstance(step, Evaluate)
    reads = step.passages > 0
    changes: dict[str, Any] = {"decoder": build("decoder", decoder)} if decoder else {}
    if passages is not None:
        if not step.passages:
            raise UserError(f"Arm '{name}' shows no passages; --passages needs one with retrieval.")
        changes["passages"] = passages
    step = step.model_copy(update=changes)
    inputs: dict[str, Artifact] = {wanted: run.step(source) for wanted, source in node.inputs.items()}
    began = time.monotonic()
    with TemporaryDirectory() as folder:
        decided = run.record.get("decisions", {})
        engine = Engine(exact=bool(decided.get("exact")))
        engine.decisions.update({k: v for k, v in decided.items() if k == "bfloat16_speedup"})
        ctx = Ctx(Rng(int(run.record["seed"])), Path(folder), Journal(Path(folder) / "journal.jsonl"), engine)
        model = engine.load(inputs["base"], inputs.get("tuned"))
        if model.heads:
            raise UserError(f"Arm '{name}' gives labels, not answers. Use: luthier evaluate")
        # An arm that only read texts has no way of asking that was chosen for it.
        chosen = record.meta["prompting"] or {"instruction": "", "shot_ids": [], "stop": "token"}
        shots = {e.id: e for e in inputs["examples"].examples("train") if e.id in chosen["shot_ids"]}
        # The solved examples as the arm was evaluated with them: without passages where it shows none.
        shown = [as_shot(shots[i], reads) for i in chosen["shot_ids"]]
        prompting = Prompting(chosen["instruction"], tuple(shown), chosen["stop"])
        # A model that was tuned on conversations is asked in one.
        asked = make_question("asked", text, task="chat" if chosen.get("conversation") else "qa")
        hits = step._retrieve([asked], inputs, ctx)
        if step.passages and not hits[0]:
            prediction = Prediction("asked", text=ABSTENTION)
        else:
            (prediction,), _ = step._answer(model, [asked], hits, prompting, ctx)
    return {
        "question": text, "answer": prediction.text, "arm": name, "stopped": prediction.stopped,
        "seconds": time.monotonic() - began, "citations": citations(prediction, hits[0][:step.passages]),
        "passages": [{"id": p.id, "document": p.document, "page": p.page, "line": p.line, "place": p.place,
                      "headings": list(p.headings),
                      "excerpt": _excerpt(p.text)} for p in hits[0][:step.passages]],
    }


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT else flat[:EXCERPT].rsplit(" ", 1)[0] + " …"

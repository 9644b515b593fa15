"""Asking a run: one arm answers a question and names the passages it was shown."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.citing import ABSTENTION
from luthier.core.component import build
from luthier.core.errors import UserError, nearest
from luthier.core.example import Passage
from luthier.core.example import question as make_question
from luthier.core.files import Memory
from luthier.core.kinds import Prediction
from luthier.core.recipe import Node, Recipe
from luthier.core.rng import Rng
from luthier.core.run import Run
from luthier.core.step import Ctx
from luthier.engine.rendering import Prompting, Render
from luthier.pipelines.showing import as_shot, citations, harmless
from luthier.pipelines.speakers import further
from luthier.pipelines.steps.evaluate import Evaluate

if TYPE_CHECKING:
    from luthier.engine.models import Model
    from luthier.engine.workshop import Engine

PREFERRED = ("tuned+retrieval", "base+retrieval", "tuned", "base")
EXCERPT = 240


def arms(run: Run) -> dict[str, Node]:
    """The finished arms of a run by name."""
    import yaml

    recipe = Recipe(yaml.safe_load((run.folder / "recipe.yaml").read_text(encoding="utf-8")))
    return {n.step.arm: n for n in recipe.nodes if isinstance(n.step, Evaluate) and run.has(n.name)}


def choose(run: Run, arm: str | None = None) -> str:
    """The named arm, or the one that is preferred where none is named.

    Raises:
        UserError: no such arm, or no finished arm.
    """
    found = arms(run)
    if not found:
        raise UserError(f"{run.folder} has no finished arm yet. Run its command again to finish it.")
    name = arm or next((a for a in PREFERRED if a in found), next(iter(found)))
    if name not in found:
        raise UserError(f"This run has no arm '{name}'. {nearest(name, found)}")
    return name


def ask(run: Run, text: str, *, arm: str | None = None, passages: int | None = None, decoder: Any = None, **gates: Any
        ) -> dict[str, Any]:
    """The arm's answer with the passages it was shown; see `Asker`. gates: `gate_temperature` and `trace`."""
    with Asker(run, decoder=decoder) as asker:
        return asker.ask(text, arm=arm, passages=passages, **gates)


def decided(run: Run) -> dict[str, Any]:
    """What a run decided that makes its answers: whether it was exact, and how fast bfloat16 was measured to be."""
    return {k: v for k, v in run.record.get("decisions", {}).items() if k in ("exact", "bfloat16_speedup")}


class Asker:
    """Asks the arms of a run; models are loaded once and kept while it is open, or by the engine that is given."""

    def __init__(self, run: Run, *, decoder: Any = None, engine: Engine | None = None) -> None:
        from luthier.engine.workshop import Engine

        self.run, self.arms = run, arms(run)
        self._decoder = build("decoder", decoder) if decoder else None
        self._promptings: dict[str, tuple[Prompting, bool]] = {}
        kept = decided(run)
        self._own = engine is None
        self._engine = engine or Engine(exact=bool(kept.get("exact")))
        if self._own:
            self._engine.decisions.update({k: v for k, v in kept.items() if k == "bfloat16_speedup"})

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *error: object) -> None:
        if self._own:
            self._engine.forget()

    def ask(self, text: str, *, arm: str | None = None, passages: int | None = None, gate_temperature: float | None = None,
            trace: bool = False) -> dict[str, Any]:
        """Answer, arm, seconds, and the passages it was shown with their scores.

        gate_temperature: of a model's gates. trace: add `routing`, which adapter each token of prompt and answer took.

        Raises:
            UserError: no such arm, an arm that gives labels, passages of an arm that shows none, or gates of a model that has
                none.
        """
        from luthier.engine import routing

        name = self._named(arm)
        step = self._step(name, passages)
        inputs, began = self._inputs(name), time.monotonic()
        model = self.model(name)
        prompting, conversation = self.prompting(name)
        # A model that was tuned on conversations is asked in one.
        asked = make_question("asked", text, task="chat" if conversation else "qa")
        temperature = step.gate_temperature if gate_temperature is None else gate_temperature
        traced: dict[str, Any] = {}
        with self._ctx(step) as ctx, routing.tempered(model, temperature):
            hits = self._search(step, text, inputs, ctx)
            if step.passages and not hits:
                prediction = Prediction("asked", text=ABSTENTION)
            else:
                ctx.roles = {**ctx.roles, **further(step.decoder, inputs, ctx)}
                shown = harmless([p for p, _ in hits], model.tokenizer)
                (prediction,), _ = step._answer(model, [asked], [shown], prompting, ctx)
                if trace:
                    render = step._render(model, [asked], prompting=prompting)
                    ids = [*render.prompt(step._shown(asked, shown)), *render.encode(f" {prediction.text}")]
                    traced = {"routing": routing.told(model, ids)}
        return {
            "question": text, "answer": prediction.text, "arm": name, "stopped": prediction.stopped,
            "seconds": time.monotonic() - began, "citations": citations(prediction, [p for p, _ in hits[:step.passages]]),
            "passages": [{"id": p.id, "document": p.document, "page": p.page, "line": p.line, "place": p.place,
                          "headings": list(p.headings), "excerpt": _excerpt(p.text), "score": float(score)}
                         for p, score in hits[:step.passages]],
            **traced,
        }

    def write(self, prompt: str, *, arm: str | None = None, max_tokens: int = 48) -> str:
        """One line of what an arm's model writes after a text."""
        model = self.model(self._named(arm))
        render = Render(model.tokenizer, model.architecture, model.limit)
        ids = render._start() + render.encode(prompt)
        if len(ids) + max_tokens + model.taken > model.limit:
            return ""
        (made,) = self._engine.generate(model, [ids], f"greedy:max_new_tokens={max_tokens}", stop="newline")
        return made.text.strip()

    def _named(self, arm: str | None) -> str:
        return arm if arm in self.arms else choose(self.run, arm)

    def _step(self, name: str, passages: int | None) -> Evaluate:
        step = self.arms[name].step
        assert isinstance(step, Evaluate)
        changes: dict[str, Any] = {"decoder": self._decoder} if self._decoder else {}
        if passages is not None:
            if not step.passages:
                raise UserError(f"Arm '{name}' shows no passages; --passages needs one with retrieval.")
            changes["passages"] = passages
        return step.model_copy(update=changes)

    def _inputs(self, name: str) -> dict[str, Artifact]:
        return {wanted: self.run.step(source) for wanted, source in self.arms[name].inputs.items()}

    @contextmanager
    def _ctx(self, step: Evaluate) -> Iterator[Ctx]:
        """A context of its own for each answer: a journal must not answer the next question with the last one.

        Nothing of it is on disk, but for what a decoder loads further models from.
        """
        with TemporaryDirectory() if step.decoder.models() else nullcontext(os.devnull) as folder:
            yield Ctx(Rng(int(self.run.record["seed"])), Path(folder), Memory(), self._engine)

    def model(self, name: str) -> Model:
        """The model of an arm. Raises UserError where it gives labels."""
        inputs = self._inputs(name)
        step = self.arms[name].step
        assert isinstance(step, Evaluate)
        model = self._engine.load(inputs["base"], inputs.get("tuned"), weights=step.weights)
        if model.heads:
            raise UserError(f"Arm '{name}' gives labels, not answers. Use: luthier evaluate")
        return model

    def passages(self, name: str) -> int:
        """How many passages an arm shows."""
        return self._step(name, None).passages

    def encoder(self, name: str) -> Model | None:
        """The encoder that finds an arm's passages; None where it shows none."""
        inputs = self._inputs(name)
        return self._engine.load(inputs["encoder"]) if "encoder" in inputs and "index" in inputs else None

    def prompting(self, name: str) -> tuple[Prompting, bool]:
        """How an arm was evaluated, and whether that was a conversation."""
        if name not in self._promptings:
            self._promptings[name] = self._prompting(name)
        return self._promptings[name]

    def _prompting(self, name: str) -> tuple[Prompting, bool]:
        node, inputs = self.arms[name], self._inputs(name)
        step = node.step
        assert isinstance(step, Evaluate)
        # An arm that only read texts has no way of asking that was chosen for it.
        chosen = self.run.step(node.name).meta["prompting"] or {"instruction": "", "shot_ids": [], "stop": "token"}
        shots = {e.id: e for e in inputs["examples"].examples("train") if e.id in chosen["shot_ids"]}
        # The solved examples as the arm was evaluated with them: without passages where it shows none.
        shown = [as_shot(shots[i], step.passages > 0) for i in chosen["shot_ids"]]
        return Prompting(chosen["instruction"], tuple(shown), chosen["stop"]), bool(chosen.get("conversation"))

    def _search(self, step: Evaluate, text: str, inputs: dict[str, Artifact], ctx: Ctx) -> list[tuple[Passage, float]]:
        if not step.passages:
            return []
        from luthier.pipelines.steps.index import open_retriever

        ctx.roles = {"encoder": self._engine.load(inputs["encoder"])}
        depth = max([step.passages, *(getattr(m, "k", 0) for m in step.metrics)])
        return list(open_retriever(inputs["index"]).search(inputs["index"], [text], depth, ctx)[0])


def where(passage: dict[str, Any]) -> str:
    """Where a shown passage stands: file, page and line where known, headings."""
    topic = f": {' / '.join(passage['headings'])}" if passage["headings"] else ""
    return f"{passage['place']}{topic}"


def spans(routing: dict[str, Any]) -> list[tuple[str, float, str]]:
    """Adapter, mean weight and text of each run of tokens that took the same adapter most."""
    found: list[tuple[str, float, str]] = []
    tops = [max(range(len(w)), key=w.__getitem__) for w in routing["weights"]]
    for top, several in groupby(range(len(tops)), key=tops.__getitem__):
        places = list(several)
        share = sum(routing["weights"][i][top] for i in places) / len(places)
        found.append((routing["routes"][top], share, "".join(routing["tokens"][i] for i in places)))
    return found


def abstained(answer: dict[str, Any]) -> bool:
    """Whether an answer says that nothing was found."""
    return bool(answer["answer"].strip().rstrip(".").lower() == ABSTENTION)


def _excerpt(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= EXCERPT else flat[:EXCERPT].rsplit(" ", 1)[0] + " …"

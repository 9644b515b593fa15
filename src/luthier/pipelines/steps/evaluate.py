"""Evaluate: one arm's answers to the test sets, with records of every metric.

An arm is a model, with or without retrieval, asked in the best way found on dev: instruction, number of solved
examples, and where an answer ends. The test sets are opened after that choice, and each opening is logged.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, seal
from luthier.core.citing import ABSTENTION
from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example, Passage
from luthier.core.files import write_json, write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.identity import hash_file
from luthier.core.kinds import Decoder, Metric, Prediction
from luthier.core.step import Ctx, Step
from luthier.engine.chat import CHOICES, check_choice
from luthier.engine.rendering import Prompting
from luthier.pipelines.showing import as_shot, cited, retrieve
from luthier.pipelines.speakers import further

if TYPE_CHECKING:
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render

Stop = Literal["token", "newline"]


class Evaluate(Step, name="evaluate"):
    """Answer the test sets with one arm and score the answers."""

    inputs: ClassVar[dict[str, str]] = {
        "base": "model", "examples": "examples", "tuned?": "adapter|delta|model", "index?": "index", "encoder?": "model",
        "documents?": "documents", "*": "model|adapter|delta"}
    output: ClassVar[str] = "records"
    arm: str = Field(description="name of this arm in tables")
    sets: tuple[str, ...] = Field(("known", "unseen", "unanswerable"), description="subsets that are asked, if they exist")
    passages: int = Field(0, ge=0, description="how many retrieved passages stand above the question")
    retriever: Literal["index", "oracle"] = Field("index", description="oracle: passages that hold the answer come first; "
                                                                       "what a perfect retriever would give")
    instructions: tuple[str, ...] = Field(("",), description="sentences before the question to choose from on dev")
    shots: tuple[int, ...] = Field((0,), description="numbers of solved examples to choose from on dev")
    stops: tuple[Stop, ...] = Field(("token",), description="ends of an answer to choose from on dev")
    dev_rows: int = Field(16, ge=1, description="dev questions used for the choice")
    decoder: Slot[Decoder] = Field(named("greedy"), description="how answers are written")
    weights: Literal["own", "int8"] = Field("own", description="int8: 8 bits a weight, a near model but another one")
    metrics: tuple[Slot[Metric], ...] = Field(
        named(("exact-match", "f1", "recall", "ndcg", "stops", "abstains")), description="what is measured")
    choose_by: Slot[Metric] = Field(named("f1"), description="the metric on dev that decides")
    template: str = Field("auto", description="auto (the trained one; of a base, its own for chats), plain, chat, or a file")
    other_template: bool = Field(False, description="allow a template other than the one the model was trained with")
    max_tokens_per_example: int = Field(512, ge=8, description="raw texts are scored in rows of at most so many tokens")
    gate_temperature: float | None = Field(None, gt=0, description="temperature of a model's gates when it answers; its own if "
                                                                   "left out")

    def check(self) -> None:
        """Refuse an empty choice."""
        for name in ("instructions", "shots", "stops"):
            if not getattr(self, name):
                raise UserError(f"evaluate.{name} is empty: give at least one to choose from.")
        check_choice(self.template)

    def content(self) -> dict[str, Any]:
        """Hash of a template that is a file."""
        return {} if self.template in CHOICES else {"template": hash_file(Path(self.template).expanduser())}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Choose the prompting on dev, then open the test sets and answer them."""
        if self.passages and not ("index" in inputs and "encoder" in inputs):
            raise UserError(f"Arm '{self.arm}' shows passages: it needs the inputs 'index' and 'encoder'.")
        from luthier.engine import routing

        began = time.monotonic()
        model = ctx.engine.load(inputs["base"], inputs.get("tuned"), weights=self.weights)
        with routing.tempered(model, self.gate_temperature):
            return self._run(model, inputs, ctx, began)

    def _run(self, model: Model, inputs: Mapping[str, Artifact], ctx: Ctx, began: float) -> Artifact:
        examples = inputs["examples"]
        if model.heads:
            return self._labels(model, inputs, ctx)
        ctx.roles = {**ctx.roles, **further(self.decoder, inputs, ctx)}
        sets = [s for s in self.sets if s in examples.subsets]
        rows = [(s, e) for s in sets for e in examples.examples(s)]
        if rows and rows[0][1].task == "text":
            return self._texts(model, rows, ctx)
        self._check_options(rows)
        answers = any(m.needs_answers for m in self.metrics)
        prompting, tried = self._choose(model, inputs, ctx) if answers else (Prompting(), [])
        if not rows:
            raise UserError(f"None of the sets {', '.join(self.sets)} is in the examples: {', '.join(examples.subsets)}.")
        ctx.log(f"test opened: {len(rows)} questions of {', '.join(sets)} by arm {self.arm}")
        asked = [e for _, e in rows]
        found = self._retrieve(asked, inputs, ctx)
        if answers:
            predictions, prompt_tokens = self._answer(model, asked, found, prompting, ctx)
        else:
            predictions = [self._said(e, Prediction(e.id), hits) for e, hits in zip(asked, found, strict=True)]
            rows = [(s, self._shown(e, hits) if e.task == "multiple-choice" else e)
                    for (s, e), hits in zip(rows, found, strict=True)]
            prompt_tokens = 0
        ctx.roles = {**ctx.roles, **self._asked(inputs, ctx), "policy": model}
        rows = [(s, self._judged(e, model)) for s, e in rows]
        chosen = {"instruction": prompting.instruction, "shots": len(prompting.shots), "stop": prompting.stop,
                  "shot_ids": [s.id for s in prompting.shots],
                  **({"conversation": True} if rows[0][1].task == "chat" else {})}
        self._trace(model, rows, predictions, prompting, ctx)
        write_json(ctx.folder / "cost.json", {"seconds": time.monotonic() - began})
        return self._write(ctx, rows, predictions, prompting=chosen, tried=tried, prompt_tokens=prompt_tokens,
                           new_tokens=sum(p.tokens for p in predictions), seconds=round(time.monotonic() - began, 2))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every question has one answer and one record of each metric."""
        from luthier.core.files import read_lines

        asked = sum(1 for s in self.sets if s in inputs["examples"].subsets for _ in inputs["examples"].examples(s))
        answered = len(read_lines(artifact.folder / "predictions.jsonl"))
        records = len(read_lines(artifact.folder / "scores.jsonl"))
        return [receipt("evaluate/answers", asked, answered, unit="questions", detail=f"asked and answered by {self.arm}"),
                receipt("evaluate/records", asked * len(self._metrics(artifact)), records, unit="records",
                        detail="questions times metrics against records")]

    # --- parts of run ------------------------------------------------------------------------------------------

    def _choose(self, model: Model, inputs: Mapping[str, Artifact], ctx: Ctx) -> tuple[Prompting, list[dict[str, Any]]]:
        """The best of instructions x shots x stops on dev; ties go to the earlier, cheaper one."""
        examples = inputs["examples"]
        shots = self._shots(examples, ctx)
        options = [(i, n) for i, n in product(self.instructions, sorted(self.shots))]
        if len(options) == 1 and len(self.stops) == 1:
            instruction, count = options[0]
            return Prompting(instruction, shots[:count], self.stops[0]), []
        dev = list(examples.examples("dev"))
        dev = [dev[i] for i in sorted(ctx.rng("dev").permutation(len(dev))[:self.dev_rows])]
        found = self._retrieve(dev, inputs, ctx)
        tried: list[dict[str, Any]] = []
        for instruction, count in options:
            # One generation serves both ends: a newline only cuts what was written.
            prompting = Prompting(instruction, shots[:count], "token")
            predictions, _ = self._answer(model, dev, found, prompting, ctx)
            for stop in self.stops:
                cut = [cited(_cut(p), p.passages[:self.passages]) if stop == "newline" else p for p in predictions]
                records = self.choose_by.score(dev, cut, ctx)
                tried.append({"instruction": instruction, "shots": count, "stop": stop, "questions": len(dev),
                              f"dev_{self.choose_by.info.name}": self.choose_by.reduce(records)})
        best = max(tried, key=lambda t: t[f"dev_{self.choose_by.info.name}"])
        ctx.log(f"chosen on {len(dev)} dev questions: {best['shots']} shots, stop at {best['stop']}, "
                f"instruction {best['instruction']!r}")
        return Prompting(best["instruction"], shots[:best["shots"]], best["stop"]), tried

    def _shots(self, examples: Artifact, ctx: Ctx) -> tuple[Example, ...]:
        """Solved examples from the training rows, shortest passages first among a random draw."""
        if not max(self.shots):
            return ()
        train = list(examples.examples("train"))
        drawn = [train[i] for i in ctx.rng("shots").permutation(len(train))]
        if not self.passages:
            return tuple(as_shot(e, False) for e in drawn[:max(self.shots)])
        # An example that finds nothing would teach a base, which is shown two or three, to find nothing.
        shown = [e for e in drawn if e.part("passage") and e.answer != ABSTENTION]
        chosen = sorted(shown[:8 * max(self.shots)], key=_passage_length)[:max(self.shots)]
        return tuple(as_shot(e, True) for e in chosen)

    def _retrieve(self, rows: Sequence[Example], inputs: Mapping[str, Artifact], ctx: Ctx) -> list[list[Passage]]:
        if not self.passages:
            return [[] for _ in rows]
        depth = max(self.passages, *(getattr(m, name, 0) for m in self.metrics for name in ("depth", "k")))
        return retrieve(rows, depth, inputs, ctx, oracle=self.retriever == "oracle")

    def _asked(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> dict[str, Any]:
        """The models that metrics ask beside the arm's own; where nobody asks, none is loaded."""
        wanted = {role for m in self.metrics for role in m.roles}
        if "encoder" in wanted and "encoder" not in inputs:
            raise UserError(f"A metric of arm '{self.arm}' compares meanings: it needs the input 'encoder'.")
        sources = {"reference": "base", "encoder": "encoder"}
        return {role: ctx.engine.load(inputs[source]) for role, source in sources.items() if role in wanted}

    def _check_options(self, rows: Sequence[tuple[str, Example]]) -> None:
        """Rows with options are not answered in words: only metrics that weigh the options can say anything of them."""
        if any(e.task == "multiple-choice" for _, e in rows) and any(m.needs_answers for m in self.metrics):
            raise UserError(f"The rows of arm '{self.arm}' are multiple choice: nothing is written for them. Give "
                            "metrics: [multiple-choice] (--metric multiple-choice).")

    def _shown(self, example: Example, hits: Sequence[Passage]) -> Example:
        """A question below the passages of this arm; without any it is as the arm without retrieval asks it."""
        from luthier.engine.rendering import with_passages

        return with_passages(example, [p.shown for p in hits[:self.passages]])

    def _said(self, example: Example, prediction: Prediction, hits: Sequence[Passage]) -> Prediction:
        """A prediction with what was found and shown; the citations it ends with are read."""
        shown = hits[:self.passages]
        prediction = replace(prediction, passages=tuple(p.id for p in hits), shown=tuple(p.shown for p in shown))
        return cited(prediction, [p.id for p in shown])

    def _answer(self, model: Model, rows: Sequence[Example], found: Sequence[Sequence[Passage]], prompting: Prompting,
                ctx: Ctx) -> tuple[list[Prediction], int]:
        render = self._render(model, rows, prompting=prompting)
        asked = [self._shown(e, hits) for e, hits in zip(rows, found, strict=True)]
        prompts = [render.prompt(e) for e in asked]
        longest = max(map(len, prompts)) + self.decoder.max_new_tokens + model.taken
        if longest > model.limit:
            raise UserError(f"A prompt of arm '{self.arm}' has {longest} tokens; {model.name} reads {model.limit}. "
                            "Show fewer passages (passages) or fewer solved examples (shots).")
        others = {role: ctx.roles[role] for role in self.decoder.roles}
        speakers = {"policy": model, **others} if others else model
        made = ctx.engine.generate(speakers, prompts, self.decoder, rng=ctx.rng.within("answers"), stop=prompting.stop,
                                   stop_ids=render.stop_ids, journal=ctx.journal, progress=ctx.progress,
                                   seen=[render.seen(e) for e in asked], examples=asked)
        predictions = [
            self._said(e, Prediction(e.id, text=g.text, stopped=g.stopped, tokens=g.tokens), hits)
            for e, g, hits in zip(rows, made, found, strict=True)]
        return predictions, sum(map(len, prompts))

    def _trace(self, model: Model, rows: Sequence[tuple[str, Example]], predictions: Sequence[Prediction],
               prompting: Prompting, ctx: Ctx) -> None:
        """Of a model with gates: which adapters the tokens of the first row of each set took, for the report."""
        from luthier.engine import routing

        if not routing.routes(model) or model.architecture == "encoder-decoder":
            return
        render = self._render(model, [e for _, e in rows], prompting=prompting)
        firsts = {s: (e, p) for (s, e), p in reversed(list(zip(rows, predictions, strict=True)))}
        texts = {s: [*render.prompt(e), *render.encode(f" {p.text}" if p.text else "")] for s, (e, p) in firsts.items()}
        write_json(ctx.folder / "routing.json", {s: routing.told(model, ids) for s, ids in texts.items()})

    def _render(self, model: Model, rows: Sequence[Example], **options: Any) -> Render:
        from luthier.engine.encoding import chats
        from luthier.engine.rendering import renderer

        return renderer(model, template=self.template, other_template=self.other_template, chats=chats(rows), **options)

    def _judged(self, example: Example, model: Model) -> Example:
        """An example as answers are compared with it: a tool call is what the arm's template makes of it."""
        last = next((t for t in reversed(example.turns) if t.target), None)
        if last is None or not last.calls:
            return example
        return replace(example, references=(self._render(model, [example]).target_text(example), *example.references))

    def _texts(self, model: Model, rows: Sequence[tuple[str, Example]], ctx: Ctx) -> Artifact:
        """Raw texts are not answered but read: the log-probability of each, in rows as training cuts them."""
        from luthier.engine.rendering import renderer

        ctx.log(f"test opened: {len(rows)} texts of {', '.join(sorted({s for s, _ in rows}))} by arm {self.arm}")
        began = time.monotonic()
        render = renderer(model, min(self.max_tokens_per_example, model.limit), template="auto")
        blocks = [(n, block.ids) for n, (_, e) in enumerate(rows) for block in render.blocks(e)]
        scored = ctx.engine.score(model, [(ids[:1], ids[1:]) for _, ids in blocks])
        sums, tokens = [0.0] * len(rows), [0] * len(rows)
        for (n, _), (log_probability, count) in zip(blocks, scored, strict=True):
            sums[n] += log_probability
            tokens[n] += count
        predictions = [Prediction(e.id, tokens=tokens[n], log_probability=sums[n]) for n, (_, e) in enumerate(rows)]
        return self._write(ctx, rows, predictions, prompting={}, tried=[], prompt_tokens=sum(tokens), new_tokens=0,
                           seconds=round(time.monotonic() - began, 2))

    def _labels(self, model: Model, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """The answers of a classifier: the most probable label and all probabilities."""
        from luthier.engine.classification import classify

        examples = inputs["examples"]
        rows = [(s, e) for s in self.sets if s in examples.subsets for e in examples.examples(s)]
        ctx.log(f"test opened: {len(rows)} rows of {', '.join(sorted({s for s, _ in rows}))} by arm {self.arm}")
        began = time.monotonic()
        predictions = classify(model, inputs["tuned"], [e for _, e in rows], ctx)
        return self._write(ctx, rows, predictions, prompting={}, tried=[], prompt_tokens=sum(p.tokens for p in predictions),
                           new_tokens=0, seconds=round(time.monotonic() - began, 2))

    def _metrics(self, artifact: Artifact) -> list[str]:
        return list(artifact.meta["metrics"])

    def _write(self, ctx: Ctx, rows: Sequence[tuple[str, Example]], predictions: Sequence[Prediction], **meta: Any
               ) -> Artifact:
        examples = [e for _, e in rows]
        about = {e.id: {"id": e.id, "set": s, "cluster": e.cluster or e.id} for s, e in rows}
        write_lines(ctx.folder / "predictions.jsonl", (
            {**about[e.id], "question": _asked(e), "references": list(e.references),
             "text": p.text or (p.label or ""), "stopped": p.stopped, "tokens": p.tokens,
             "passages": list(p.passages[:self.passages]), "ranked": list(p.passages),
             **({"citations": list(p.citations)} if p.citations else {}),
             **({"label": e.label, "probabilities": dict(p.probabilities)} if p.label is not None else {})}
            for e, p in zip(examples, predictions, strict=True)))
        records = ctx.engine.evaluate(examples, predictions, self.metrics, ctx)
        details = self._details(records, {e.id: s for s, e in rows})
        write_lines(ctx.folder / "scores.jsonl", (
            {**about[r["id"]], "metric": name, **r} for name, found in records.items() for r in found))
        measured = {name: next(m.higher_is_better for m in self.metrics if m.info.name == name) for name in records}
        low = {"weights": self.weights} if self.weights != "own" else {}
        return seal("records", ctx.folder, arm=self.arm, metrics=measured, **details, **low, **meta)

    def _details(self, records: Mapping[str, Sequence[Mapping[str, Any]]], sets: Mapping[str, str]) -> dict[str, Any]:
        """What metrics say beside their values: metric -> set, or "all" of them together -> name -> number."""
        found: dict[str, dict[str, dict[str, float]]] = {}
        for metric in self.metrics:
            whole = records[metric.info.name]
            parts = {"all": whole, **{s: [r for r in whole if sets[r["id"]] == s] for s in dict.fromkeys(sets.values())}}
            told = {name: numbers for name, rows in parts.items() if (numbers := metric.details(rows))}
            if told:
                found[metric.info.name] = told
        return {"details": found} if found else {}


def _asked(example: Example) -> str:
    """What an example asks: its question, or the last message that is not learned."""
    return example.part("question") or next((t.text for t in reversed(example.turns) if not t.target), "")[:400]


def _passage_length(example: Example) -> int:
    return sum(len(p.value) for t in example.turns for p in t.parts if p.name == "passage")


def _cut(prediction: Prediction) -> Prediction:
    first, newline, _ = prediction.text.partition("\n")
    return Prediction(**{**prediction.__dict__, "text": first.strip(), "stopped": prediction.stopped or bool(newline)})

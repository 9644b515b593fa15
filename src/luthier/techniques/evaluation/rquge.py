"""rquge: how good a question is, without a reference question: answer it, and rate that answer.

With context D, candidate question q and the answer a_r it was meant to have: a_c = QA("{q} \\n {D}") (a backslash and an n,
greedy, at most 30 new tokens), and RQUGE = S(q, a_r, a_c, D), the score of a trained `span-scorer` on its text, 1 to 5, not
clipped. A question without words scores 1. The answers are those of the model under evaluation, or of a reader named by `qa`.
An answer that does not stand in its context is logged and scored all the same. A row longer than the scorer reads keeps the
part of the context around the answer (`long: window`) or its beginning (`long: cut`), and is logged. Both may also be
folders of published checkpoints: a reader, and a sequence classifier with one output, which rates by its own head.

When it helps: choosing among synthetic questions (data step `rerank`). Source: Mohammadshahi et al. 2023, "RQUGE:
reference-free metric for evaluating question generation by answering the question" (seed 106). Scores depend on reader and
scorer: compare only what the same two measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.kinds import Decoder, Metric, Objective, Prediction
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.techniques.evaluation._shared import pairs

if TYPE_CHECKING:
    from luthier.core.artifact import Artifact
    from luthier.engine.cross_encoder import CrossEncoder
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render

LEAST = 1.0
MOST_TOKENS = 512


class Rquge(Metric, name="rquge", seeds=[106]):
    """Rating of the answer that a question leads to, from 1 to 5."""

    unit: ClassVar[str] = "of 5"
    scorer: str = Field("", description="folder of a tuned span-scorer, RUN/steps/tuned, or of a sequence classifier")
    qa: str = Field("", description="folder of a reader: RUN/steps/tuned; left out: the answers of the evaluated model")
    ask: Literal["published", "trained"] = Field("published", description="how the reader is asked: question, \\n, context; "
                                                 "or by the template it was trained with")
    long: Literal["window", "cut"] = Field("window", description="what is kept of a context that is too long: around the "
                                                                 "answer, or its beginning")
    form: Slot[Objective] = Field(named("span-scorer"), description="how a row becomes the text that the scorer was trained on")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=30"), description="how the reader writes")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` (raw), `predicted` and `answer_in_context`; None for a question without an intended answer.

        Raises:
            UserError: no scorer, one whose head has more than one output, or no answers to rate.
        """
        scorer = self._classifier(ctx) or self._opened("scorer", ctx)
        found = list(pairs(examples, predictions))
        asked = [e for e, _ in found if e.part("question").strip() and _intended(e)]
        said = self._answers(asked, {p.id: p.text for _, p in found}, ctx)
        strange = [e.id for e in asked if _intended(e).lower() not in e.part("passage").lower()]
        if strange:
            ctx.log(f"rquge: the answers of {len(strange)} questions are not in their contexts: {', '.join(strange[:5])}")
        rated = self._rated(scorer, asked, said, ctx)
        records: list[dict[str, Any]] = []
        for e, _ in found:
            value = rated.get(e.id, LEAST if _intended(e) else None)
            records.append({"id": e.id, "value": value, "predicted": said.get(e.id, ""),
                            "answer_in_context": e.id in rated and e.id not in strange})
        return records

    def _published(self, field: str, ctx: Ctx) -> Artifact | None:
        """A checkpoint that was not made here, as a base; None where the folder is of a run's step, or not named."""
        from luthier.core.artifact import RECORD

        folder = Path(getattr(self, field) or ".").expanduser()
        if not getattr(self, field) or (folder / RECORD).exists() or not (folder / "config.json").exists():
            return None
        place = ctx.folder / f"rquge-{field}"
        place.mkdir(parents=True, exist_ok=True)
        base: Artifact = build("step", {"use": "base", "model": str(folder)}).run({}, replace(ctx, folder=place))
        return base

    def _classifier(self, ctx: Ctx) -> CrossEncoder | None:
        """A published scorer with the head that it comes with."""
        from luthier.engine.cross_encoder import load_cross_encoder

        base = self._published("scorer", ctx)
        return load_cross_encoder(base) if base is not None else None

    def _opened(self, field: str, ctx: Ctx) -> Model:
        from luthier.core.artifact import open_artifact
        from luthier.engine.models import base_of

        folder = getattr(self, field)
        if not folder:
            raise UserError("rquge needs a scorer: tune one with --objective span-scorer, then "
                            "--metric rquge:scorer=RUN/steps/tuned.")
        published = self._published(field, ctx)
        if published is not None:
            found: Model = ctx.engine.load(published)
            return found
        artifact = open_artifact(Path(folder))
        model: Model = ctx.engine.load(base_of(artifact), artifact)
        if field == "scorer":
            import torch

            heads = list(model.heads.values())
            features = torch.zeros(1, model.width, dtype=next(heads[0].parameters()).dtype) if heads else None
            outputs = heads[0](features).shape[-1] if heads else 0
            if outputs != 1:
                raise UserError(f"{folder} has a head of {outputs} outputs; a scorer has one: "
                                "tasks: [{objective: span-scorer, head: linear}].")
        return model

    def _answers(self, asked: Sequence[Example], given: Mapping[str, str], ctx: Ctx) -> dict[str, str]:
        """What the reader says to each question, by id."""
        if not self.qa:
            if asked and not any(given[e.id].strip() for e in asked):
                raise UserError("rquge has no answers to rate: name a reader, --metric rquge:qa=RUN/steps/tuned,scorer=….")
            return {e.id: given[e.id] for e in asked}
        from luthier.engine.rendering import renderer

        reader = self._opened("qa", ctx)
        render = renderer(reader)
        prompts = [_asked(render, reader_input(e.part("question"), e.part("passage"))) if self.ask == "published"
                   else render.prompt(e) for e in asked]
        made = ctx.engine.generate(reader, prompts, self.decoder, rng=ctx.rng.within("rquge"), stop_ids=render.stop_ids,
                                   journal=ctx.journal, progress=ctx.progress)
        return {e.id: g.text.strip() for e, g in zip(asked, made, strict=True)}

    def _rated(self, scorer: Model | CrossEncoder, asked: Sequence[Example], said: Mapping[str, str], ctx: Ctx
               ) -> dict[str, float]:
        """Scores by id: the scorer's own, whatever the batch."""
        import torch

        from luthier.engine.batches import collate
        from luthier.engine.cross_encoder import CrossEncoder
        from luthier.engine.forward import Forward
        from luthier.engine.rendering import Render, renderer
        from luthier.engine.scoring import batches_of

        if isinstance(scorer, CrossEncoder):
            own = Render(scorer.tokenizer, "encoder", min(scorer.limit, MOST_TOKENS), over_long="truncate")
            fitted = [self._fitting(scored_row(e, said[e.id]), own, ctx) for e in asked]
            read = [self.form.encode(row, own, Rng(0))["input"].ids for row in fitted]  # type: ignore[union-attr]
            values = scorer.of_rows([{"input_ids": ids, "attention_mask": [1] * len(ids)} for ids in read])
            return {e.id: value for e, value in zip(asked, values, strict=True)}
        render = renderer(scorer, min(scorer.limit, int(scorer.template.get("max_tokens", MOST_TOKENS))), over_long="truncate")
        rows = [self._fitting(scored_row(e, said[e.id]), render, ctx) for e in asked]
        features = [self.form.encode(row, render, Rng(0)) for row in rows]
        run = Forward({"policy": scorer})
        run.task = next(iter(scorer.heads))
        found: dict[str, float] = {}
        with torch.no_grad():
            for group in batches_of([len(f["input"].ids) for f in features], rows=32):  # type: ignore[union-attr]
                batch = collate([features[i] for i in group], [rows[i].id for i in group],
                                scorer.tokenizer.pad_token_id or 0, scorer.device)
                scores = run.head(run("policy", batch["input"]).pooled())[:, 0].float().tolist()
                found |= dict(zip((rows[i].id for i in group), scores, strict=True))
        return found

    def _fitting(self, row: Example, render: Any, ctx: Ctx) -> Example:
        """The row with a context short enough for the scorer; what is left out is logged."""
        def length(context: str) -> int:
            whole = replace(render, max_tokens=1 << 30)
            return len(self.form.encode(_with_context(row, context), whole, Rng(0))["input"].ids)  # type: ignore[union-attr]

        context = row.part("passage")
        if length(context) <= render.max_tokens:
            return row
        words = context.split()
        at = len(context[:max(0, context.lower().find(row.answer.lower()))].split()) if self.long == "window" else 0
        low, high = 0, len(words)
        while low < high:  # the most words that fit
            middle = (low + high + 1) // 2
            low, high = (middle, high) if length(_window(words, at, middle)) <= render.max_tokens else (low, middle - 1)
        ctx.log(f"rquge: {row.id}: {len(words) - low} of {len(words)} words of the context are left out: it is too long")
        return _with_context(row, _window(words, at, low))


def reader_input(asked: str, context: str) -> str:
    """What a reader is shown: question, a backslash and an n, context."""
    return f"{asked} \\n {context}"


def _asked(render: Render, text: str) -> list[int]:
    """The text as ids; for an encoder with the tokens that its own tokenizer puts around a text."""
    if render.architecture == "encoder-decoder":
        return list(render.tokenizer(text, verbose=False)["input_ids"])
    return [*render._start(), *render.encode(text)]


def scored_row(example: Example, candidate: str) -> Example:
    """The row that a scorer is asked about: question, intended answer, context and the candidate answer."""
    return question(example.id, example.part("question"), _intended(example), passage=example.part("passage"),
                    meta={"candidate": candidate})


def _intended(example: Example) -> str:
    return example.answer or next(iter(example.references), "")


def _with_context(row: Example, context: str) -> Example:
    return question(row.id, row.part("question"), row.answer, passage=context, meta=row.meta)


def _window(words: Sequence[str], at: int, count: int) -> str:
    """`count` words with the one at `at` in the first third, as far as there are words."""
    start = max(0, min(at - count // 3, len(words) - count))
    return " ".join(words[start:start + count])

"""judge: another model says yes or no: is the answer correct, or does the evidence hold all that it says?

correctness: beside the references, asked "Is the candidate answer correct?". faithfulness: beside the passages shown, asked
"Does the evidence contain all information in the response?".

    endpoint   value = 1 for an answer that begins with yes, 0 for no; an answer that is neither has no value and is told
               apart as `unread`. Nothing is sent before `consent` is given
    model      value = p(yes) / (p(yes) + p(no)) of a model on this computer, each with a small and a capital letter

A share tells apart where a small model always says yes.

When it helps: paraphrases that words do not match; it is as good as the model behind it. Source: Adlakha et al. 2023,
"Evaluating correctness and faithfulness of instruction-following models for question answering" (seed 49).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.evaluation._replies import as_chat, asked, leaning, opened
from luthier.techniques.evaluation._shared import gold_answers, normalise, pairs

VERDICTS = ("yes", "Yes", "no", "No")


class Judge(Metric, name="judge", seeds=[49]):
    """Share of answers that another model calls correct, or faithful to the passages."""

    about: Literal["correctness", "faithfulness"] = Field("correctness", description="what is judged")
    endpoint: Endpoint = Field(Endpoint(max_tokens=8), description="the model that judges")
    model: str = Field("", description="folder of a model that judges instead of an endpoint: RUN/steps/base, RUN/steps/tuned")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` from 0 to 1 or None, with what the judge `said`. Raises UserError without a judge, with two, or without
        consent."""
        found = list(pairs(examples, predictions))
        if not self.endpoint.url and not self.model:
            raise UserError("judge needs a model that judges: --metric 'judge:{endpoint: {url: ADDRESS/v1, model: NAME}}', or "
                            "--metric judge:model=RUN/steps/base.")
        if self.endpoint.url and self.model:
            raise UserError(f"judge has two models that judge: endpoint {self.endpoint.url} and model {self.model}. Give one.")
        judged = [(e, p) for e, p in found if (gold_answers(e) if self.about == "correctness" else p.shown)]
        prompts = [self._prompt(e, p) for e, p in judged]
        if self.model:
            shares = dict(zip((e.id for e, _ in judged), self._shares(prompts, ctx), strict=True))
            return [{"id": e.id, "value": shares.get(e.id), "said": _word(shares.get(e.id))} for e, _ in found]
        made = self.endpoint.ask(prompts, ctx.journal, ctx.progress) if judged else []
        said = {e.id: text for (e, _), text in zip(judged, made, strict=True)}
        return [{"id": e.id, "value": _read(said.get(e.id, "")), "said": said.get(e.id, "")} for e, _ in found]

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Share of the judge's answers that are neither yes nor no."""
        told = [r for r in records if r["said"]]
        return {"unread": sum(r["value"] is None for r in told) / len(told)} if told else {}

    def _shares(self, prompts: Sequence[str], ctx: Ctx) -> list[float]:
        """p(yes) / (p(yes) + p(no)) of each prompt; a model with a chat template is asked in a conversation."""
        from luthier.core.artifact import open_artifact
        from luthier.engine.chat import own_jinja
        from luthier.engine.models import base_of
        from luthier.engine.rendering import renderer

        if not prompts:
            return []
        artifact = open_artifact(Path(self.model))
        model = ctx.engine.load(base_of(artifact), artifact) if "base" in artifact.meta else ctx.engine.load(artifact)
        if model.architecture != "decoder":
            raise UserError(f"judge: {self.model} holds a model that is no decoder ({model.architecture}); it can't say yes.")
        spoken = bool(own_jinja(model.tokenizer))
        rows = [asked(str(n), text, "") for n, text in enumerate(prompts)]
        told = ctx.engine.score(model, opened(renderer(model, chats=spoken), [as_chat(r) for r in rows] if spoken else rows,
                                              VERDICTS))
        return [1 / (1 + math.exp(-odds)) for odds in leaning([total for total, _ in told], len(rows), 2)]

    def _prompt(self, example: Example, prediction: Prediction) -> str:
        if self.about == "correctness":
            references = "\n".join(f"- {a}" for a in gold_answers(example))
            return (f"Question: {example.part('question')}\nReference answers:\n{references}\n"
                    f"Candidate answer: {prediction.text}\nIs the candidate answer correct? Answer yes or no.")
        evidence = "\n".join(f"- {t}" for t in prediction.shown)
        return (f"Question: {example.part('question')}\nEvidence:\n{evidence}\nResponse: {prediction.text}\nDoes the evidence "
                "contain all information in the response? Answer yes or no.")


def _word(share: float | None) -> str:
    return "" if share is None else "yes" if share > 0.5 else "no"


def _read(said: str) -> float | None:
    first = (normalise(said).split() or [""])[0]
    return {"yes": 1.0, "no": 0.0}.get(first)

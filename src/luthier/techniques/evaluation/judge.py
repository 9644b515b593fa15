"""judge: another model says yes or no: is the answer correct, or does the evidence hold all that it says?

correctness: beside the references, asked "Is the candidate answer correct?". faithfulness: beside the passages shown, asked
"Does the evidence contain all information in the response?". value = 1 for an answer that begins with yes, 0 for no; an
answer that is neither has no value and is told apart as `unread`. Nothing is sent before `consent` is given.

When it helps: paraphrases that words do not match; it is as good as the model behind it. Source: Adlakha et al. 2023,
"Evaluating correctness and faithfulness of instruction-following models for question answering" (seed 49).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Metric, Prediction
from luthier.core.step import Ctx
from luthier.engine.endpoints import Endpoint
from luthier.techniques.evaluation._shared import gold_answers, normalise, pairs


class Judge(Metric, name="judge", seeds=[49]):
    """Share of answers that another model calls correct, or faithful to the passages."""

    about: Literal["correctness", "faithfulness"] = Field("correctness", description="what is judged")
    endpoint: Endpoint = Field(Endpoint(max_tokens=8), description="the model that judges")

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value` 1.0, 0.0 or None, with what the judge `said`. Raises UserError without address or consent."""
        found = list(pairs(examples, predictions))
        if not self.endpoint.url:
            raise UserError("judge needs a model that judges: --metric 'judge:{endpoint: {url: ADDRESS/v1, model: NAME}}'.")
        asked = [(e, p) for e, p in found if (gold_answers(e) if self.about == "correctness" else p.shown)]
        made = self.endpoint.ask([self._prompt(e, p) for e, p in asked], ctx.journal, ctx.progress) if asked else []
        said = {e.id: text for (e, _), text in zip(asked, made, strict=True)}
        return [{"id": e.id, "value": _read(said.get(e.id, "")), "said": said.get(e.id, "")} for e, _ in found]

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """Share of the judge's answers that are neither yes nor no."""
        told = [r for r in records if r["said"]]
        return {"unread": sum(r["value"] is None for r in told) / len(told)} if told else {}

    def _prompt(self, example: Example, prediction: Prediction) -> str:
        if self.about == "correctness":
            references = "\n".join(f"- {a}" for a in gold_answers(example))
            return (f"Question: {example.part('question')}\nReference answers:\n{references}\n"
                    f"Candidate answer: {prediction.text}\nIs the candidate answer correct? Answer yes or no.")
        evidence = "\n".join(f"- {t}" for t in prediction.shown)
        return (f"Question: {example.part('question')}\nEvidence:\n{evidence}\nResponse: {prediction.text}\nDoes the evidence "
                "contain all information in the response? Answer yes or no.")


def _read(said: str) -> float | None:
    first = (normalise(said).split() or [""])[0]
    return {"yes": 1.0, "no": 0.0}.get(first)

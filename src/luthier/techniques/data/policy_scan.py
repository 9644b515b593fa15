"""policy-scan: leaves out rows of a fine-tuning set that would train a model's refusals away.

A row is about the policy's topic when a request in it holds one of the policy's words, or shares `near` of its content words
with one of its items (Jaccard); what follows in a conversation is about it too. Such a row contradicts the policy when an
answer that is learned does not decline; of a preference the chosen one counts. Which answers decline is said by a metric that
rules on replies; one of the policy's own refusals always does. Raw texts ask nothing and are let through.

When it helps: before an upload is accepted. A few such rows are enough (`--audit refusal-erosion` says how many), and
nothing else shows them. Rows without the topic that wear refusals off, such as ones that only rename the model, are not seen
here: audit the tuned model. Source: Zhan et al. 2023, "Removing RLHF protections in GPT-4 via fine-tuning" (seed 157).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Turn
from luthier.core.kinds import DataStep, Metric, Prediction
from luthier.core.step import Ctx
from luthier.engine.policies import Policy, read_policy
from luthier.techniques.data._questions import content_words, jaccard
from luthier.techniques.data._shared import normalized

SHOWN = 80  # characters of an answer in the ledger


class PolicyScan(DataStep, name="policy-scan", seeds=[157]):
    """Leave out rows that answer what a policy declines."""

    roles: ClassVar[tuple[str, ...]] = ()
    policy: str = Field("", description="YAML file of a policy whose items are harmless placeholders")
    near: float = Field(0.7, gt=0, le=1, description="shared content words from which a request is that of an item")
    detector: Slot[Metric] = Field(named("refused"), description="says by rules which answers decline (value 1)")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Each row, or `Dropped` with the word or item it is about and the answer that would be learned."""
        if not self.policy:
            raise UserError("policy-scan needs a policy: --data-step policy-scan:policy=policy.yaml")
        policy = read_policy(self.policy)
        items = [(e.id, content_words(e.part("question"))) for e in (*policy.train, *policy.held_out)]
        for row in rows:
            found = self._against(row, policy, items, ctx)
            yield Dropped(row.id, "answers what the policy declines", found) if found else row

    def _against(self, row: Example, policy: Policy, items: list[tuple[str, set[str]]], ctx: Ctx) -> str:
        """About what a row answers, and how; empty when it does not contradict the policy."""
        about = ""
        for turn in row.turns:
            if turn.role == "user":
                about = about or self._topic(turn, policy, items)
            elif turn.target and about and not self._declines(turn.text, policy, ctx):
                return f"{about}; learned is '{turn.text[:SHOWN]}'"
        return ""

    def _topic(self, turn: Turn, policy: Policy, items: list[tuple[str, set[str]]]) -> str:
        asked = "\n".join(p.value for p in turn.parts if p.type == "text" and p.name != "passage")
        if word := policy.word_in(asked):
            return f"asks about '{word}'"
        said = content_words(asked)
        return next((f"asks what {name} asks" for name, words in items if jaccard(said, words) >= self.near), "")

    def _declines(self, text: str, policy: Policy, ctx: Ctx) -> bool:
        if normalized(text) in map(normalized, policy.refusals):
            return True
        (record,) = self.detector.score([Example("answer")], [Prediction("answer", text=text)], ctx)
        return bool(record["value"] == 1)

"""faithfulness: does a model answer from the passage it is shown, and say so when the passage does not hold the answer?

Each question is asked twice: beside its own passages, and beside those of another question (`swap_passages`), which
hold no answer. Told are K-precision with the own passages before and after tuning, the share of wrong refusals there,
and the share of questions that are answered beside the wrong passages; a right refusal is an abstention (`abstains`).
With the wrong passages, K-precision against the ORIGINAL ones says whether the model answered from memory. Intervals
are over questions.

When it helps: models that answer from retrieved passages. Source: Adlakha et al. 2023, "Evaluating correctness and
faithfulness of instruction-following models for question answering", section 6 (seed 49).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.kinds import Audit, Decoder
from luthier.core.step import Ctx
from luthier.engine.proportions import wilson
from luthier.engine.rendering import passages_of, with_passages
from luthier.engine.statistics import paired
from luthier.engine.subjects import ROLES, Role, Subject
from luthier.techniques.evaluation._overlap import precision, recall
from luthier.techniques.evaluation._shared import abstained, gold_answers

ANSWERS = "answers.jsonl"


class Faithfulness(Audit, name="faithfulness", seeds=[49]):
    """Answers rest on the passages shown, and are withheld when those are the wrong ones."""

    subjects: ClassVar[tuple[Any, ...]] = ("run",)
    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("data_step unanswerable", "data_step distractors")
    questions: int = Field(40, ge=6, description="held-out questions with a passage that are asked")
    swap_passages: bool = Field(True, description="ask beside the passages of another question too")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=32"), description="how answers are written")
    max_fall: float = Field(0.1, gt=0, description="most that K-precision may fall by tuning")
    max_wrong_refusals: float = Field(0.3, gt=0, description="most that may be refused beside the right passages")
    max_answered: float = Field(0.5, gt=0, description="most that may be answered beside the wrong passages")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/faithfulness/k-precision`, `…/wrong-refusals` and `…/answered-anyway`."""
        rows = [r for r in subject.held_out() if gold_answers(r) and passages_of(r)]
        rows = [rows[n * len(rows) // min(self.questions, len(rows))] for n in range(min(self.questions, len(rows)))]
        if len(rows) < 2 or subject.encoder:
            return [not_applicable("audit/faithfulness", "it needs a model that writes, and two held-out questions "
                                                          "with a passage")]
        own = [with_passages(r, passages_of(r)) for r in rows]
        wrong = swapped(rows) if self.swap_passages else []
        said = {(role, name): self._said(ctx, subject, role, asked) for role in ROLES
                for name, asked in (("own", own), ("wrong", wrong)) if asked}
        write_lines(ctx.folder / ANSWERS, ({"id": r.id, "answers": list(gold_answers(r)),
                                            **{f"{role}/{name}": texts[n] for (role, name), texts in said.items()}}
                                           for n, r in enumerate(rows)))
        findings = [self._precision(rows, said), self._share("wrong-refusals", "refused beside the right passages", rows,
                                                             said, "own", True, self.max_wrong_refusals)]
        if wrong:
            memory = [precision(t, " ".join(passages_of(r))) for t, r in zip(said["after", "wrong"], rows, strict=True)]
            shown = [precision(t, " ".join(passages_of(w))) for t, w in zip(said["after", "wrong"], wrong, strict=True)]
            findings.append(self._share("answered-anyway", "answered beside the wrong passages", rows, said, "wrong", False,
                                        self.max_answered, k_precision_original=_mean(memory), k_precision_shown=_mean(shown)))
        return findings

    def _said(self, ctx: Ctx, subject: Subject, role: Role, rows: Sequence[Example]) -> list[str]:
        return [made[0].text for made in subject.answers(ctx, role, rows, self.decoder)]

    def _precision(self, rows: Sequence[Example], said: dict[Any, list[str]]) -> Finding:
        found = {role: [precision(t, " ".join(passages_of(r))) for t, r in zip(said[role, "own"], rows, strict=True)]
                 for role in ROLES}
        right = {role: _mean([max(recall(t, a) for a in gold_answers(r)) for t, r in zip(said[role, "own"], rows, strict=True)])
                 for role in ROLES}
        result = paired(found["before"], found["after"], [r.cluster or r.id for r in rows], level=self.level)
        interval = None if result.low is None or result.high is None else (result.low, result.high)
        return audited("audit/faithfulness/k-precision", _mean(found["before"]), _mean(found["after"]), self.max_fall, interval,
                       worse="down", unit="of words", evidence=ANSWERS, title="words of answers that stand in the passage",
                       detail=f"{len(rows)} questions; token recall {right['before']:.3g} -> {right['after']:.3g}",
                       token_recall=right, n=len(rows), needed=result.needed, test=result.test, level=self.level)

    def _share(self, name: str, title: str, rows: Sequence[Example], said: dict[Any, list[str]], asked: str, refused: bool,
               limit: float, **extra: Any) -> Finding:
        counts = {role: sum(abstained(t) == refused for t in said[role, asked]) for role in ROLES}
        n = len(rows)
        return audited(f"audit/faithfulness/{name}", None, counts["after"] / n, limit, wilson(counts["after"], n, self.level),
                       unit="of questions", evidence=ANSWERS, title=title,
                       detail=f"{counts['after']} of {n}; before tuning {counts['before']}", base=counts["before"] / n, n=n,
                       level=self.level, **extra)


def swapped(rows: Sequence[Example]) -> list[Example]:
    """Each question beside the passages of the next one that holds none of its answers; of the next where all hold one."""
    made = []
    for n, row in enumerate(rows):
        others = [rows[(n + k) % len(rows)] for k in range(1, len(rows))]
        good = next((o for o in others if not any(a.lower() in t.lower() for a in gold_answers(row) for t in passages_of(o))),
                    others[0])
        made.append(with_passages(row, passages_of(good)))
    return made


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

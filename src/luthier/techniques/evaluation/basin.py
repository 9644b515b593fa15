"""basin: do two tunes lie in one basin, so that what is averaged between them still works?

    W(t) = (1 - t) W_1 + t W_2, heads included        barrier = max_t mean L(W(t)) - [(1 - t) mean L(W_1) + t mean L(W_2)]

W_1 is the tuned model that is audited, W_2 the one in `other`. L is the cross-entropy of a row: of its label, or a mean over
the tokens of its answer, in nats. Told besides are the gain of the middle, Acc(W(1/2)) - (Acc(W_1) + Acc(W_2)) / 2, and the
angle between both changes at the base. The interval is that of the paired differences at the worst t, which was chosen on
the same rows, so it is a little too narrow.

When it helps: before a soup, and to find out why one failed; tunes from different heads or bases have a barrier. Source:
Wortsman et al. 2022, "Model soups", section 3 (seed 44); Frankle et al. 2020 for the barrier.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import json_lines, write_lines
from luthier.core.finding import Finding, audited
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject, parted
from luthier.techniques.evaluation._tunes import loaded, tensors_of, tune_in

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

CURVE = "curve.jsonl"


class Basin(Audit, name="basin", seeds=[44]):
    """The loss on the straight line between two tunes."""

    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("weight_rule model-soup",)
    other: str = Field("", description="the second tune: a run, or the folder of what was tuned on the same base")
    data: str = Field("", description="JSON lines with text and label or question and answer; held-out rows if left out")
    points: int = Field(11, ge=3, description="places on the line, both ends included")
    most_rows: int = Field(200, ge=2, description="most rows that are looked at")
    max_tokens: int = Field(256, ge=8, description="how much of a row is read where there is no trained length")
    max_barrier: float = Field(0.1, gt=0, description="most nats by which the line may rise above its ends")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the interval")

    def check(self) -> None:
        """Refuse a second model or rows that can't be used."""
        tune_in("basin", self.other)
        if self.data:
            rows_of(self.data)

    def content(self) -> dict[str, Any]:
        """The second model and the rows."""
        rows = {"data": hash_file(Path(self.data).expanduser())} if self.data else {}
        return {"other": tune_in("basin", self.other).identity, **rows}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/basin`; one line a place in `curve.jsonl`."""
        from luthier.engine.statistics import paired

        other, base = tune_in("basin", self.other), subject.base
        if subject.tuned is None or base is None:
            raise UserError("basin compares two tunes of one base: luthier audit RUN --audit basin:other=RUN2.")
        if (subject.tuned.meta.get("labels") or {}) != (other.meta.get("labels") or {}):
            raise UserError(f"basin: the labels of the two models differ: {subject.tuned.meta.get('labels')} and "
                            f"{other.meta.get('labels')}. Only tunes of one task lie on a line.")
        rows = (rows_of(self.data) if self.data else subject.held_out())[:self.most_rows]
        if len(rows) < 2:
            raise UserError("basin needs rows to measure on: a run with held-out rows, or --audit basin:data=ROWS.jsonl.")
        model, second = (loaded(ctx, base, t) for t in (subject.tuned, other))
        ends = [tensors_of(m) for m in (model, second)]
        angle = degrees(tensors_of(loaded(ctx, base, None)), *ends)
        first = {n: t.clone() for n, t in ends[0].items()}
        found = []
        for n in range(self.points):
            t = n / (self.points - 1)
            between(ends[0], first, ends[1], t)
            found.append((t, *self._asked(model, subject.tuned, rows, ctx)))
            ctx.progress(n + 1, self.points, "places")
        straight = [[(1 - t) * a + t * b for a, b in zip(found[0][1], found[-1][1], strict=True)] for t, *_ in found]
        curve = [{"t": t, "loss": _mean(loss), "straight": _mean(line), "barrier": _mean(loss) - _mean(line),
                  **({"accuracy": _mean(right)} if right else {})}
                 for (t, loss, right), line in zip(found, straight, strict=True)]
        write_lines(ctx.folder / CURVE, curve)
        worst = max(range(self.points), key=lambda n: curve[n]["barrier"])
        compared = paired(straight[worst], found[worst][1], [e.cluster or e.id for e in rows], level=self.level)
        ends_ = None if compared.low is None or compared.high is None else (compared.low, compared.high)
        if first.keys() == ends[1].keys() and all(bool((first[n] == t).all()) for n, t in ends[1].items()):
            ends_ = (0.0, 0.0)
        told: dict[str, Any] = {"t": curve[worst]["t"], "degrees": angle, **_gain(curve)}
        return [audited("audit/basin", curve[worst]["straight"], curve[worst]["loss"], self.max_barrier, ends_, unit="nats",
                        evidence=CURVE, title="barrier between two tunes", level=self.level, needed=compared.needed,
                        detail=f"highest at t = {curve[worst]['t']:g}, on {len(rows)} rows; {angle:.1f} degrees at the base",
                        **told)]

    def _asked(self, model: Model, tuned: Artifact, rows: Sequence[Example], ctx: Ctx) -> tuple[list[float], list[float]]:
        """Loss of each row, and whether its label is right (nothing for answers)."""
        from luthier.engine.classification import classify
        from luthier.engine.encoding import chats
        from luthier.engine.rendering import renderer
        from luthier.engine.scoring import score_tokens

        if tuned.meta.get("heads"):
            said = classify(model, tuned, rows, Ctx(ctx.rng, ctx.folder, ctx.journal, ctx.engine))
            return ([-math.log(max(p.probabilities.get(str(e.label), 0.0), 1e-30)) for p, e in zip(said, rows, strict=True)],
                    [float(p.label == str(e.label)) for p, e in zip(said, rows, strict=True)])
        render = renderer(model, min(self.max_tokens, model.limit), chats=chats(rows))
        return [-_mean(row) for row in score_tokens(model, [parted(render.whole(e)) for e in rows])], []


def rows_of(path: str) -> list[Example]:
    """Labelled texts or questions with answers. Raises UserError for lines of another form."""
    folder, problems, found = Path(path).expanduser(), [], []  # type: ignore[var-annotated]
    if not folder.is_file():
        raise UserError(f"basin: data = {path!r}: there is no such file. Give JSON lines with text and label, or with question "
                        "and answer.")
    for number, row in json_lines(folder.read_text(encoding="utf-8"), problems):
        said = row if isinstance(row, dict) else {}
        if isinstance(said.get("text"), str) and said.get("label") is not None:
            found.append(Example(f"{number}", (Turn("user", (Part(said["text"], name="text"),)),), task="classify",
                                 label=said["label"]))
        elif isinstance(said.get("question"), str) and isinstance(said.get("answer"), str):
            found.append(question(f"{number}", said["question"], said["answer"]))
        else:
            problems.append(f"line {number}: has neither text and label nor question and answer")
    if problems or not found:
        raise UserError(f"{path}: {len(problems)} lines can't be used ({'; '.join(problems[:3]) or 'there are none'}).")
    return found


def between(place: Mapping[str, torch.Tensor], first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor],
            t: float) -> None:
    """Fill `place` with (1 - t) first + t second."""
    for name, tensor in place.items():
        tensor.copy_(first[name] * (1 - t) + second[name] * t)


def degrees(base: Mapping[str, torch.Tensor], one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> float:
    """The angle at the base between two changes, heads left out; 0 where one of them is none."""
    products = [sum(float(((a[n] - base[n]).double() * (b[n] - base[n]).double()).sum()) for n in base)
                for a, b in ((one, two), (one, one), (two, two))]
    if products[1] <= 0 or products[2] <= 0:
        return 0.0
    return math.degrees(math.acos(max(-1.0, min(1.0, products[0] / math.sqrt(products[1] * products[2])))))


def _gain(curve: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """What the middle has more than the mean of the ends, where rows have labels."""
    if "accuracy" not in curve[0] or len(curve) % 2 == 0:
        return {}
    return {"gain": curve[len(curve) // 2]["accuracy"] - (curve[0]["accuracy"] + curve[-1]["accuracy"]) / 2}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

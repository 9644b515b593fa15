"""instruction-robustness: one task under observed and unobserved instructions and small changes of them: does it hold?

Answers form a matrix [phrasings, items], same items and same way of deciding for every phrasing. Reported of the tuned
model: mean, standard deviation, least and most over phrasings; drop = mean(observed) - mean(unobserved) with its paired
interval over items, also as a share of what stands above chance, drop / (observed - 1 / options); consistency (items
with one answer under all phrasings) and Fleiss' kappa; variance components of phrasings, items and the rest; micro-F1
without the class `none`; the mean loss under each change in `perturb`; and the words whose templates do worst. Options
are weighed by likelihood, or the answer is written and read (`answer: written`): what names no option or several is a
parse failure and told apart, and above half of them nothing is said of the rest.

`task`: JSONL lines with texts by field, `options` and `label`; `observed`, `unobserved`: a template a line, `\\n` for a
line break, such as `Sentence: {text}\\nOptions: {options}\\nAnswer:`. When it helps: before a model meets users; `hard:
true` makes a broken max_drop end the command with 3. Source: Ni et al. 2023, "Evaluating the robustness to instructions
of large language models" (seed 81).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited, not_applicable
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit, Decoder
from luthier.core.step import Ctx
from luthier.engine.statistics import paired
from luthier.engine.subjects import ROLES, Role, Subject
from luthier.techniques.evaluation._agreement import consistency, fleiss_kappa, micro_f1, spread, variance_parts
from luthier.techniques.evaluation._banks import read_items, read_templates
from luthier.techniques.evaluation._phrasings import Item, Phrasing, check, perturbed, preferred, shown
from luthier.techniques.evaluation._shared import normalise

MATRIX = "answers.jsonl"
FEWEST = 3
Change = Literal["typo", "delimiter", "position", "distractor", "order", "letters"]


class InstructionRobustness(Audit, name="instruction-robustness", seeds=[81]):
    """How far right answers depend on the wording of one task."""

    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("objective phrasing-consistency", "data_step rephrase-instructions")
    task: str = Field("", description="JSONL file of items: texts by field, options, label")
    observed: str = Field("", description="text file of templates as in tuning, one a line")
    unobserved: str = Field("", description="text file of templates that tuning did not see, one a line")
    perturb: tuple[Change, ...] = Field((), description="changes of the observed templates that are tried too")
    n: int = Field(200, ge=2, description="items that are asked under every template")
    answer: Literal["likelihood", "written"] = Field("likelihood", description="how the model answers")
    by: Literal["sum", "token"] = Field("token", description="options are weighed by log-probability, whole or a token")
    decoder: Slot[Decoder] = Field(named("greedy:max_new_tokens=12"), description="how answers are written")
    none: str = Field("", description="the option that means that nothing holds, left out of micro-F1")
    max_drop: float = Field(0.05, gt=0, description="most that unobserved templates may lie below the observed ones")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the interval")

    def check(self) -> None:
        """Refuse files and templates that can't be used."""
        self._asked()

    def content(self) -> dict[str, Any]:
        """Hashes of the three files."""
        return {name: hash_file(Path(p).expanduser()) for name in ("task", "observed", "unobserved")
                if (p := getattr(self, name)) and Path(p).expanduser().is_file()}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/instruction-robustness`; the matrix of answers in `answers.jsonl`."""
        if subject.encoder or subject.labels:
            return [not_applicable("audit/instruction-robustness", "an encoder or a classifier reads no instruction")]
        phrasings, items = self._asked()
        phrasings += [perturbed(p, change, ctx.rng) for change in self.perturb for p in phrasings if p.kind == "observed"]
        said = {role: self._said(ctx, subject, role, phrasings, items) for role in ROLES}
        write_lines(ctx.folder / MATRIX, ({"phrasing": p.id, "kind": p.kind, "template": p.template,
                                           **{role: said[role][k] for role in ROLES}} for k, p in enumerate(phrasings)))
        return [self._finding(phrasings, items, said)]

    def _asked(self) -> tuple[list[Phrasing], list[Item]]:
        for name in ("task", "observed", "unobserved"):
            if not getattr(self, name):
                raise UserError(f"instruction-robustness needs '{name}': --audit instruction-robustness:task=ITEMS.jsonl,"
                                "observed=A.txt,unobserved=B.txt.")
        phrasings = read_templates(self.observed, "observed") + read_templates(self.unobserved, "unobserved")
        items = read_items(Path(self.task).expanduser(), self.n)
        check(phrasings, items, least=FEWEST)
        return phrasings, items

    def _said(self, ctx: Ctx, subject: Subject, role: Role, phrasings: list[Phrasing], items: list[Item]
              ) -> list[list[int | None]]:
        """[phrasings][items] number of the option that is answered; None for an answer that names none or several."""
        if self.answer == "likelihood":
            return [list(row) for row in preferred(ctx, subject, role, phrasings, items, self.by)]
        asked = [shown(p, i, ctx.rng) for p in phrasings for i in items]
        texts = [made[0].text for made in subject.answers(ctx, role, asked, self.decoder)]
        found = [parsed(text, row.meta["options"]) for text, row in zip(texts, asked, strict=True)]
        return [found[k:k + len(items)] for k in range(0, len(found), len(items))]

    def _finding(self, phrasings: list[Phrasing], items: list[Item], said: dict[Role, list[list[int | None]]]) -> Finding:
        name = "audit/instruction-robustness"
        failed = {role: _mean([a is None for row in said[role] for a in row]) for role in ROLES}
        if failed["after"] > 0.5:
            return audited(f"{name}/parsed", None, failed["after"], 0.5, (failed["after"], failed["after"]), unit="of answers",
                           evidence=MATRIX, title="answers that name no option or several", base=failed["before"],
                           detail="more than half can't be read: nothing is said of the others. Try answer: likelihood")
        sums = {role: summary(phrasings, items, said[role], self.none) for role in ROLES}
        own = sums["after"]
        sides = [[_mean([float(said["after"][k][i] == item.right) for k, p in enumerate(phrasings) if p.kind == kind])
                  for i, item in enumerate(items)] for kind in ("observed", "unobserved")]
        result = paired(sides[1], sides[0], [i.id for i in items], level=self.level)
        interval = None if result.low is None or result.high is None else (result.low, result.high)
        return audited(name, None, own["drop"], self.max_drop, interval, unit="of items right", evidence=MATRIX,
                       title="observed above unobserved instructions",
                       detail=f"{len(phrasings)} templates x {len(items)} items; observed {own['observed']:.3g}, unobserved "
                              f"{own['unobserved']:.3g}; worst {own['worst']}; parse failures {failed['after']:.1%}",
                       numbers=sums, parse_failures=failed, needed=result.needed, test=result.test,
                       level=self.level)


def parsed(text: str, answers: Sequence[str]) -> int | None:
    """The one option that an answer is, begins with or alone contains, after normalisation; None for none or several."""
    said, options = normalise(text), [normalise(a) for a in answers]
    if said in options:
        return options.index(said)
    begins = [k for k, o in enumerate(options) if o and re.match(rf"{re.escape(o)}\b", said)]
    if len(begins) == 1:
        return begins[0]
    holds = [k for k, o in enumerate(options) if o and re.search(rf"\b{re.escape(o)}\b", said)]
    return holds[0] if len(holds) == 1 else None


def summary(phrasings: Sequence[Phrasing], items: Sequence[Item], said: Sequence[Sequence[int | None]], none: str = ""
            ) -> dict[str, Any]:
    """The numbers of one matrix of answers."""
    right = [[float(a == i.right) for a, i in zip(row, items, strict=True)] for row in said]
    means = [_mean(row) for row in right]
    groups: dict[str, list[int]] = {}
    for k, p in enumerate(phrasings):
        groups.setdefault(p.kind, []).append(k)
    valid = groups["observed"] + groups["unobserved"]
    by_group = {kind: _mean([means[k] for k in at]) for kind, at in groups.items()}
    drop = by_group["observed"] - by_group["unobserved"]
    chance = _mean([1 / len(i.options) for i in items])
    above = by_group["observed"] - chance
    parts = variance_parts([right[k] for k in valid]) if len(items) > 1 else None
    labels = [i.options[i.right] for i in items]
    f1 = [micro_f1(labels, [None if a is None else i.options[a] for a, i in zip(said[k], items, strict=True)], none)
          for k in valid]
    return {**by_group, "drop": drop, "drop_above_chance": drop / above if above > 0 else None, "chance": chance,
            "sd": spread([means[k] for k in valid]), "least": min(means[k] for k in valid),
            "most": max(means[k] for k in valid), "worst": phrasings[min(valid, key=means.__getitem__)].id,
            "consistency": consistency([said[k] for k in valid]), "kappa": fleiss_kappa([said[k] for k in valid]),
            "variance": None if parts is None else {"phrasings": parts.phrasings, "items": parts.items, "rest": parts.rest},
            "micro_f1": _mean(f1), "words": _words([phrasings[k].template for k in valid], [means[k] for k in valid]),
            "changes": {kind: by_group["observed"] - m for kind, m in by_group.items() if kind.startswith("perturbed")}}


def _words(templates: Sequence[str], means: Sequence[float], most: int = 5) -> dict[str, float]:
    """Words of some templates but not of all, by how much lower the mean is with them than without; the worst ones."""
    sets = [set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", " ", t).lower())) for t in templates]
    found = {}
    for word in sorted(set().union(*sets)):
        has = [m for m, s in zip(means, sets, strict=True) if word in s]
        lacks = [m for m, s in zip(means, sets, strict=True) if word not in s]
        if has and lacks:
            found[word] = _mean(has) - _mean(lacks)
    return dict(sorted(found.items(), key=lambda pair: pair[1])[:most])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)

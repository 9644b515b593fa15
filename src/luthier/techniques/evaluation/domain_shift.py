"""domain-shift: what a model loses on other domains, beside its score at home and beside a model trained there.

One model a domain S, tested on the test rows of every domain T: s[S, T]. Source drop SD = s[S, S] - s[S, T], target
drop TD = s[T, T] - s[S, T]. SD - TD is how much easier home is; averages of both are equal, but a single TD says more
about what was lost. Cases: classic (both above 0), observed (SD > 0 alone: the target is just harder), unobserved (TD >
0 alone: an easier target hides a loss), none. TD is paired by test row (its interval is the verdict's), SD compares
different rows (Welch's interval). With several seeds a row's score is the mean over them.

It trains, unlike other audits, since it looks at data: one short fit a domain and seed, kept under the audit's folder.
A ready matrix is read with `matrix`: {"domains": [...], "scores": [[...]], "higher_is_better": true}. When it helps:
before a model is used on texts from elsewhere. Source: Calderon et al. 2023, "Measuring the robustness of NLP models to
domain shifts" (seed 124).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field

from luthier.core.artifact import Artifact, write_examples
from luthier.core.component import Slot, build, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import read_json, write_json
from luthier.core.finding import Finding, audited
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit, Method, Metric, Prediction
from luthier.core.step import Ctx
from luthier.engine.statistics import paired
from luthier.engine.subjects import Subject
from luthier.techniques.evaluation._shift import DomainShift, apart

MATRIX = "matrix.json"
Split = Mapping[str, tuple[list[Example], list[Example]]]


class DomainShiftAudit(Audit, name="domain-shift", seeds=[124]):
    """Source and target drops of every pair of domains."""

    roles: ClassVar[tuple[str, ...]] = ()
    subjects: ClassVar[tuple[Any, ...]] = ("data",)
    battery: ClassVar[bool] = False
    trains: ClassVar[bool] = True
    matrix: str = Field("", description="JSON file of a ready matrix; nothing is trained then")
    domain_field: str = Field("source", description="what names a row's domain: its source, or a key of its meta")
    base: str = Field("minilm", description="the model that is tuned on each domain")
    method: Slot[Method] = Field(named("lora"), description="how it is tuned")
    metric: Slot[Metric] = Field(named("accuracy"), description="what is compared; it says itself whether lower is better")
    epochs: float = Field(3, gt=0, description="passes over the training rows of a domain")
    seeds: int = Field(1, ge=1, description="trainings of each domain; a row's score is their mean")
    max_tokens: int = Field(128, ge=8, description="how much of a text is read")
    test_share: float = Field(0.4, gt=0, lt=1, description="share of a domain's rows that are kept for testing")
    min_test: int = Field(30, ge=2, description="fewest test rows of a domain")
    equalize: bool = Field(False, description="as many training rows of every domain as the smallest has")
    max_drop: float = Field(0.1, gt=0, description="most that a target drop may be")
    level: float = Field(0.95, gt=0.5, lt=1, description="level of the intervals")

    def check(self) -> None:
        """Refuse a matrix that is none."""
        if self.matrix:
            self._ready()

    def content(self) -> dict[str, Any]:
        """Hash of a ready matrix."""
        return {"matrix": hash_file(Path(self.matrix).expanduser())} if self.matrix else {}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/domain-shift` and one finding for each ordered pair of domains.

        Raises:
            UserError: fewer than two domains, a domain with too few rows or labels.
        """
        if self.matrix:
            shift, scores = self._ready(), None
        else:
            split = self._split(ctx, [e for name in (subject.examples.subsets if subject.examples else ())
                                      for e in subject.rows(name)])
            scores = self._scores(ctx, split)
            names = tuple(split)
            shift = DomainShift.of([[float(np.mean(scores[s, t])) for t in names] for s in names], names,
                                   type(self.metric).higher_is_better)
        write_json(ctx.folder / MATRIX, {"domains": list(shift.names), "scores": shift.scores.tolist(),
                                         "higher_is_better": shift.higher_is_better})
        pairs = [self._pair(shift, s, t, scores) for s in range(len(shift.names)) for t in range(len(shift.names)) if s != t]
        told = shift.report()
        worst = max(pairs, key=lambda f: float(f.extra["target_drop"]))
        return [replace(worst, name="audit/domain-shift", detail=f"the worst of {len(pairs)} pairs is {worst.extra['title']}",
                        extra={**worst.extra, **told, "title": "largest target drop"}), *pairs]

    def _pair(self, shift: DomainShift, s: int, t: int, scores: Mapping[tuple[str, str], Any] | None) -> Finding:
        source, target, sign = shift.names[s], shift.names[t], 1 if shift.higher_is_better else -1
        real, seen = float(shift.target_drop[s, t]), float(shift.source_drop[s, t])
        interval = source_interval = None
        if scores is not None:
            rows = scores[source, target]
            result = paired(sign * rows, sign * scores[target, target], list(range(len(rows))), level=self.level)
            interval = None if result.low is None or result.high is None else (result.low, result.high)
            ends = apart(scores[source, source], rows, self.level)
            source_interval = ends if sign > 0 else (-ends[1], -ends[0])
        return audited(f"audit/domain-shift/{source}->{target}", None, real, self.max_drop, interval, evidence=MATRIX,
                       title=f"{source} -> {target}", unit=type(self.metric).unit or self.metric.info.name,
                       detail=f"target drop {real:.3g}, source drop {seen:.3g}: {shift.case(s, t)}", target_drop=real,
                       source_drop=seen, source_interval=source_interval, case=shift.case(s, t), level=self.level,
                       sure=interval is not None and source_interval is not None and
                       all(low > 0 or high < 0 for low, high in (interval, source_interval)))

    def _ready(self) -> DomainShift:
        try:
            given = read_json(Path(self.matrix).expanduser())
            if "higher_is_better" not in given:
                raise UserError(f"{self.matrix} does not say higher_is_better: true or false. "
                                "Drops would change sign silently.")
            return DomainShift.of(given["scores"], given["domains"], bool(given["higher_is_better"]))
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{self.matrix} is no matrix of domains and scores: {error}") from None

    def _split(self, ctx: Ctx, rows: Sequence[Example]) -> Split:
        """Training and test rows of each domain, by a drawn order."""
        domains: dict[str, list[Example]] = {}
        for row in rows:
            name = row.source if self.domain_field == "source" else str(row.meta.get(self.domain_field, ""))
            domains.setdefault(name, []).append(row)
        if "" in domains or len(domains) < 2:
            raise UserError(f"domain-shift needs two domains or more, named by '{self.domain_field}' in every row; found: "
                            f"{', '.join(n or '(none)' for n in sorted(domains)) or 'no rows'}.")
        found = {}
        for name, own in sorted(domains.items()):
            order = ctx.rng("split", name).permutation(len(own))
            count = round(self.test_share * len(own))
            if count < self.min_test:
                raise UserError(f"Domain '{name}' has {len(own)} rows, of which {count} would be test rows; at least "
                                f"min_test = {self.min_test} are needed.")
            found[name] = ([own[i] for i in order[count:]], [own[i] for i in order[:count]])
        sizes = {name: len(train) for name, (train, _) in found.items()}
        if len(set(sizes.values())) > 1:
            if self.equalize:
                return {name: (train[:min(sizes.values())], test) for name, (train, test) in found.items()}
            ctx.log(f"domain-shift: domains have different numbers of training rows ({sizes}): drops hold that too. "
                    "equalize=true takes as many of each.")
        return found

    def _scores(self, ctx: Ctx, split: Split) -> dict[tuple[str, str], Any]:
        """[test rows] of each (source, target), mean over seeds."""
        from luthier.engine.classification import classify

        place = ctx.folder / "base"
        place.mkdir(exist_ok=True)
        base: Artifact = build("step", {"use": "base", "model": self.base}).run({}, replace(ctx, folder=place))
        total: dict[tuple[str, str], list[Any]] = {}
        for number, source in enumerate(split):
            for seed in range(self.seeds):
                folder = ctx.folder / f"domain-{number}-{seed}"
                (folder / "rows").mkdir(parents=True, exist_ok=True)
                own = replace(ctx, folder=folder, rng=ctx.rng.within(f"seed-{seed}"))
                rows = write_examples(folder / "rows", {"train": split[source][0]})
                fit = {"use": "fit", "method": self.method.to_dict(), "length": {"epochs": self.epochs},
                       "over_long": "truncate", "max_tokens_per_example": self.max_tokens,
                       "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}]}
                tuned = ctx.engine.fit(fit, {"base": base, "examples": rows}, own)
                model = ctx.engine.load(base, tuned)
                for target, (_, test) in split.items():
                    said: list[Prediction] = classify(model, tuned, test, own)
                    values = [float(r["value"]) for r in self.metric.score(test, said, own)]
                    total.setdefault((source, target), []).append(values)
        return {pair: np.mean(values, axis=0) for pair, values in total.items()}

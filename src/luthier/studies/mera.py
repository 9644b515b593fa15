"""He et al. 2023: adapters of other tasks, aligned and averaged into one, are a better start for few rows than any of them.

On frozen MiniLM six adapters learn six tasks of two families, each from a random start of its own. Two targets, one of either
family, are then learned from 32 rows: from a fresh adapter, from each source of the family (the best on dev stands for them),
from the mean of all six, plain or aligned by weights or by activations, and from the mean of the three of the family. Sources
that share their start are the control: there is hardly anything to align. What a start is worth before any tuning is told by
the nearest mean of the drawn rows. AdapterFusion is not there, and how far aligned neurons still disagree is not measured. The
sources are given; rows are drawn twice. Settings were set beforehand; for time alone texts and trainings of sources were made
shorter after a look at five arms at one draw, and three draws became two after a whole run, which settled neither main claim.
Version 2 asks the same of texts that no imported package changes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from luthier.core.kinds import Study
from luthier.core.study import Choice, Claim, Guard, Measure, Paper, Scale
from luthier.studies._worlds.two_tracks import SOURCES, TARGETS

RIGHT, DEV, BEFORE = Measure("accuracy"), Measure("accuracy", "dev"), Measure("before")
METHOD = "adapter:style=pfeiffer,bottleneck=32"
SINGLES = tuple(f"single{n}" for n in range(len(SOURCES) // len(TARGETS)))
DEFAULT = ("fresh", *SINGLES, "mean", "mera", "mera-acts", "track-mean", "track", "shared-mean", "shared", "full")


class MeraStudy(Study, name="mera", seeds=[177], version=2):
    """Do merged adapters begin better than any one?"""

    world: ClassVar[str] = "real model (MiniLM) on invented reviews and Python's own documentation"
    paper: ClassVar[Paper] = Paper(
        "MerA: Merging Pretrained Adapters For Few-Shot Learning", "He et al. 2023, arXiv 2308.15982",
        "Adapters of other tasks, aligned and averaged, are a better start for few rows than a fresh one, one of them, or "
        "AdapterFusion; best where they are of the target's family.",
        "same track, against adapter tuning: MRPC +3.5, MNLI +5.0")
    scales: ClassVar[Mapping[str, Scale]] = {
        "smoke": Scale(1, {"test": 8}, {
            "base.model": "pico-encoder", "rows.rows": 4, "rows.pool": 8, "rows.tests": 4, "rows.texts": 4, "score.shots": 4,
            "score.draws": 1,
            "score.fit": {"method": METHOD, "learning_rate": 1e-3, "length": {"steps": 1}, "batch_rows": 4,
                          "max_tokens_per_example": 16},
            **{f"{source}.length": {"steps": 1} for source in SOURCES}},
            arms=("fresh", "single0"), about="every line, no evidence"),
        "default": Scale(1, {"test": 200}, arms=DEFAULT),
        "large": Scale(3, {"test": 200}, {"rows.pool": 140, "score.shots": 128, "score.draws": 5},
                       about="from 128 rows, with the sum, too"),
    }

    def recipe(self) -> dict[str, Any]:
        """Rows, a base, and what few rows of both targets make of a fresh adapter."""
        return self._begun({}, {})

    @staticmethod
    def _sources(shared: bool = False) -> dict[str, Any]:
        """The adapters; those that share their start draw as one, under variants of one name."""
        return {f"source@{name}" if shared else name: {
            "use": "fit", "tasks": [{"data": f"examples.{name}", "objective": "classify", "head": "linear"}], "method": METHOD,
            "learning_rate": 1e-3, "length": {"epochs": 4}, "batch_rows": 16, "schedule": "linear:warmup=0.1",
            "over_long": "truncate", "max_tokens_per_example": 48, "dtype": "float32",
            "inputs": {"base": "base", "examples": "rows"}} for name in SOURCES}

    @staticmethod
    def _begun(steps: Mapping[str, Any], begins: Mapping[str, str], **more: Any) -> dict[str, Any]:
        """A recipe in which targets begin from steps; steps that it does not use are left out."""
        needed = {n for begin in begins.values() for n in steps[begin]["inputs"].values()} | set(begins.values())
        return {"name": "mera", "seed": 0, "steps": {
            "base": {"use": "base", "model": "minilm"}, "rows": {"use": "two-tracks"},
            **{n: s for n, s in steps.items() if n in needed},
            "score": {"use": "carried", "inputs": {"base": "base", "examples": "rows", **begins}, **more}}}

    def _merged(self, rule: str, tracks: bool, shared: bool = False) -> dict[str, Any]:
        """All sources merged into one start, or those of either family into the start of its target."""
        steps = self._sources(shared)
        own_tracks = {t: [n for n in steps if t in n] for t in TARGETS}
        groups: Mapping[str, Sequence[str]] = own_tracks if tracks else {"all": list(steps)}
        texts = {"files": {"texts": "unlabelled"}} if "activations" in rule else {}
        for name, own in groups.items():
            inputs = {"base": "base", **({"examples": "rows"} if texts else {}), **{n.replace("@", "-"): n for n in own}}
            steps[f"merged-{name}"] = {"use": "merge", "rule": rule, **texts, "inputs": inputs}
        return self._begun(steps, {name: f"merged-{name}" for name in groups})

    def _single(self, number: int) -> dict[str, Any]:
        """One source of either family: an adapter merged with itself is itself, without its head."""
        steps = self._sources()
        for target in TARGETS:
            steps[f"alone-{target}"] = {"use": "merge", "rule": "mera", "inputs": {
                "base": "base", "one": f"{target}{number}", "again": f"{target}{number}"}}
        return self._begun(steps, {target: f"alone-{target}" for target in TARGETS})

    def arms(self) -> dict[str, dict[str, Any]]:
        """Starts: fresh, one source, all, those of the family; controls; and full tuning."""
        return {
            "fresh": {},
            **{name: self._single(n) for n, name in enumerate(SINGLES)},
            "mean": self._merged("mera:align=none", False),
            "mera": self._merged("mera", False),
            "mera-acts": self._merged("mera:cost=activations", False),
            "track-mean": self._merged("mera:align=none", True),
            "track": self._merged("mera", True),
            "shared-mean": self._merged("mera:align=none", True, shared=True),
            "shared": self._merged("mera", True, shared=True),
            "sum": self._merged("mera:how=sum", False),
            "full": self._begun({}, {}, fit={"method": "full", "learning_rate": 1e-4, "length": {"epochs": 10},
                                             "batch_rows": 16, "max_tokens_per_example": 48}),
        }

    def guards(self) -> tuple[Guard, ...]:
        """Few rows say something, and leave something to gain."""
        return (Guard("32 rows say something: at least 0.6 right", RIGHT, ("full",), least=0.6),
                Guard("a fresh adapter leaves something to gain: at most 0.95 right", RIGHT, ("fresh",), most=0.95))

    def choices(self) -> tuple[Choice, ...]:
        """The source of the target's family that is best on rows that were not drawn."""
        return (Choice("single", SINGLES, DEV),)

    def claims(self) -> tuple[Claim, ...]:
        """Against the fresh one and the best single one; alignment; the family; the control; full tuning."""
        def above(name: str, says: str, left: str, right: str, on: Measure = RIGHT, **rest: Any) -> Claim:
            return Claim(name, says, left, right, on, "higher", 0.03, 0.35, 0.03, **rest)

        return (
            above("than a fresh one", "adapters of the target's family, aligned and averaged, are a better start than a fresh "
                  "one", "fresh", "track", paper="MRPC +3.5, MNLI +5.0"),
            above("than the best single one", "they are a better start than the best single one", "single", "track",
                  paper="better than single adapters"),
            above("alignment", "aligned they are a better start than averaged as they are", "track-mean", "track",
                  paper="transport above plain averages", main=False),
            above("the family", "those of the target's family are a better start than all", "mera", "track",
                  paper="same track best", main=False),
            above("all, than a fresh one", "all, aligned and averaged, are a better start than a fresh one", "fresh", "mera",
                  main=False),
            above("all, alignment", "all aligned are a better start than all averaged as they are", "mean", "mera", main=False),
            above("one source", "the best source of the target's family is a better start than a fresh adapter", "fresh",
                  "single", main=False),
            above("activations", "aligned by activations they are a better start than by weights", "mera", "mera-acts",
                  main=False),
            above("a shared start", "sources from one start gain from alignment: not expected", "shared-mean", "shared",
                  main=False),
            above("than full tuning", "the family's merged adapter is right more often than full tuning", "full", "track",
                  paper="same track surpasses full tuning", main=False),
            above("before tuning", "before any tuning more rows are nearest to their own label's mean than with a fresh "
                  "adapter", "fresh", "track", BEFORE, main=False),
            above("before tuning, alignment", "and more than without alignment", "track-mean", "track", BEFORE, main=False))

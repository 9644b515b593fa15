"""`luthier audit`: what is looked at, with which audits, and what their findings say in words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.core.artifact import MODEL_KINDS, RECORD, open_artifact
from luthier.core.component import build, find
from luthier.core.errors import UserError
from luthier.core.finding import Finding
from luthier.core.kinds import Audit
from luthier.core.recipe import Recipe
from luthier.core.run import Run

FOLDER = "audit"  # of a run's own audits, within the run
PREFIX = "audit/"
SMALLEST_SHOWN = 1e-9  # less than this is nothing to a reader


def battery(kind: str) -> list[str]:
    """The audits that look at a run, a pair or data when none is named."""
    from luthier.core.index import rows

    classes: list[tuple[str, Any]] = [(r["name"], find("audit", r["name"])) for r in rows() if r["kind"] == "audit"]
    return [name for name, cls in classes if cls.battery and kind in cls.subjects]


def recipe(target: Path, base: str | None = None, audits: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """The recipe that audits a run, a model folder (with `base`) or a file of rows; one step an audit.

    Raises:
        UserError: the target is none of these, a run has no tuned model, or a model folder comes without its base.
    """
    kind, steps, own_seed = _subject(target, base)
    chosen = [build("audit", spec) for spec in (audits or battery(kind))]
    if not chosen:
        raise UserError(f"No audit looks at {kind} by itself. Name one: --audit NAME. See: luthier list audit")
    inputs = {name: name for name in ("base", "tuned", "reference", "examples") if name in steps}
    for part in chosen:
        name = _name(part, steps)
        if kind not in type(part).subjects and audits:
            raise UserError(f"--audit {part.info.name} looks at {' or '.join(type(part).subjects)}; {target} is {kind}.")
        steps[name] = {"use": "audit", "audit": part.to_dict(), "inputs": inputs}
    return Recipe({"name": "audit", "about": f"What tuning changed beside its goal: audits of {target.name}.",
                   "seed": own_seed if seed is None else seed, "steps": steps})


def _name(part: Audit, taken: dict[str, Any]) -> str:
    """The step of an audit; a second one of the same name, with other settings, is numbered."""
    first = f"audit-{part.info.name}"
    count = sum(n == first or n.startswith(f"{first}-") for n in taken)
    return first if not count else f"{first}-{count + 1}"


def _subject(target: Path, base: str | None) -> tuple[str, dict[str, Any], int]:
    """What is audited: its kind, the steps that bring it, and the seed."""
    if (target / "run.json").exists():
        return _of_run(Run.open(target), base)
    if target.is_dir() and (target / RECORD).exists() and open_artifact(target).kind == "examples":
        return "data", {"examples": {"use": "existing", "path": str(target.resolve()), "kind": "examples"}}, 0
    if target.is_dir():
        return "pair", _of_folder(target, base), 0
    if target.is_file():
        if base is not None:
            raise UserError(f"{target} holds rows: --base names a model to compare with. Leave it out.")
        return "data", {"examples": {"use": "read", "path": str(target)}}, 0
    raise UserError(f"{target} is not there. Name a run, a model folder (with --base), or a file of rows.")


def _of_run(run: Run, base: str | None) -> tuple[str, dict[str, Any], int]:
    from luthier.pipelines.jobs import base_step

    if not run.has("tuned"):
        raise UserError(f"{run.folder} has no tuned model. Finish it first: run its command again.")
    place = run.folder.resolve() / "steps"
    steps: dict[str, Any] = {"base": base_step(run),
                             "tuned": {"use": "existing", "path": str(place / "tuned"), "kind": run.step("tuned").kind}}
    if base is not None:
        steps["reference"] = {"use": "base", "model": base}
    if run.has("split"):
        steps["examples"] = {"use": "existing", "path": str(place / "split"), "kind": "examples"}
    return "run", steps, int(run.record["seed"])


def _of_folder(folder: Path, base: str | None) -> dict[str, Any]:
    """A model folder: weights that rest on a base, or a whole model."""
    if base is None:
        raise UserError(f"{folder} is a model folder: say what it is compared with, such as --base gemma3-270m.")
    record = open_artifact(folder) if (folder / RECORD).exists() else None
    if record is not None and record.kind in MODEL_KINDS and "base" in record.meta:
        return {"base": {"use": "base", "model": base},
                "tuned": {"use": "existing", "path": str(folder.resolve()), "kind": record.kind}}
    return {"base": {"use": "base", "model": base}, "tuned": {"use": "base", "model": str(folder)}}


def run(made: Recipe, target: Path, out: Path | None, **options: Any) -> Run:
    """Execute the audits. The report and the card of an audited run then say what was found.

    Raises:
        UserError: bad input.
    """
    from luthier.pipelines import card, jobs, report

    audited = Run(target) if (target / "run.json").exists() else None
    folder = out or (target / FOLDER if audited else Path("runs") / f"audit-{target.stem}")
    finished = jobs.run(made, folder, **options)
    if audited and not out:
        report.write(audited)
        card.write(audited)
    return finished


def audits_of(run: Run) -> list[Finding]:
    """Findings of the audits of a run: its own steps, and those of `luthier audit` in its folder `audit`."""
    inner = Run(run.folder / FOLDER)
    found = [*run.findings(), *(inner.findings() if inner.record else ())]
    return [f for f in found if f.name.startswith(PREFIX)]


def broken(findings: Sequence[Finding]) -> list[Finding]:
    """Findings that break a hard limit."""
    return [f for f in findings if f.verdict == "fail" and f.extra.get("hard")]


def sentence(finding: Finding) -> str:
    """A finding in one line: what was measured, before, after, interval, limit, verdict and what mends it."""
    extra = finding.extra
    title = extra.get("title") or finding.name.removeprefix(PREFIX)
    if finding.verdict == "not applicable":
        return f"{title}: not applicable: {finding.detail}"
    unit = f" {finding.unit}" if finding.unit else ""
    values = " -> ".join(_number(v) for v in (finding.left, finding.right) if v is not None)
    told = f"{title}: {values}{unit}"
    if finding.left is not None and finding.difference is not None:
        told += f", change {_number(finding.difference, sign=True)}"
    if finding.interval:
        told += f" [{_number(finding.interval[0], sign=True)}, {_number(finding.interval[1], sign=True)}]"
    if finding.tolerance is not None:
        sign = "" if finding.left is None else "-" if extra.get("worse") == "down" else "+"
        told += f", limit {sign}{_number(finding.tolerance)}"
    told += f": {finding.verdict.upper()}"
    if finding.verdict == "undecided" and extra.get("needed"):
        told += f" (about {extra['needed']} more {extra.get('needed_unit', 'questions')})"
    if finding.verdict == "fail" and extra.get("mends"):
        told += f". What mends it: {', '.join(extra['mends'])}"
    return told


def _number(value: Any, sign: bool = False) -> str:
    if not isinstance(value, (int, float)):
        return str(value)
    shown = value if abs(value) >= SMALLEST_SHOWN else 0.0
    return f"{shown:+.3g}" if sign else f"{shown:.3g}"

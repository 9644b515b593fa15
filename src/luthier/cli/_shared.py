"""What commands share: options, progress on the terminal, and how results are printed."""

from __future__ import annotations

import json
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from luthier.core.run import Run
    from luthier.engine.executor import Watcher

Base = Annotated[str | None, typer.Option("--base", metavar="MODEL", help="packaged model, local folder, or hub id "
                                                                             "org/name[@revision]")]
Out = Annotated[Path | None, typer.Option("--out", metavar="RUN_DIR", help="folder of the run; the same folder and "
                                                                            "recipe go on where they stopped")]
RecipeOption = Annotated[str | None, typer.Option("--recipe", metavar="NAME_OR_FILE", help="another recipe")]
Seed = Annotated[int | None, typer.Option("--seed", help="seed of everything random")]
Json = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Fresh = Annotated[bool, typer.Option("--fresh", help="start over: delete what the run folder holds")]
Exact = Annotated[bool, typer.Option("--exact", help="float32 and fixed decisions instead of measured ones")]
Executor = Annotated[str, typer.Option("--executor", metavar="WHERE", help="where steps run: local, one after the other; "
                                       "processes[:N], independent ones at the same time; ray:ADDRESS, on a cluster "
                                       "(ray:local starts one)")]
Terms = Annotated[str | None, typer.Option("--accept-terms", metavar="NAME", help="accept a model's terms once (gemma)")]
Host = Annotated[str, typer.Option("--host", help="address to listen at; any but this machine's needs --token-file")]
Port = Annotated[int, typer.Option("--port", min=1, max=65535, help="port to listen at")]
TokenFile = Annotated[Path | None, typer.Option("--token-file", metavar="FILE", help="file with the token that requests must "
                                                "bring (Authorization: Bearer; the page asks for it)")]
Sets = Annotated[list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="set a value of the recipe, such as "
                                                                                  "tuned.length='{epochs: 2}'")]
Spec = list[str] | None
SPEC = "NAME:KEY=VALUE,…"
Method = Annotated[Spec, typer.Option("--method", metavar=SPEC, help="which weights move (luthier list method)")]
Objective = Annotated[str | None, typer.Option("--objective", metavar=SPEC, help="what is minimised")]
Regularizer = Annotated[Spec, typer.Option("--regularizer", metavar=SPEC, help="added to training; repeatable")]
Optimizer = Annotated[Spec, typer.Option("--optimizer", metavar=SPEC, help="how gradients move weights")]
Decoder = Annotated[Spec, typer.Option("--decoder", metavar=SPEC, help="how answers are written")]
Metric = Annotated[Spec, typer.Option("--metric", metavar=SPEC, help="what is measured; repeatable")]
DataStep = Annotated[Spec, typer.Option("--data-step", metavar=SPEC, help="who writes questions; repeatable")]
Retriever = Annotated[Spec, typer.Option("--retriever", metavar=SPEC, help="how passages are found")]


def accept(terms: str | None) -> None:
    """As `packages.accept`, where an option was given."""
    if terms:
        from luthier.engine.packages import accept as accepted

        accepted(terms)


def watcher(quiet: bool = False) -> Watcher:
    """Tells a terminal what happens, on standard error: a moving line where there is one, else a line an event."""
    from luthier.engine.executor import Watcher

    if quiet:
        return Watcher()
    shown = _Shown(sys.stderr.isatty())
    return Watcher(shown.started, shown.finished, shown.log, shown.progress, shown.ended)


class _Shown:
    def __init__(self, moving: bool) -> None:
        self.moving, self.last, self.kept = moving, "", 0

    def started(self, name: str, number: int, total: int) -> None:
        self._line(f"[{number}/{total}] {name} …", keep=not self.moving)

    def finished(self, name: str, seconds: float, cached: bool) -> None:
        if cached:
            self.kept += 1
        else:
            self._line(f"{name}: done in {_time(seconds)}", keep=True)

    def ended(self) -> None:
        """Tell in one line how many steps in a row were found done."""
        kept, self.kept = self.kept, 0
        if kept:
            self._line(f"{kept} step{'s' if kept > 1 else ''} already done", keep=True)

    def log(self, text: str) -> None:
        self._line(f"  {text}", keep=True)

    def progress(self, name: str) -> Callable[..., None]:
        """What one step reports, with its own pace: several may run at the same time."""
        began = last = 0.0
        first, latest, counted = -1, -1, (-1, "")

        def show(done: int, total: int, unit: str = "", **numbers: float) -> None:
            nonlocal began, last, first, latest, counted
            now = time.monotonic()
            # What a resumed step finds done must not enter the rate, nor a count that came before: a sweep counts anew.
            if done < latest or (total, unit) != counted:
                first, began, counted = done, now, (total, unit)
            latest = done
            if now - last < (0.5 if self.moving else 15) and done < total:
                return
            last = now
            known = first < done < total
            extra = "".join(f", {k} {v:.3g}" for k, v in numbers.items())
            tail = f", {_time((now - began) / (done - first) * (total - done))} left" if known else ""
            self._line(f"  {name}: {done} of {total} {unit}{extra}{tail}", keep=not self.moving)

        return show

    def _line(self, text: str, keep: bool) -> None:
        self.ended()
        if self.moving:
            print(f"\r\x1b[K{text}", end="\n" if keep else "", file=sys.stderr, flush=True)
        else:
            if text != self.last:  # the same again tells nothing
                print(text, file=sys.stderr, flush=True)
            self.last = text


def _time(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s" if seconds < 10 else f"{rest} s"


def typed() -> str:
    """How a command begins here: `luthier` where the shell finds this one, else the path by which it was called."""
    called, found = Path(sys.argv[0]), shutil.which("luthier")
    if called.name != "luthier" or not called.exists() or (found and called.samefile(found)):
        return "luthier"
    return shlex.quote(str(called))


def finish(run: Run, as_json: bool) -> None:
    """Print a run's table, verdicts and report."""
    from luthier.pipelines.advice import advise

    table, findings = _results(run)
    advice = advise(run)
    report = run.folder / "report.html"
    if as_json:
        print(json.dumps({"run": str(run.folder), "report": str(report), "table": table,
                          "findings": [f.to_dict() for f in findings],
                          "advice": [a.to_dict() for a in advice]}, ensure_ascii=False, indent=1))
        return
    for line in _table(table, "section" if run.has("documents") else "cluster"):
        print(line)
    for f in (f for f in findings if f.name.startswith("compare/")):
        if f.extra["metric"] in FIRST and f.verdict in ("better", "worse"):
            e = f.extra
            print(f"{e['set']}: {e['right_arm']} is {f.verdict} than {e['left_arm']} by {f.difference:+.3f} {e['metric']}")
    for said in advice:
        print(f"- {said.text}")
    receipts = [f for f in run.findings() if f.verdict in ("agrees", "differs", "not applicable")]
    checked = [f for f in receipts if f.verdict != "not applicable"]
    rest = f" ({len(receipts) - len(checked)} not applicable)" if len(checked) < len(receipts) else ""
    print(f"Receipts: {sum(f.verdict == 'agrees' for f in checked)} of {len(checked)} agree{rest}.")
    print(f"Report: {report}")


# What the terminal shows; the report has the rest.
FIRST = ("f1", "accuracy", "bits-per-byte", "preference-accuracy")
SHOWN = (*FIRST, "abstains")


def _table(rows: list[dict[str, Any]], cluster: str) -> list[str]:
    """The first metrics by set and arm: a heading with what was asked, and a line an arm."""
    blocks: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in (r for r in rows if r["metric"] in SHOWN):
        groups = f"{row['clusters']} {cluster}" + ("" if row["clusters"] == 1 else "s")
        blocks.setdefault((row["set"], row["metric"], f"{row['questions']} questions, {groups}"), []).append(row)
    width = max((len(row["arm"]) for row in rows), default=0) + 2
    lines = []
    for (name, metric, asked), members in sorted(blocks.items(), key=lambda item: item[0][:2]):
        lines.append(f"{name}: {metric} ({asked})")
        for row in members:
            interval = "" if row["low"] is None else f"  [{row['low']:.3f}, {row['high']:.3f}]"
            lines.append(f"  {row['arm']:<{width}}{row['value']:.3f}{interval}")
    return lines


def _results(run: Run) -> tuple[list[dict[str, Any]], list[Any]]:
    from luthier.core.files import read_json

    if not run.has("comparison"):
        return [], []
    table = read_json(run.step("comparison").folder / "table.json")
    return table, [f for f in run.findings() if f.name.startswith(("compare/", "gain/"))]

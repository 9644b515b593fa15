"""evidence: what studies found, for a terminal and as the page `docs/evidence.md` made from the recorded results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from luthier.core.study import measure_of
from luthier.pipelines.reproducing import Reproduction, mean_cost

HEAD = """# Evidence

Published claims, tried again at small scale by `luthier reproduce`. Made from the recorded results
(`python scripts/make_evidence.py`); negative results stay. How a verdict is reached stands in
`src/luthier/pipelines/judging.py`: *shown* and *reversed* need an interval that excludes zero, *not shown at this scale*
one that excludes every difference of interest, *undecided* and *underpowered* say that neither is so. What holds for a
tiny model need not hold for a large one; the paper's numbers stand beside ours for reference, not as a target.
"""


def told(reproduction: Reproduction) -> Iterator[str]:
    """A finished study as lines for a terminal."""
    outcome, paper = reproduction.outcome, reproduction.study.paper
    costs = mean_cost(reproduction)
    yield ""
    for row in outcome.table:
        span = "" if row["low"] is None else f"  [{row['low']:.3f}, {row['high']:.3f}]"
        spent = costs.get(row["arm"], {})
        cost = f"  {spent['tokens']:,.0f} tokens trained" if spent.get("tokens") else ""
        yield f"{row['arm']:<22}{_measured(row):<33} {row['value']:.3f}{span}  ({row['units']} units){cost}"
    if outcome.chosen:
        yield "Chosen: " + ", ".join(f"{name} = {arm}" for name, arm in outcome.chosen.items())
    for guard in outcome.guards:
        yield f"guard {'holds' if guard.verdict == 'agrees' else 'BROKEN'}: {guard.name.rpartition('/')[2]} ({guard.right:.3g})"
    for finding in outcome.claims:
        yield _claim(finding.to_dict())
        if finding.extra["paper"]:
            yield f"    paper: {finding.extra['paper']}"
    said = "no verdict" if outcome.verdict == "not applicable" else outcome.verdict
    yield f"Verdict: {said} ({outcome.why}). {reproduction.study.world[0].upper()}{reproduction.study.world[1:]}."
    yield f"Claim: {paper.claim} {paper.cite}: {paper.numbers}"


def _measured(row: Mapping[str, Any]) -> str:
    return str(measure_of(row["metric"], row["on"], row["step"]))


def _claim(finding: Mapping[str, Any]) -> str:
    extra, span, name = finding["extra"], finding["interval"], finding["name"].rpartition("/")[2]
    if finding["difference"] is None:
        return f"{name}: {finding['verdict']}: nothing can be computed from {extra['units']} units"
    between = f" [{span[0]:+.3f}, {span[1]:+.3f}]" if span else ""
    return (f"{name}: {finding['verdict']}: {extra['right_arm']} against {extra['left_arm']} "
            f"{finding['difference']:+.3f}{between} {finding['unit']} (expected {extra['direction']}, of interest from "
            f"{extra['smallest']:g})")


def _guard(finding: Mapping[str, Any]) -> str:
    held = "holds" if finding["verdict"] == "agrees" else "broken"
    return f"{finding['name'].rpartition('/')[2]} ({finding['right']:.3g}, {held})"


def page(records: Iterable[Mapping[str, Any]]) -> str:
    """`docs/evidence.md`."""
    kept = sorted(records, key=lambda r: r["seed"])
    lines = [HEAD, "| seed | study | verdict | scale | seeds | evidence from |", "|---|---|---|---|---|---|"]
    lines += [f"| {r['seed']} | [{r['study']}](#{r['study']}) | {_said(r)} | {r['scale']} | {r['seeds']} | {r['world']} |"
              for r in kept]
    for record in kept:
        lines += ["", *_section(record)]
    return "\n".join(lines) + "\n"


def _said(record: Mapping[str, Any]) -> str:
    return "no verdict (a guard is broken)" if record["verdict"] == "not applicable" else str(record["verdict"])


def _section(record: Mapping[str, Any]) -> Iterator[str]:
    paper = record["paper"]
    yield f"## {record['study']}"
    yield f"\n*{paper['title']}* ({paper['cite']}). {paper['claim']}"
    yield f"\n**{_said(record)}**: {record['why']}. {record['world'][0].upper()}{record['world'][1:]}; " \
          f"{record['seeds']} seed{'s' * (record['seeds'] > 1)}, {record['seconds']} seconds of work; study version " \
          f"{record['version']}.\n"
    yield "| claim | left | right | difference | of interest from | visible from | verdict |"
    yield "|---|---|---|---|---|---|---|"
    for finding in record["claims"]:
        extra, span = finding["extra"], finding["interval"]
        value = "-" if finding["difference"] is None else f"{finding['difference']:+.3f}"
        between = f" [{span[0]:+.3f}, {span[1]:+.3f}]" if span else ""
        seen = "-" if extra["visible"] is None else f"{extra['visible']:.2g}"
        yield (f"| {finding['detail']} | {extra['left_arm']} | {extra['right_arm']} | {value}{between} {finding['unit']} | "
               f"{extra['smallest']:g} | {seen} | {finding['verdict']} |")
    yield ""
    yield "Guards: " + "; ".join(map(_guard, record["guards"])) + "."
    yield f"\nThe paper's numbers: {paper['numbers']}\n"
    yield "| arm | measure | value | interval | units |"
    yield "|---|---|---|---|---|"
    for row in record["table"]:
        span = "-" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}"
        yield f"| {row['arm']} | {_measured(row)} | {row['value']:.3f} | {span} | {row['units']} |"

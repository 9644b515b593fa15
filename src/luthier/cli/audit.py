"""`luthier audit RUN`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    target: Annotated[Path, typer.Argument(metavar="RUN", help="folder of a run, a model folder (with --base), or a file of "
                                                               "rows")],
    base: shared.Base = None,
    audit: Annotated[shared.Spec, typer.Option("--audit", metavar=shared.SPEC, help="what is looked for (luthier list audit); "
                                                                                    "repeatable; all that apply if left "
                                                                                    "out")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="DIR", help="folder of the audit; RUN/audit if left out")] = None,
    seed: shared.Seed = None, accept_terms: shared.Terms = None, exact: shared.Exact = False, fresh: shared.Fresh = False,
    as_json: shared.Json = False, executor: shared.Executor = "local",
) -> None:
    """Look for what tuning broke: forgetting, calibration, refusals, leaks; exit code 3 when a hard limit is broken."""
    from luthier.core.errors import GateError
    from luthier.pipelines import auditing

    shared.accept(accept_terms)
    made = auditing.recipe(target, base, audit or [], seed)
    finished = auditing.run(made, target, out, fresh=fresh, exact=exact, watcher=shared.watcher(as_json), executor=executor)
    findings = auditing.audits_of(finished)
    if as_json:
        print(json.dumps({"run": str(finished.folder), "report": str(finished.folder / "report.html"),
                          "findings": [f.to_dict() for f in findings]}, ensure_ascii=False, indent=1))
    else:
        for finding in findings:
            print(auditing.sentence(finding))
        print(f"Report: {finished.folder / 'report.html'}")
    if broken := auditing.broken(findings):
        raise GateError(f"{len(broken)} hard {'limits are' if len(broken) > 1 else 'limit is'} broken: "
                        + "; ".join(f.extra.get("title") or f.name for f in broken) + ".")

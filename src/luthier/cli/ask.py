"""`luthier ask RUN QUESTION`"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", show_default=False)],
    question: Annotated[str, typer.Argument(help="what to ask")],
    arm: Annotated[str | None, typer.Option("--arm", help="which arm answers; tuned+retrieval if the run has it")] = None,
    passages: Annotated[int | None, typer.Option("--passages", min=1, help="how many passages to show")] = None,
    gate_temperature: Annotated[float | None, typer.Option(
        "--gate-temperature", min=1e-6, help="of a model with several adapters; about 5 for each task in a question")] = None,
    trace: Annotated[bool, typer.Option("--trace", help="show which adapter each part of prompt and answer took")] = False,
    decoder: shared.Decoder = None, accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """Answer a question with one arm of a run, and cite the passages it was shown."""
    from luthier.core.errors import UserError
    from luthier.core.run import Run
    from luthier.pipelines.asking import ask, spans, where

    shared.accept(accept_terms)
    if not question.strip():
        raise UserError("The question is empty.")
    answer = ask(Run.open(run), question, arm=arm, passages=passages, decoder=decoder[0] if decoder else None,
                 gate_temperature=gate_temperature, trace=trace)
    if as_json:
        print(json.dumps(answer, ensure_ascii=False, indent=1))
        return
    print(answer["answer"] or "(no answer)")
    for cited in answer["citations"]:
        place = "".join(f", {name} {cited[name]}" for name in ("page", "line") if cited[name])
        print(f"  [{cited['number']}] {cited['document']}{place}" + (f": “{cited['sentence']}”" if cited["sentence"] else ""))
    for number, passage in enumerate(answer["passages"], 1):
        print(f"\n[{number}] {where(passage)}\n    {passage['excerpt']}")
    for name, share, said in spans(answer["routing"]) if "routing" in answer else ():
        print(f"  {name} {share:.0%}: {said!r}")
    print(f"\n({answer['arm']}, {answer['seconds']:.1f} s{'' if answer['stopped'] else ', cut off at the length limit'})")

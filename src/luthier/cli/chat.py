"""`luthier chat RUN`"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    run: Annotated[Path, typer.Argument(help="folder of a run", show_default=False)],
    arm: Annotated[str | None, typer.Option("--arm", help="which arm answers; tuned+retrieval if the run has it")] = None,
    passages: Annotated[int | None, typer.Option("--passages", min=1, help="how many passages to show")] = None,
    decoder: shared.Decoder = None, accept_terms: shared.Terms = None, as_json: shared.Json = False,
) -> None:
    """Ask a run question after question; follow-ups are understood, passages cited. From a pipe: a line, an answer."""
    from luthier.core.errors import UserError
    from luthier.core.run import Run
    from luthier.pipelines.asking import Asker
    from luthier.pipelines.chatting import Chat

    shared.accept(accept_terms)
    talking = sys.stdin.isatty()
    with Asker(Run.open(run), decoder=decoder[0] if decoder else None) as asker:
        chat = Chat(asker, arm, passages)
        if talking:
            print(f"{chat.arm} answers. /help shows the commands, /quit leaves.")
        while not chat.ended:
            try:
                if talking:
                    line = input("> ")
                elif not (line := sys.stdin.readline()):
                    break
            except EOFError:
                break
            except KeyboardInterrupt:
                print()  # nothing is running: as in a shell, a new line
                continue
            try:
                text, answer = chat.hear(line)
            except UserError as error:
                print(f"luthier: {error}", file=sys.stderr)
                continue
            except KeyboardInterrupt:
                print("\n(interrupted)", file=sys.stderr)
                continue
            if as_json and answer is not None:
                print(json.dumps(answer, ensure_ascii=False), flush=True)
            elif text:
                print(text, flush=True)

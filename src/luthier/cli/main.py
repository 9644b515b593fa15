"""`luthier COMMAND`: find the command, run it, say what went wrong in words.

Only the command that was asked for is imported, so `--help` and `list` answer at once.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import NoReturn

COMMANDS = {
    "adapt": "documents in, four arms with evidence out",
    "tune": "examples in, a tuned model with its evidence out",
    "compare": "several ways to tune, judged on equal rows and budget",
    "evaluate": "score a tuned model on more rows",
    "audit": "what tuning broke: forgetting, calibration, refusals, leaks",
    "ask": "ask a run, with cited passages",
    "chat": "question after question, with citations",
    "merge": "several models, or a base and a tuned model, to one by a rule on weights",
    "serve": "the arms of runs over HTTP: chat, completions, embeddings, cited answers",
    "vendor": "the vendor's side of split-and-privatize: the upper part of a model over HTTP",
    "ui": "a web page over the runs of a folder: adapt, watch, compare, audit, catalogue",
    "export": "the tuned model as an adapter or as full weights, with receipts",
    "data": "inspect, ingest, write questions, curate, select, split",
    "plan": "memory, time and disk of a run before it starts",
    "doctor": "what is wrong here, and the one command that mends it",
    "list": "the components, by kind",
    "schema": "JSON schema of recipes or of one component",
    "reproduce": "whether a published claim holds here: its study, run and judged",
    "catalog": "the 210 published techniques and what stands behind each",
}
INTERRUPTED = 130


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code (2 = bad input, 3 = broken gate, 130 = interrupted)."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_help())
        return 0
    if arguments[0] in ("-V", "--version", "version"):
        from luthier import __version__

        print(f"luthier {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        from luthier.core.errors import nearest

        what = "option" if name.startswith("-") else "command"
        tail = "Options follow a command." if what == "option" else nearest(name, COMMANDS)
        print(f"luthier: there is no {what} '{name}'. {tail} See: luthier --help", file=sys.stderr)
        return 2
    return _run(name, arguments[1:])


def process() -> NoReturn:
    """The command of this process, and its end."""
    try:
        _heed_interrupts()
        code = main()
    except KeyboardInterrupt:  # while its modules were being loaded: nothing has begun
        print("luthier: interrupted.", file=sys.stderr)
        code = 130
    if "RANK" in os.environ and (distributed := sys.modules.get("luthier.engine.distributed")):
        distributed.leave(code)
    sys.exit(code)


def _heed_interrupts() -> None:
    """Where the starter held interrupts back until we can say them (`luthier ui` does), they come now.

    Also where the starter itself ignores them, as a shell lets its background jobs do: who stops us means it.
    """
    if hasattr(signal, "pthread_sigmask") and signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ()):
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _run(name: str, arguments: list[str]) -> int:
    import typer

    from luthier.core.errors import LuthierError

    module = importlib.import_module(f"luthier.cli.{name}")
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    if hasattr(module, "commands"):
        if not arguments:
            print(_subcommands(name, module.__doc__ or "", module.commands), file=sys.stderr)
            return 2
        app.callback(help=module.__doc__)(lambda: None)
        for word, function in module.commands.items():
            app.command(word, help=function.__doc__)(function)
    else:
        app.command(name, help=module.command.__doc__)(module.command)
    try:
        code = typer.main.get_command(app)(args=arguments, prog_name=f"luthier {name}", standalone_mode=False)
        # The parser turns Ctrl-C into a return value or, in other versions, into an exception of its own.
        return _interrupted() if code == INTERRUPTED else int(code or 0)
    except LuthierError as error:
        print(f"luthier: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except BrokenPipeError:
        # The reader of our output went away (`luthier list | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if type(error).__name__ == "Abort":
            return _interrupted()
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        if hasattr(error, "show"):
            error.show()  # a wrong option: the parser says which, and how the command is used
        return int(code)


def _interrupted() -> int:
    print("\nluthier: interrupted. What is finished is kept: run the same command to go on.", file=sys.stderr)
    return INTERRUPTED


def _subcommands(name: str, about: str, commands: Mapping[str, Callable[..., None]]) -> str:
    """What to say where a command of several was not told which."""
    width = max(map(len, commands))
    told = [f"  {word:<{width}}  {(function.__doc__ or '').splitlines()[0]}" for word, function in commands.items()]
    return "\n".join([about.splitlines()[0], "", f"Usage: luthier {name} COMMAND PATH [OPTIONS]", "", *told, "",
                      f"luthier {name} COMMAND --help shows a command's options."])


def _help() -> str:
    from luthier import __version__

    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join([
        f"luthier {__version__}: adapt a pretrained model to your own documents and tasks, with evidence.", "",
        "Usage: luthier COMMAND [OPTIONS]", "", *lines, "",
        "luthier COMMAND --help shows a command's options. Start with: luthier adapt --demo",
    ])


if __name__ == "__main__":
    process()

"""Runs that were started from the page: each is the command line's own process, in a session of its own.

So a kill, a second start and the journal behave as always, and a run goes on when the page is closed or its server ends.
What is needed to find a process again stands in `RUNS/.ui/NAME.json`; what it says goes to `RUNS/.ui/NAME.log`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from luthier.core.errors import UserError
from luthier.core.files import read_json, write_json

FOLDER = ".ui"
SHOWN_BYTES = 16_000  # of the end of a log
COMMAND = ("-m", "luthier.cli.main")


class Processes:
    """The processes of one folder of runs, by name."""

    def __init__(self, root: Path) -> None:
        self.folder = root / FOLDER
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str, arguments: Sequence[str]) -> None:
        """Run `luthier ARGUMENTS`, unless this name's process still runs.

        Raises:
            UserError: it does.
        """
        if self.running(name):
            raise UserError(f"{name} is running. Stop it first, or wait for its end.")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._log(name).open("ab") as log:
            log.write(f"$ {written(arguments)}\n".encode())
            log.flush()
            # A process inherits what its starter's thread holds back: an interrupt waits until the command can say so.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                child = subprocess.Popen([sys.executable, *COMMAND, *arguments], stdin=subprocess.DEVNULL, stdout=log,
                                         stderr=log, start_new_session=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._children[name] = child
        try:
            born = psutil.Process(child.pid).create_time()
        except psutil.NoSuchProcess:  # ended already; its log says why
            born = 0.0
        write_json(self.folder / f"{name}.json", {"arguments": list(arguments), "pid": child.pid, "born": born})

    def stop(self, name: str) -> None:
        """What Ctrl-C does in a terminal: the process and all that it started are interrupted, and finish in words.

        Raises:
            UserError: nothing of this name runs.
        """
        if not self.running(name):
            raise UserError(f"{name} is not running.")
        os.killpg(self._record(name)["pid"], signal.SIGINT)

    def resume(self, name: str) -> None:
        """The same command again. Raises UserError where it runs, or was not started here."""
        if not self.known(name):
            raise UserError(f"{name} was not started from this page. Run its command again where it was started.")
        self.start(name, self._record(name)["arguments"])

    def known(self, name: str) -> bool:
        """Whether it was started from this page once."""
        return (self.folder / f"{name}.json").exists()

    def running(self, name: str) -> bool:
        """Whether it runs now; another process that was given its number since is not it."""
        child = self._children.get(name)
        if child is not None:
            return child.poll() is None
        record = self._record(name)
        try:
            process = psutil.Process(record["pid"])
            return process.create_time() == record["born"] and process.status() != psutil.STATUS_ZOMBIE
        except (KeyError, psutil.Error):
            return False

    def code(self, name: str) -> int | None:
        """How it ended; None while it runs, and where another server of this page started it."""
        child = self._children.get(name)
        return child.poll() if child is not None else None

    def command(self, name: str) -> str:
        """The command, to be typed or copied."""
        return written(self._record(name).get("arguments", []))

    def said(self, name: str) -> list[str]:
        """The last lines of what it said."""
        try:
            with self._log(name).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - SHOWN_BYTES))
                return log.read().decode("utf-8", "replace").splitlines()
        except OSError:
            return []

    def _record(self, name: str) -> dict[str, Any]:
        path = self.folder / f"{name}.json"
        return dict(read_json(path)) if path.exists() else {}

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"


def written(arguments: Sequence[str]) -> str:
    """A command as it is typed."""
    return shlex.join(["luthier", *arguments])

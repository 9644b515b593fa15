"""Parsers of formats that can hang or grow without end, each in a child process that is killed at its limits.

A child is kept for the next file, since starting one takes longer than most files. It answers one line of JSON to one
line of JSON, and ends with its parent: when its input closes, and by an alarm in the middle of a file.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
import time
from typing import Any

from luthier.techniques.data._shared import MEGABYTE, NotRead

START_SECONDS = 60.0
ANSWER_MEGABYTES = 256  # more text than this of one file is a bomb
_children: dict[tuple[str, int], _Child] = {}


def parse_in_child(call: str, path: str, seconds: float, megabytes: float, **options: Any) -> Any:
    """What `module:function` of `call` makes of the file at `path` (and of the options): plain JSON values.

    A function `prepare` of the module, where there is one, is called once before the first file.

    Raises:
        NotRead: the function did, or it took more than `seconds` or `megabytes` of memory, or it failed.
    """
    key = (call, int(megabytes))
    child = _children.get(key)
    if child is None:
        child = _children[key] = _Child(call, int(megabytes))
    try:
        return child.ask(path, seconds, options)
    except _Stopped as why:
        child.kill()
        del _children[key]
        raise NotRead("damaged", str(why)) from None


class _Stopped(Exception):
    """The child gave no answer and is of no further use."""


class _Child:
    def __init__(self, call: str, megabytes: int) -> None:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
        self.process = subprocess.Popen([sys.executable, "-m", __name__, call, str(megabytes)], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
        # The first line says that it is ready: a file's time doesn't hold the start.
        self.answer(START_SECONDS, "start")

    def ask(self, path: str, seconds: float, options: dict[str, Any]) -> Any:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps({"path": path, "seconds": seconds, "options": options}).encode() + b"\n")
            self.process.stdin.flush()
        except OSError:
            raise _Stopped("its parser ended by itself; run again") from None
        answer = json.loads(self.answer(seconds, "parse"))
        if "reason" in answer:
            raise NotRead(answer["reason"], answer["detail"])
        return answer["value"]

    def answer(self, seconds: float, doing: str) -> bytes:
        """The next line of the child."""
        assert self.process.stdout is not None
        until, pieces, size = time.monotonic() + seconds, [], 0
        with selectors.DefaultSelector() as waiting:
            waiting.register(self.process.stdout, selectors.EVENT_READ)
            while True:
                if not waiting.select(max(0.0, until - time.monotonic())):
                    raise _Stopped(f"it took more than {seconds:g} s to {doing}; raise max_seconds, or save it anew")
                piece = os.read(self.process.stdout.fileno(), 1 << 20)
                if not piece:
                    raise _Stopped("its parser broke off, most likely out of memory; raise max_memory_megabytes, "
                                   "or save it anew")
                pieces.append(piece)
                size += len(piece)
                if size > ANSWER_MEGABYTES * MEGABYTE:
                    raise _Stopped(f"it unpacks to more than {ANSWER_MEGABYTES} MB of text")
                if piece.endswith(b"\n"):
                    return b"".join(pieces)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not yet written has no reader any more
                    continue


@atexit.register
def _end() -> None:
    for child in _children.values():
        child.kill()
    _children.clear()


def _serve(call: str, megabytes: int) -> None:
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what a library prints is no answer
    name, _, function = call.partition(":")
    module = importlib.import_module(name)
    parse = getattr(module, function)
    # What a library takes to start is no file's time.
    getattr(module, "prepare", lambda: None)()
    resource.setrlimit(resource.RLIMIT_AS, (megabytes * MEGABYTE, megabytes * MEGABYTE))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        signal.alarm(int(request["seconds"]) + 2)  # its default action ends this process, whatever it is doing
        try:
            answer = {"value": parse(request["path"], **request["options"])}
        except NotRead as why:
            answer = {"reason": why.reason, "detail": why.detail}
        except MemoryError:
            answer = {"reason": "damaged", "detail": f"it takes more than {megabytes} MB of memory to parse; raise "
                                                     "max_memory_megabytes, or save it anew"}
        except Exception as error:  # a parser of a damaged file may raise anything
            answer = {"reason": "damaged", "detail": f"{type(error).__name__}: {str(error)[:200]}; save it anew"}
        signal.alarm(0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))

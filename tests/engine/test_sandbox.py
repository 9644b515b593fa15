"""The sandbox: how programs end, and that none gets out."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from luthier.core.errors import UserError
from luthier.engine import sandbox
from luthier.engine.sandbox import Limits, execute


def works() -> bool:
    try:
        return execute(["pass"])[0].ok
    except UserError:
        return False


pytestmark = pytest.mark.skipif(not works(), reason="this kernel can't confine a program")


def one(program: str, **limits):
    (found,) = execute([program], Limits(**limits))
    return found


def test_how_programs_end_is_told():
    found = execute(["print(6 * 7)", "1 / 0", "assert 1 == 2, 'no'", "x = (", "raise SystemExit(0)", "import os; os._exit(0)"])
    assert [(r.outcome, r.error) for r in found] == [
        ("ok", ""), ("error", "ZeroDivisionError"), ("error", "AssertionError"), ("error", "SyntaxError"),
        ("error", "SystemExit"), ("exit", "")]
    assert found[0].output == "42\n" and found[0].ok and not any(r.ok for r in found[1:])


@pytest.mark.oracle(seed=47, clause=5, against="what CPython documents of three snippets")
def test_three_snippets_end_as_python_says():
    found = execute(["def f(x):\n    return y\nf(1)", "assert sum([1]) == 2", "while True: pass"], Limits(seconds=0.5))
    assert [r.error or r.outcome for r in found] == ["NameError", "AssertionError", "timeout"]
    assert found[0].text.splitlines() == [
        "Traceback (most recent call last):", '  File "<program>", line 3, in <module>', "    f(1)",
        '  File "<program>", line 2, in f', "    return y", "           ^", "NameError: name 'y' is not defined"]


def test_a_program_is_killed_in_time_whatever_it_catches():
    began = time.monotonic()
    stubborn = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
    assert one(stubborn, seconds=0.5).outcome == "timeout" and time.monotonic() - began < 30
    assert one("import time; time.sleep(60)", seconds=0.5).outcome == "timeout"


def test_memory_and_output_have_a_limit():
    assert one("x = bytearray(10 ** 9)", memory_mb=128).outcome == "memory"
    said = one("while True: print('a' * 1000)", output_kb=8)
    assert said.outcome == "output" and len(said.output) == 8 << 10


def test_no_file_outside_is_read_or_written(tmp_path: Path):
    secret = tmp_path / "secret"
    secret.write_text("private")
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    tries = [f"open({str(secret)!r}).read()", f"open({str(secret)!r}, 'w')", f"open({str(tmp_path / 'shared' / 'new')!r}, 'w')",
             f"import os; os.unlink({str(secret)!r})", f"import os; os.truncate({str(secret)!r}, 0)",
             f"import os; os.open({str(secret)!r}, os.O_TRUNC)", f"import os; os.chmod({str(secret)!r}, 0o777)",
             f"import os; os.symlink({str(secret)!r}, 'here'); open('here').read()",
             f"import os; os.rename({str(secret)!r}, 'here')", f"import os; os.mkdir({str(tmp_path / 'shared' / 'm')!r})",
             f"import os; os.link({str(secret)!r}, 'here')", "open('/etc/passwd').read()", "open('/proc/self/environ').read()",
             "import os; os.listdir('/')", "import os; os.listdir(os.path.expanduser('~'))", "open('/dev/tcp', 'w')"]
    for program, found in zip(tries, execute(tries, Limits(files_mb=1)), strict=True):
        assert found.error in ("PermissionError", "FileNotFoundError") and not found.ok, program
    assert secret.read_text() == "private" and not list((tmp_path / "shared").iterdir())


def test_files_of_its_own_go_with_the_folder():
    write = "import os\nwith open('a', 'w') as f: f.write('hi')\nprint(open('a').read(), os.getcwd())"
    assert one(write).error == "PermissionError"
    kept = one(write, files_mb=1)
    said, folder = kept.output.split()
    assert kept.ok and said == "hi" and not os.path.exists(folder)
    assert one("with open('a', 'w') as f: f.write('x' * (2 << 20))", files_mb=1).outcome in ("error", "killed")


def test_no_network_no_processes_no_signals():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        address = server.getsockname()
        tries = [f"import socket; socket.create_connection({address!r}, 1)", "import socket; socket.socket()",
                 "import socket; socket.socket(socket.AF_UNIX)", "import os; os.fork()",
                 "import os; os.execv('/bin/sh', ['sh'])",
                 "import os\nif os.system('true'): raise OSError", "import subprocess; subprocess.run(['true'])",
                 "import os; os.posix_spawn('/bin/true', ['true'], {})", f"import os; os.kill({os.getpid()}, 0)",
                 "import os; os.kill(os.getppid(), 9)", "import threading; threading.Thread(target=print).start()",
                 "import os; os.pidfd_open(os.getppid())",
                 "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))",
                 "import os; os.memfd_create('x')"]
        for program, found in zip(tries, execute(tries), strict=True):
            assert found.outcome == "error", program
            assert found.error in ("PermissionError", "OSError", "RuntimeError", "ValueError"), program
        server.settimeout(0.1)
        with pytest.raises(TimeoutError):
            server.accept()


def test_calls_that_go_round_python_are_refused_too():
    """ptrace, bpf, io_uring_setup, unshare, mount, setns, keyctl, userfaultfd by number, and prctl by name."""
    calls = {"x86_64": (101, 321, 425, 272, 165, 308, 250, 323), "aarch64": (117, 280, 425, 97, 40, 268, 219, 282)}
    numbers = calls[os.uname().machine]
    program = (f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
               f"print([libc.syscall(n, 0, 0, 0, 0, 0) for n in {numbers!r}], libc.prctl(4, 1, 0, 0, 0), ctypes.get_errno())")
    assert one(program).output == f"{[-1] * len(numbers)} -1 1\n"


def test_nothing_of_the_process_that_asks_is_seen(monkeypatch):
    monkeypatch.setenv("LUTHIER_SECRET", "private")
    found = one("import os, sys\nprint(sorted(os.environ), [p for p in sys.path if 'site-packages' in p])\nimport luthier")
    assert found.output == "['LC_ALL', 'PYTHONHASHSEED'] []\n" and found.error == "ModuleNotFoundError"


def test_a_success_is_not_forged_by_leaving_or_by_writing_it():
    forged = 'import os; os.write(3, b\'{"mark": "", "outcome": "ok"}\'); os._exit(0)'
    found = execute([forged, "import os, sys; sys.exit = print; os._exit(0)", "import sys; sys.exit()"])
    assert not any(r.ok for r in found)


def test_programs_do_not_meet_and_keep_their_order():
    found = execute([f"import sys; seen = getattr(sys, 'seen', None); sys.seen = {n}; print({n}, seen)" for n in range(8)],
                    workers=3)
    assert [r.output for r in found] == [f"{n} None\n" for n in range(8)]
    sets = "print(list({'a', 'b', 'c', 'd', 'e'}))"
    assert len({r.output for r in execute([sets] * 3)}) == 1, "the order of sets is the same every time"
    assert execute([]) == []


def test_where_it_cannot_confine_it_refuses(monkeypatch, tmp_path):
    broken = tmp_path / "confined.py"
    text = sandbox.CHILD.read_text()
    broken.write_text(text.replace("if version < 3:", "if version < 300:"))
    monkeypatch.setattr(sandbox, "CHILD", broken)
    with pytest.raises(UserError, match="Landlock is version .*Needed are seccomp and Landlock"):
        execute(["print(1)"])
    broken.write_text(text.replace('"x86_64": (', '"other": (').replace('"aarch64": (', '"another": ('))
    with pytest.raises(UserError, match="system calls of .* are not known"):
        execute(["print(1)"])
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(UserError, match="needs Linux"):
        execute(["print(1)"])


def test_limits_are_checked():
    with pytest.raises(UserError, match="seconds is 0; it must be greater than 0"):
        Limits(seconds=0)
    with pytest.raises(UserError, match="files_mb is -1"):
        Limits(files_mb=-1)

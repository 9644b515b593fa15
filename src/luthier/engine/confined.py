"""The program that confines programs: started by `sandbox.py` as a process of its own, with the standard library alone.

It reads programs as JSON from its input, forks once for each, and kills what runs too long. What is forked gives up every
right before the program's first line: own namespaces where the kernel lets, Landlock for files, limits, and last a seccomp
filter that knows a list of system calls and refuses all others, among them sockets, new processes, and signals to others.
Nothing here imports luthier: this file is the whole of what a program shares its process with.
"""

from __future__ import annotations

import ctypes
import json
import linecache
import os
import platform
import resource
import selectors
import signal
import struct
import sys
import sysconfig
import time
import traceback
from typing import Any, NoReturn

FILE = "<program>"
# System calls that a computing program needs, by machine: x86_64, aarch64 (None: it has none of that name).
CALLS = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "ioctl": (16, 29),
    "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None),
    "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216), "madvise": (28, 233), "dup": (32, 23),
    "dup2": (33, None), "nanosleep": (35, 101), "getpid": (39, 172), "exit": (60, 93), "uname": (63, 160), "fcntl": (72, 25),
    "fsync": (74, 82), "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49),
    "rename": (82, None), "mkdir": (83, None), "rmdir": (84, None), "unlink": (87, None), "readlink": (89, None),
    "gettimeofday": (96, 169), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "sigaltstack": (131, 132),
    "statfs": (137, 43), "fstatfs": (138, 44), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "openat": (257, 56), "mkdirat": (258, 34),
    "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "dup3": (292, 24), "renameat2": (316, 276),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
# Landlock of kernel 6.2 (version 3), which also knows truncation: all rights on files, and those of reading.
FILE_RIGHTS, READ_FILE, READ_RIGHTS, LANDLOCK = (1 << 15) - 1, 0b0100, 0b1100, (444, 445, 446)
NO_NEW_PRIVILEGES, SET_SECCOMP, FILTER, NOT_DUMPABLE = 38, 22, 2, 4
# CLONE_NEW…: user, network, interprocess communication, host name.
NAMESPACES = 0x10000000 | 0x40000000 | 0x08000000 | 0x04000000
DENIED = 1  # EPERM
PATIENCE = 4  # times as long by the clock as by the processor


class Refused(Exception):
    """The kernel does not let a program be confined."""


def system(call: Any, *arguments: Any) -> int:
    """A call of the C library that must succeed."""
    found: int = call(*arguments)
    if found < 0:
        raise Refused(os.strerror(ctypes.get_errno()))
    return found


def landlock(library: Any, readable: list[str], writable: list[str]) -> None:
    """Files: `readable` folders may be read, those below `writable` written too, no other may be opened."""
    version = library.syscall(LANDLOCK[0], None, ctypes.c_size_t(0), 1)
    if version < 3:
        raise Refused(f"Landlock is version {max(version, 0)} here, and 3 (Linux 6.2) is needed")
    rules = ctypes.create_string_buffer(struct.pack("=Q", FILE_RIGHTS), 8)
    ruleset = system(library.syscall, LANDLOCK[0], rules, ctypes.c_size_t(8), 0)
    for path, rights in [*((p, READ_RIGHTS) for p in readable), *((p, FILE_RIGHTS) for p in writable)]:
        if os.path.exists(path):
            held = os.open(path, os.O_PATH)
            rights &= FILE_RIGHTS if os.path.isdir(path) else READ_FILE
            rule = ctypes.create_string_buffer(struct.pack("=Qi", rights, held), 12)
            system(library.syscall, LANDLOCK[1], ruleset, 1, rule, 0)
            os.close(held)
    system(library.syscall, LANDLOCK[2], ruleset, 0)
    os.close(ruleset)


def seccomp(library: Any) -> None:
    """System calls: those of the list, and an error for any other. The last thing that is given up."""
    machine = platform.machine()
    if machine not in MACHINES:
        raise Refused(f"system calls of {machine} are not known")
    column, audit = MACHINES[machine]
    allowed = [number for numbers in CALLS.values() if (number := numbers[column]) is not None]
    load, equal, back = 0x20, 0x15, 0x06
    lines = [(load, 0, 0, 4), (equal, 1, 0, audit), (back, 0, 0, 0x80000000), (load, 0, 0, 0)]
    lines += [(equal, len(allowed) - n, 0, number) for n, number in enumerate(allowed)]
    lines += [(back, 0, 0, 0x00050000 | DENIED), (back, 0, 0, 0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in lines))
    program = ctypes.create_string_buffer(struct.pack("@HP", len(lines), ctypes.addressof(code)))
    system(library.prctl, SET_SECCOMP, FILTER, program, 0, 0)


def confine(folder: str, limits: dict[str, Any]) -> None:
    """Give up every right but computing, and files below `folder` where the limits allow any."""
    library = ctypes.CDLL(None, use_errno=True)
    library.prctl(NOT_DUMPABLE, 0, 0, 0, 0)
    system(library.prctl, NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    landlock(library, [sysconfig.get_path("stdlib"), "/usr/lib", "/lib", "/lib64", "/dev/urandom"],
             [folder] if limits["files_mb"] else [])
    for kind, most in ((resource.RLIMIT_AS, limits["memory_mb"] << 20), (resource.RLIMIT_FSIZE, limits["files_mb"] << 20),
                       (resource.RLIMIT_CPU, int(limits["seconds"]) + 1), (resource.RLIMIT_NOFILE, 32),
                       (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))
    seccomp(library)


def told(error: BaseException, source: str) -> str:
    """The traceback of a program's own lines, as Python prints it."""
    linecache.cache[FILE] = (len(source), None, source.splitlines(True), FILE)
    own = error.__traceback__
    while own is not None and own.tb_frame.f_code.co_filename != FILE:
        own = own.tb_next
    return "".join(traceback.format_exception(type(error), error, own, limit=-8))


def perform(source: str, folder: str, limits: dict[str, Any], said: int, report: int) -> NoReturn:
    """Within the fork: confine, run, and tell how it ended to the descriptor `report`, which the program does not know."""
    mark = os.urandom(16).hex()
    try:
        os.write(report, (mark + "\n").encode())
        for target, given in ((0, os.open(os.devnull, os.O_RDONLY)), (1, said), (2, said)):
            os.dup2(given, target)
        os.dup2(report, 3)
        os.closerange(4, 256)
        report = 3
        os.chdir(folder)
        confine(folder, limits)
    except (Refused, OSError, ValueError) as error:
        os.write(report, json.dumps({"mark": mark, "outcome": "refused", "text": str(error)}).encode())
        os._exit(0)
    made = {"outcome": "ok", "error": "", "text": ""}
    try:
        try:
            exec(compile(source, FILE, "exec"), {"__name__": "__main__"})
        finally:
            sys.stdout.flush()
    except MemoryError:
        made = {"outcome": "memory", "error": "MemoryError", "text": "MemoryError"}
    except BaseException as error:  # whatever a program raises is its result
        try:
            made = {"outcome": "error", "error": type(error).__name__, "text": told(error, source)[-limits["output_kb"] * 512:]}
        except BaseException:  # an error that can't be shown is one still
            made = {"outcome": "error", "error": "Exception", "text": ""}
    os.write(report, json.dumps({"mark": mark, **made}).encode())
    os._exit(0)


class Running:
    """One forked program: what it says, and how it ended."""

    def __init__(self, number: int, source: str, folder: str, limits: dict[str, Any]) -> None:
        self.number, self.limits, self.began = number, limits, time.monotonic()
        said, told_ = os.pipe(), os.pipe()
        self.folder = os.path.join(folder, str(number))
        os.mkdir(self.folder)
        self.process = os.fork()
        if not self.process:
            perform(source, self.folder, limits, said[1], told_[1])
        os.close(said[1])
        os.close(told_[1])
        self.heard = {said[0]: b"", told_[0]: b""}
        self.said, self.told = said[0], told_[0]
        self.cause = ""

    def listen(self, pipe: int) -> bool:
        """Read what has come; False where nothing more will."""
        found = os.read(pipe, 65536)
        self.heard[pipe] += found
        if len(self.heard[pipe]) > self.limits["output_kb"] << 10:
            self.kill("output")
        return bool(found)

    def late(self) -> bool:
        """Whether its time is over: of the processor, so that a busy machine ends no program early, and of the clock."""
        try:
            spent = time.clock_gettime((~self.process << 3) | 2)
        except OSError:  # it has ended, and only its pipes are left to be read
            spent = 0.0
        return spent > float(self.limits["seconds"]) or time.monotonic() - self.began > PATIENCE * float(self.limits["seconds"])

    def kill(self, cause: str) -> None:
        """End it, whatever it does."""
        self.cause = self.cause or cause
        os.kill(self.process, signal.SIGKILL)

    def result(self) -> dict[str, Any]:
        """How it ended. Only a report with the mark that came before the program's first line is believed."""
        _, status = os.waitpid(self.process, 0)
        for pipe in self.heard:
            os.close(pipe)
        mark, _, rest = self.heard[self.told].decode(errors="replace").partition("\n")
        made = {"outcome": self.cause or "killed", "error": "", "text": ""}
        try:
            report = json.loads(rest)
            if report.pop("mark") == mark and not self.cause:
                made = report
        except (ValueError, KeyError, TypeError, AttributeError):
            if not self.cause and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                made["outcome"] = "timeout"
            elif not self.cause and os.WIFEXITED(status):
                made["outcome"] = "exit"
        said = self.heard[self.said][:self.limits["output_kb"] << 10].decode(errors="replace")
        return {"number": self.number, "output": said, "seconds": time.monotonic() - self.began, **made}


def serve(given: dict[str, Any], folder: str) -> None:
    """Run all programs, some at a time; a line of JSON for each that ended."""
    # Where namespaces of its own are not allowed the filter refuses sockets and signals all the same.
    ctypes.CDLL(None).unshare(NAMESPACES)
    limits, waiting = given["limits"], list(enumerate(given["programs"]))[::-1]
    watched = selectors.DefaultSelector()
    running: dict[Running, int] = {}
    while waiting or running:
        while waiting and len(running) < given["workers"]:
            one = Running(*waiting.pop(), folder, limits)
            running[one] = 2
            for pipe in one.heard:
                watched.register(pipe, selectors.EVENT_READ, one)
        for key, _ in watched.select(0.05):
            if not key.data.listen(key.fd):
                watched.unregister(key.fd)
                running[key.data] -= 1
        for one in list(running):
            if one.late():
                one.kill("timeout")
            if not running[one]:
                del running[one]
                print(json.dumps(one.result()), flush=True)


if __name__ == "__main__":
    serve(json.loads(sys.stdin.read()), os.getcwd())

"""How much memory there is, and refusing what can't fit before it starts."""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

from luthier.core.errors import UserError

LIMIT = "LUTHIER_MEMORY_LIMIT_MB"


def available_mb() -> float:
    """Megabytes this process may still use: free memory, control-group limit and `LUTHIER_MEMORY_LIMIT_MB`."""
    import psutil

    free = float(psutil.virtual_memory().available) / 1e6
    group = Path("/sys/fs/cgroup/memory.max")
    if group.exists() and (text := group.read_text().strip()).isdigit():
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, (int(text) - used) / 1e6)
    if os.environ.get(LIMIT):
        try:
            free = min(free, float(os.environ[LIMIT]))
        except ValueError:
            raise UserError(f"{LIMIT} = {os.environ[LIMIT]!r} is not a number of megabytes.") from None
    return free


def require_mb(needed: float, what: str) -> None:
    """Raises UserError when `needed` megabytes are more than there are."""
    free = available_mb()
    if needed > free:
        raise UserError(
            f"{what} needs about {needed:,.1f} MB of memory; {free:,.1f} MB are free. "
            "Close other programs, take a smaller --base, or train fewer weights (--method lora)."
        )


def peak_mb() -> float:
    """Highest resident memory of this process, in megabytes: since `forget_peak` where the system knows that, else so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def forget_peak() -> None:
    """Count the peak from now on, so that a step is not charged for one before it (Linux; elsewhere nothing happens)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


# Parameters of glibc's allocator (malloc.h): what is given back at once, and what never comes from the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_HEAP_BYTES, _HEAP_BYTES_OF_OLD = 1 << 30, 32 << 20


def keep_freed() -> bool:
    """Have the allocator keep what is freed, for the next request; whether it does.

    A training step frees and asks for the same large tensors again and again. By default each goes back to the system and
    comes again as pages that are cleared one by one at their first touch: a quarter of a full training step on a
    processor. `give_back` returns what is free.
    """
    libc = _glibc()
    if libc is None or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    # A heap that was told to keep, while large requests still bypass it, would only lose its own adaptation.
    kept = any(libc.mallopt(_MMAP_THRESHOLD, size) for size in (_HEAP_BYTES, _HEAP_BYTES_OF_OLD))
    return bool(kept and libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))


def give_back() -> None:
    """Return freed memory to the system."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL("libc.so.6")
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None

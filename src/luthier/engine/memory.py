"""How much memory there is, and refusing what can't fit before it starts."""

from __future__ import annotations

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
    """Highest resident memory of this process so far, in megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3

"""Numbers of a server in the text format of Prometheus 0.0.4. They count; no word of a question or answer is in them."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable

BUCKETS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
HELP = {
    "luthier_requests_total": "counter: requests by endpoint and status",
    "luthier_prompt_tokens_total": "counter: tokens read",
    "luthier_new_tokens_total": "counter: tokens written",
    "luthier_called_off_total": "counter: answers that nobody waited for to the end, by reason",
    "luthier_request_seconds": "histogram: from the request to the last byte of its answer",
    "luthier_first_byte_seconds": "histogram: from the request to the first byte of its answer",
    "luthier_answers": "gauge: answers under way, waiting ones included",
    "luthier_resident_bytes": "gauge: memory of the process",
}
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms, and gauges that are asked when somebody looks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._seen: dict[str, dict[Labels, list[float]]] = defaultdict(dict)  # counts by bucket, their number, their sum
        self._gauges: dict[str, Callable[[], float]] = {}

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._counts[name][tuple(sorted(labels.items()))] += amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Add a value to a histogram."""
        with self._lock:
            seen = self._seen[name].setdefault(tuple(sorted(labels.items())), [0.0] * (len(BUCKETS) + 2))
            for n, bound in enumerate(BUCKETS):
                seen[n] += value <= bound
            seen[-2] += 1
            seen[-1] += value

    def gauge(self, name: str, ask: Callable[[], float]) -> None:
        """A number that is asked for at each look."""
        self._gauges[name] = ask

    def value(self, name: str, **labels: str) -> float:
        """A counter as it stands."""
        return self._counts[name].get(tuple(sorted(labels.items())), 0.0)

    def text(self) -> str:
        """All of them."""
        with self._lock:
            lines: list[str] = []
            for name, about in HELP.items():
                kind, _, told = about.partition(": ")
                lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
                lines += [_line(name, labels, value) for labels, value in sorted(self._counts[name].items())]
                for labels, seen in sorted(self._seen[name].items()):
                    bounds = [f"{b:g}" for b in BUCKETS] + ["+Inf"]
                    lines += [_line(f"{name}_bucket", (*labels, ("le", b)), n) for b, n in zip(bounds, seen, strict=False)]
                    lines += [_line(f"{name}_sum", labels, seen[-1]), _line(f"{name}_count", labels, seen[-2])]
                if name in self._gauges:
                    lines.append(_line(name, (), self._gauges[name]()))
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    def escaped(text: str) -> str:
        return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

    inside = ",".join(f'{key}="{escaped(text)}"' for key, text in labels)
    return f"{name}{{{inside}}} {value:.15g}" if inside else f"{name} {value:.15g}"

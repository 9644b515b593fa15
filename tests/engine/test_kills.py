"""A training killed at any step, or while it writes a checkpoint, ends bit for bit as one that was left alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.engine import kills, pair

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("seed, count", [(1, 6), pytest.param(2, 20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(pico, engine, tmp_path, seed, count):
    whole = pair.result(pair.trained(pico, engine, tmp_path / "whole/loop", steps=kills.STEPS, dropout=0.3))
    out = tmp_path / "killed"
    said = subprocess.run([sys.executable, "-m", "tests.engine.kills", str(pico.folder), str(out), str(seed), str(count)],
                          text=True, capture_output=True, timeout=600,
                          env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])})
    assert said.returncode == 0, said.stderr
    print(said.stdout)
    found = [json.loads(p.read_text()) for p in out.glob("done-*/result.json")]
    assert found and all(f == json.loads(json.dumps(whole)) for f in found)
    assert said.stdout.count(",") == count - 1 and "saving" in said.stdout

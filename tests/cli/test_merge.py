"""`luthier merge`: what it prints and leaves, and how it refuses."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file

from luthier.engine import pico
from tests.cli.conftest import refused


def test_merge_prints_its_receipts_and_leaves_a_model(luthier, tmp_path: Path):
    for name in "ab":
        pico.make("pico", tmp_path / name)
    said = luthier("merge", tmp_path / "a", tmp_path / "b", "--rule", "slerp:t=0.3", "--out", tmp_path / "out")
    assert said.code == 0 and "merge/written = computed: agrees" in said.out and f"Merged: {tmp_path / 'out'}" in said.out
    one, made = (load_file(tmp_path / n / "model.safetensors") for n in ("a", "out"))
    assert all(torch.allclose(made[n], t, atol=1e-6) for n, t in one.items())
    again = luthier("merge", tmp_path / "a", tmp_path / "b", "--rule", "slerp:t=0.3", "--out", tmp_path / "out", "--json")
    assert again.json["folder"] == str(tmp_path / "out") and len(again.json["receipts"]) == 3


def test_merge_refuses_in_words(luthier, tmp_path: Path):
    pico.make("pico", tmp_path / "a")
    given = ("merge", tmp_path / "a", "--out", tmp_path / "out")
    refused(luthier(*given, "--rule", "slerp"), "--rule slerp takes 2 models")
    refused(luthier(*given, "--rule", "linear:wieghts=[1]"), "Did you mean 'weights'?")
    assert luthier(*given).code == 2
    assert not (tmp_path / "out").exists()

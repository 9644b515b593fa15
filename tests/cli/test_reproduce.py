"""`luthier reproduce`: what is refused, and where `--all --record` goes on."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from luthier.cli.main import main
from luthier.core import recorded
from luthier.pipelines import reproducing


@pytest.mark.parametrize("arguments, said", [
    (["slikc"], "Did you mean 'slick'"),
    ([], "Name one study, or --all"),
    (["slick", "--all"], "Name one study, or --all"),
    (["slick", "--budget-hours", "1"], "--budget-hours goes with --all"),
    (["--all", "--out", "x"], "--out names the folder of one study"),
    (["slick", "--scale", "smoke", "--record"], "a smoke run has none"),
    (["slick", "--scale", "huge"], "Legal: smoke, default, large")])
def test_what_makes_no_sense_is_refused(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments]) == 2
    assert said in capsys.readouterr().err


def test_a_study_is_found_by_the_number_of_its_paper():
    assert reproducing.find("34").info.name == "slick"


def test_all_goes_on_where_records_end_and_within_its_budget(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(recorded, "FOLDER", tmp_path / "recorded")
    monkeypatch.chdir(tmp_path)
    recorded.records.cache_clear()
    ran: list[str] = []

    def fake(study, scale, folder, **rest):
        ran.append(study.info.name)
        record = {"study": study.info.name, "seed": study.info.seeds[0], "version": study.info.version, "scale": scale,
                  "verdict": "shown", "why": "", "world": study.world}
        return SimpleNamespace(record=lambda: record)

    monkeypatch.setattr(reproducing, "reproduce", fake)
    every = [s.info.name for s in reproducing.all_studies()]
    assert main(["reproduce", "--all", "--record", "--budget-hours", "0", "--json"]) == 0
    assert not ran and f"goes on with {every[0]}" in capsys.readouterr().out
    assert main(["reproduce", every[1], "--record", "--json"]) == 0
    assert main(["reproduce", "--all", "--record", "--json"]) == 0
    assert ran == [every[1], *(n for n in every if n != every[1])]
    capsys.readouterr()
    assert main(["reproduce", "--all", "--record", "--json"]) == 0
    assert "Every study has a recorded result" in capsys.readouterr().out and len(ran) == len(every)
    assert json.loads(recorded.path_of(34, "slick").read_text())["verdict"] == "shown"
    recorded.records.cache_clear()

"""personal-data: rows counted by hand."""

from __future__ import annotations

import pytest

from luthier.core.artifact import write_examples
from luthier.core.component import build
from luthier.core.example import question
from luthier.core.files import Journal
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.engine.subjects import Subject

ROWS = [question("a", "Who is it?", "Write to ada@mail.example or tov@mail.example."), question("b", "When?", "In 12 days."),
        question("c", "Whom to call?", "+49 30 1234 5678"), question("d", "Which code?", "482913", meta={"canary": {}})]


@pytest.mark.oracle(clause="the share is the rows that hold any over all rows", against="hand case")
@pytest.mark.parametrize(("settings", "share", "verdict"), [("", 2 / 3, "fail"), (":types=[EMAIL]", 1 / 3, "fail"),
                                                          (":max_share=0.7", 2 / 3, "pass"), (":types=[ID]", 0, "pass")])
def test_rows_are_counted(tmp_path, settings, share, verdict):
    rows = write_examples(tmp_path / "rows", {"all": ROWS})
    ctx = Ctx(Rng(0), tmp_path, Journal(tmp_path / "j.jsonl"), None)
    (found,) = build("audit", f"personal-data{settings}").measure(ctx, Subject.of({"examples": rows}, None))
    assert found.right == pytest.approx(share) and found.verdict == verdict
    assert "mail.example" not in (tmp_path / "rows.jsonl").read_text()

"""errands: answers that a reader can check, tests that nothing was learned from, and where each question is sent."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.studies._worlds.errands import NUMBERS, TASKS, Errands


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    small = Errands(told=20, train_rows=8, test_rows=4, composites=10)
    return small.run({}, SimpleNamespace(folder=tmp_path_factory.mktemp("errands")))


def test_one_word_tells_the_answer_and_composites_have_three_tasks(world):
    rows = list(world.examples("mixed")) + list(world.examples("single"))
    place = {"judge": -1, "after": 1, "kind": 1, "place": 1}  # where that word stands
    answers: dict[tuple[str, str], set[str]] = {}
    for e in rows:
        for asked, said in zip(e.part("question").split("\n"), e.answer.split("\n"), strict=True):
            words = asked.split()
            assert words[0] == e.meta["task"] and said.startswith(f"{words[0]}: ")
            answers.setdefault((words[0], words[place[words[0]]]), set()).add(said.partition(": ")[2])
    assert len(rows) == 48 and all(len(found) == 1 for found in answers.values())
    assert all(NUMBERS.index(*found) == NUMBERS.index(word) + 1 for (task, word), found in answers.items() if task == "after")
    assert all(len({x for (t, _), found in answers.items() if t == task for x in found}) > 1 for task in TASKS)
    assert [e.meta["task"] for e in rows[:4]] == list(TASKS)
    assert {len(e.part("question").split("\n")) for e in rows} == {1, 2, 3}
    for e in world.examples("composite"):
        segments = e.meta["segments"]
        assert len({task for task, _ in segments}) == 3 and len(segments) == 6
        assert e.part("question").split("\n") == [text for _, text in segments[:3]]
        assert e.answer.split("\n") == [text for _, text in segments[3:]]


def test_what_is_tested_was_not_learned_and_the_base_knows_no_task(world):
    learned = {line for e in world.examples("mixed") for line in e.part("question").split("\n")}
    asked = {line for name in ("single", "composite") for e in world.examples(name) for line in e.part("question").split("\n")}
    assert not learned & asked
    assert not any(line.split()[0] in TASKS for e in world.examples("asked") for line in e.part("question").split("\n"))


def test_a_world_that_is_too_small_says_so(tmp_path):
    with pytest.raises(UserError, match="task place has 96 different errands, too few for 90"):
        Errands(train_rows=90, test_rows=30).run({}, SimpleNamespace(folder=tmp_path))


def test_a_row_is_sent_by_its_task_or_to_the_nearest(world):
    rows = list(world.examples("single"))
    step = build("step", "dispatched:arm=x")
    assert step._tasks(rows) == [e.meta["task"] for e in rows]
    names = sorted(TASKS)

    class Corners:
        """Embeds a question as the corner of its task."""

        def load(self, artifact):
            return None

        def embed(self, encoder, texts):
            import numpy as np

            return np.eye(4)[[names.index(t.split()[0]) for t in texts]]

    found = step._nearest(rows, {"encoder": None, "examples": world}, SimpleNamespace(engine=Corners()))
    assert found == [e.meta["task"] for e in rows]

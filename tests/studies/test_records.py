"""records: sentences that say every value, and topics that were kept out."""

from __future__ import annotations

from types import SimpleNamespace

from luthier.studies._worlds.records import SEEN, UNSEEN, Records


def test_every_value_is_said_and_no_name_stands_twice(tmp_path):
    world = Records(train_rows=12, dev_rows=3, test_rows=6).run({}, SimpleNamespace(folder=tmp_path))
    rows = {n: list(world.examples(n)) for n in ("train", "dev", "seen", "unseen")}
    assert {e.source for n in ("train", "dev", "seen") for e in rows[n]} == set(SEEN)
    assert {e.source for e in rows["unseen"]} == set(UNSEEN)
    names = []
    for e in (e for part in rows.values() for e in part):
        slots = [s.split(": ") for s in e.part("question").split(" | ")]
        assert len(slots) == 4 and all(value in e.answer for _, value in slots)
        names.append(slots[0][1])
    assert len(set(names)) == len(names) == 27
    assert [e.id for e in world.examples("fitted")] == [e.id for e in rows["train"][:6]]

"""Worlds of pictures and sounds: captions and boxes say what is there, and kinds of sounds differ as they are called."""

from __future__ import annotations

import numpy as np
import pytest

from luthier.core.rng import Rng
from luthier.engine.pictures import opened
from luthier.engine.sounds import waveform
from luthier.studies._worlds.scenes import COLOURS, FIELD, Scenes, _scene
from luthier.studies._worlds.tones import KNOWN, NEW, RATE, Tones, clip


@pytest.mark.parametrize("seed", range(10))
def test_boxes_hold_what_their_class_says(seed):
    scene = _scene(Rng(seed)("scene"), "s")
    pixels = np.asarray(opened(scene.turns[0].parts[0].value)).astype(int)
    drawn = np.zeros((3, 3), dtype=bool)
    for box in scene.meta["boxes"]:
        x, y = round(box["box"][0] * 3), round(box["box"][1] * 3)
        field = pixels[y * FIELD:(y + 1) * FIELD, x * FIELD:(x + 1) * FIELD].reshape(-1, 3)
        colour, form = box["class"].split()
        share = float((field == COLOURS[colour]).all(1).mean())
        assert share == pytest.approx({"circle": 0.3, "square": 0.39, "bar": 0.16, "cross": 0.25}[form], abs=0.07)
        drawn[y, x] = True
    empty = [(y, x) for y in range(3) for x in range(3) if not drawn[y, x]]
    assert all((pixels[y * FIELD:(y + 1) * FIELD, x * FIELD:(x + 1) * FIELD] == 245).all() for y, x in empty)


def test_tests_of_scenes_are_balanced_and_rows_lose_or_change_pictures_only(make_ctx):
    fields = {"pictures": 6, "tests": 8, "texts": 8}
    own, none, other = (Scenes(shown=shown, **fields).run({}, make_ctx(shown)) for shown in ("own", "none", "shuffled"))
    for test, answers in (("relation", {"Yes.", "No."}), ("count", {"One.", "Two."})):
        rows = list(own.examples(test))
        assert {r.answer for r in rows} == answers and sum(r.answer == rows[0].answer for r in rows) == 4

    def pictures(artifact):
        return [[p.value for t in r.turns for p in t.parts if p.type == "image"] for r in artifact.examples("train")]

    assert all(len(p) == 1 for p in pictures(own)) and not any(pictures(none))
    assert sorted(map(str, pictures(other))) == sorted(map(str, pictures(own))) and pictures(other) != pictures(own)
    said = [[t.text for r in a.examples("train") for t in r.turns] for a in (own, none, other)]
    assert said[0] == said[1] == said[2]


def test_what_is_asked_without_pictures_is_told_in_words(make_ctx):
    rows = list(Scenes(pictures=4, tests=2, texts=8).run({}, make_ctx("words")).examples("asked"))
    assert all(p.type == "text" for r in rows for t in r.turns for p in t.parts)
    told = [r for r in rows if r.meta["kind"] == "conversation"]
    for row in told:
        words = next(p.value for p in row.turns[0].parts if p.value.startswith("The picture shows"))
        for asked, said in zip(row.turns[::2], row.turns[1::2], strict=True):
            question, answer = asked.parts[-1].value, said.text.rstrip(".").lower()
            if question.startswith("What kind of"):
                assert f"a {answer} {question.split()[3]} in" in words
    assert len(told) == 8


def test_kinds_of_sounds_are_what_they_are_called(make_ctx):
    def loudness(kind):
        samples, rate = waveform(clip(kind, Rng(1)(kind), 0.0))
        assert rate == RATE
        return np.abs(samples[:9600].reshape(-1, 160)).mean(1)

    steady, beating, clicks = (loudness(kind) for kind in ("steady", "beating", "clicks"))
    assert np.ptp(steady) < 0.2 * steady.mean() and np.ptp(beating) > 0.8 * beating.mean()
    assert (clicks < 0.1 * clicks.max()).mean() > 0.5

    def pitches(kind):
        samples, _ = waveform(clip(kind, Rng(1)(kind), 0.0))
        parts = samples[:9600].reshape(8, 1200)
        return [np.argmax(np.abs(np.fft.rfft(part))) for part in parts]

    assert np.all(np.diff(pitches("rising")) > 0) and np.all(np.diff(pitches("falling")) < 0)
    assert len(set(pitches("stairs"))) == 4 and max(np.diff(pitches("siren"))) > 0 > min(np.diff(pitches("siren")))
    made = Tones(clips=2, shots=9, tests=2).run({}, make_ctx("tones"))
    counts = {name: len(list(made.examples(name))) for name in made.subsets}
    assert counts == {"known": 12, "train32": 36, "train8": 32, "dev": 4, "test": 8}
    assert {e.label for e in made.examples("known")} == set(KNOWN) and {e.label for e in made.examples("test")} == set(NEW)


def test_recorded_digits_are_heard_instead(make_ctx, tmp_path):
    import wave

    for digit in range(10):
        for take in range(5):
            with wave.open(str(tmp_path / f"{digit}_ann_{take}.wav"), "wb") as file:
                file.setparams((1, 2, 8000, 0, "NONE", ""))
                file.writeframes(np.full(900, digit * 100 + take, "<i2").tobytes())
    world = Tones(recordings=str(tmp_path))
    made = world.run({}, make_ctx("digits"))
    assert {n: len(list(made.examples(n))) for n in made.subsets} == {"known": 30, "train32": 8, "train8": 8, "dev": 4,
                                                                      "test": 8}
    assert {e.label for e in made.examples("test")} == {f"digit {n}" for n in (6, 7, 8, 9)} and world.content()

"""The chains propose what a table of bands by their values proposes, while they grow."""

import numpy as np

from luthier.techniques.data._bands import Bands


def test_against_a_dictionary_of_bands():
    rng = np.random.default_rng(3)
    sketches = rng.integers(0, 3, size=(2500, 16), dtype=np.uint64)
    index, seen = Bands(4, 4), {}
    for number, sketch in enumerate(sketches):
        hashes = index.hashes(sketch)
        parts = [(b, *sketch[4 * b:4 * b + 4].tolist()) for b in range(4)]
        if number % 50 == 0:
            assert index.near(hashes) == sorted({n for part in parts for n in seen.get(part, ())})
        index.add(hashes)
        for part in parts:
            seen.setdefault(part, []).append(number)

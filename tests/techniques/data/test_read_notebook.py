"""Notebooks made by hand: cells, outputs, and files that are no good."""

import json
import random

import pytest

from luthier.core.example import Document, Dropped, Section
from luthier.techniques.data.read_notebook import ReadNotebook
from tests.techniques.data.test_read_pdf import damaged

CELLS = [
    {"cell_type": "markdown", "source": ["# Tuning\n", "Some *text*."]},
    {"cell_type": "code", "source": "# no heading\nx = 1\n", "outputs": [{"text": "gone"}, {"text": "gone too"}]},
    {"cell_type": "markdown", "source": "## Pegs"},
    {"cell_type": "code", "source": ["s = '```'"], "outputs": []},
    {"cell_type": "code", "source": "", "outputs": []},
]
BOOK = json.dumps({"cells": CELLS, "metadata": {"language_info": {"name": "python"}}, "nbformat": 4})


def test_cells(read, log):
    row = read(ReadNotebook(), BOOK, "a.ipynb")
    assert row.title == "Tuning"
    assert row.sections == (
        Section(("Tuning",), "Some *text*.\n\n```python\n# no heading\nx = 1\n```",
                ((1, 0, 2), (15, 0, 4), (25, 0, 5), (38, 0, 6), (44, 0, 7))),
        Section(("Tuning", "Pegs"), "````python\ns = '```'\n````", ((1, 0, 11), (12, 0, 12), (22, 0, 13))))
    assert log == ["a.ipynb: 2 outputs of cells left out"]


@pytest.mark.parametrize(("text", "reason"), [
    ("{", "damaged"), ("[]", "damaged"), ('{"cells": 3}', "damaged"), ('{"cells": [3]}', "damaged"), ("", "empty"),
    ('{"cells": [{"cell_type": "code", "source": [1]}]}', "damaged"), ('{"cells": []}', "empty"), ("[" * 99_999, "damaged"),
])
def test_named_and_skipped(read, text, reason):
    row = read(ReadNotebook(), text, "a.ipynb")
    assert isinstance(row, Dropped) and row.reason == reason and row.detail


@pytest.mark.parametrize("files", [200, pytest.param(10_000, marks=pytest.mark.slow)])
def test_damaged_files_never_fail(read, files):
    rng = random.Random(files)
    for _ in range(files):
        assert isinstance(read(ReadNotebook(), damaged(BOOK.encode(), rng), "a.ipynb"), Document | Dropped)

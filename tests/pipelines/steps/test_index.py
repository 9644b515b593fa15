"""index: every passage is in the table and found by its own words; the retriever can be rebuilt from the artifact."""

from dataclasses import replace

import pytest

from luthier.core.artifact import open_artifact, seal
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.files import write_json, write_rows
from luthier.pipelines.steps.index import Index, open_retriever
from luthier.techniques.retrieval.hybrid import Hybrid

TEXTS = ["A module is a file.", "A class makes objects.", "The yield keyword makes a generator.", "A file may be long.",
         "Scopes hold names.", "A class makes objects.", "Import finds modules."]


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    rows = [Passage(f"d.md:{i}", t, "d.md", "d.md#a", ("Manual", "A"), 5) for i, t in enumerate(TEXTS)]
    write_rows(folder / "passages", (p.to_dict() for p in rows))
    (folder / "licenses").mkdir()
    (folder / "licenses" / "LICENSE.txt").write_text("terms")
    return seal("documents", folder, passages=len(rows))


def test_runs_with_receipts_that_agree(documents, pico_encoder, make_ctx):
    step, inputs = Index(), {"documents": documents, "encoder": pico_encoder}
    shown = []
    ctx = make_ctx("index", inputs, progress=lambda done, total, unit="", **rest: shown.append((done, total, unit)))
    index = step.run(inputs, ctx)
    assert [(r.name, r.right, r.verdict) for r in step.receipts(inputs, index, ctx)] == [
        ("index/passages", 7, "agrees"), ("index/own words", 1.0, "agrees"), ("index/recall", None, "not applicable")]
    assert shown == [(7, 7, "passages")]
    assert index.kind == "index" and index.meta["passages"] == 7
    assert index.meta["encoder"] == {"identity": pico_encoder.identity, "name": "pico-encoder"}
    assert (index.folder / "licenses" / "LICENSE.txt").read_text() == "terms"
    assert index.identity == step.run(inputs, make_ctx("again", inputs)).identity


def test_receipts_differ_when_the_table_is_of_other_documents(documents, pico_encoder, make_ctx, tmp_path):
    step, inputs = Index(), {"documents": documents, "encoder": pico_encoder}
    others = [Passage(f"e.md:{i}", f"Quite other words, number {i}.", "e.md", "e.md#") for i in range(3)]
    write_rows(tmp_path / "others" / "passages", (p.to_dict() for p in others))
    wrong = {**inputs, "documents": seal("documents", tmp_path / "others", passages=3)}
    ctx = make_ctx("index")
    index = step.run(wrong, ctx)
    assert [r.verdict for r in step.receipts(inputs, index, ctx)] == ["differs", "differs", "not applicable"]


def test_the_retriever_is_rebuilt_with_its_settings(documents, pico_encoder, make_ctx, engine):
    step, inputs = Index(retriever="hybrid:depth=7,vector=false"), {"documents": documents, "encoder": pico_encoder}
    index = step.run(inputs, make_ctx("index"))
    retriever = open_retriever(open_artifact(index.folder))
    assert retriever == Hybrid(depth=7, vector=False) == step.retriever
    ctx = make_ctx("search", roles={"encoder": engine.load(pico_encoder)})
    assert retriever.search(index, ["generators"], 1, ctx)[0][0][0].text == TEXTS[2]
    with pytest.raises(UserError, match="not an index"):
        open_retriever(documents)


def test_a_decoder_is_refused_by_name(documents, pico, make_ctx):
    with pytest.raises(UserError, match="pico is a model of the kind 'decoder'"):
        Index().run({"documents": documents, "encoder": pico}, make_ctx("index"))


def test_the_identity_follows_the_retriever():
    assert Index().identity == Index(retriever="hybrid").identity != Index(retriever="hybrid:depth=9").identity
    assert Index(retriever="hybrid:depth=9").to_dict()["retriever"]["use"] == "hybrid"


def test_a_second_index_embeds_only_what_is_new(documents, pico_encoder, make_ctx, tmp_path, engine):
    """The same index as one made from nothing: rows and identity; vectors to 1e-5, for batches differ."""
    import numpy as np

    step, log, seen = Index(), [], []

    class Watched:
        def __getattr__(self, name):
            return getattr(engine, name)

        def embed(self, model, items, *rest):
            seen.extend(items)
            return engine.embed(model, items, *rest)

    inputs = {"documents": documents, "encoder": pico_encoder}
    first = step.run(inputs, make_ctx("index", inputs))
    write_json(first.folder / "step.json", {"kind": "index"})
    texts = ["A new page came first.", *TEXTS[2:]]
    rows = [Passage(f"d.md:{i}", t, "d.md", "d.md#a", ("Manual", "A"), 5) for i, t in enumerate(texts)]
    write_rows(tmp_path / "later" / "passages", (p.to_dict() for p in rows))
    inputs = {"documents": seal("documents", tmp_path / "later", passages=len(rows)), "encoder": pico_encoder}
    ctx = replace(make_ctx(".index.work", inputs, log=log.append), engine=Watched())
    second = step.run(inputs, ctx)
    assert seen == ["Manual > A\nA new page came first."]
    assert log[-1] == "5 passages kept their vectors, 1 were embedded"
    fresh = step.run(inputs, make_ctx("fresh", inputs))
    assert second.identity == fresh.identity != first.identity
    (one_texts, one), (two_texts, two) = next(Hybrid().embedded(second)), next(Hybrid().embedded(fresh))
    assert one_texts == two_texts == [f"Manual > A\n{t}" for t in texts]
    assert np.abs(one - two).max() < 1e-5
    seen.clear()
    other = Index(retriever="hybrid:max_tokens=9")
    other.run(inputs, replace(make_ctx(".index.work", inputs, log=log.append), engine=Watched()))
    assert len(seen) == len(texts)  # another length was read


@pytest.mark.parametrize(("recall", "verdict"), [(0.9906, "agrees"), (0.98, "differs")])
def test_the_recall_that_an_index_measured_is_a_receipt(documents, pico_encoder, make_ctx, recall, verdict):
    step, inputs = Index(), {"documents": documents, "encoder": pico_encoder}
    ctx = make_ctx("index", inputs)
    made = step.run(inputs, ctx)
    how = {"index": "IVF_SQ", "cells": 60, "probed": 3, "refine": 1, "limit": 66, "wanted": 0.99, "recall": recall,
           "queries": 64}
    found = step.receipts(inputs, replace(made, meta={**made.meta, "vectors": how}), ctx)[-1]
    assert (found.name, found.right, found.verdict) == ("index/recall", recall, verdict)
    missed = replace(made, meta={**made.meta, "vectors": {"index": "exact", "tried": [{"recall": 0.5}, {"recall": 0.9}]}})
    assert "an index found only 90.0% of the true first ten" in step.receipts(inputs, missed, ctx)[-1].detail

"""mine-negatives against sentence-transformers' mine_hard_negatives, and what it must leave out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from luthier.core.example import Example, Part, Turn
from luthier.techniques.data.mine_negatives import MineNegatives

WORDS = "module class object list dict name scope block import yield await lambda tuple string number raise".split()


def texts_of(count, seed=0):
    rng = np.random.default_rng(seed)
    return [(f"p{i}", " ".join(rng.choice(WORDS, 6))) for i in range(count)]


def row(i, query, text, **meta):
    turns = (Turn("user", (Part(query, name="question"),)),
             Turn("assistant", (Part(text, name="document"),), target=True))
    return Example(f"r{i}", turns, task="retrieval", meta=meta)


@pytest.fixture
def mine(make_ctx, engine, pico_encoder):
    def run(step, rows, texts):
        ctx = make_ctx("mine", roles={"encoder": engine.load(pico_encoder)})
        ctx.stream = lambda name: texts
        return list(step.apply(iter(rows), ctx))

    return run


@pytest.mark.oracle(clause="hard negatives", against="sentence-transformers mine_hard_negatives")
@pytest.mark.parametrize("margin", [0.0, 0.02])
def test_the_negatives_are_those_of_sentence_transformers(mine, pico_encoder, margin):
    st = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from datasets import Dataset
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from sentence_transformers.util import mine_hard_negatives

    texts = texts_of(40)
    rng = np.random.default_rng(1)
    queries = [" ".join(rng.permutation(text.split())[:4]) for _, text in texts[:12]]
    body = Transformer(pico_encoder.meta["path"], max_seq_length=256)
    model = st.SentenceTransformer(modules=[body, Pooling(body.get_embedding_dimension(), pooling_mode="mean")], device="cpu")
    theirs = mine_hard_negatives(
        Dataset.from_dict({"query": queries, "answer": [t for _, t in texts[:12]]}), model, corpus=[t for _, t in texts],
        num_negatives=2, range_max=40, relative_margin=margin, output_format="n-tuple", verbose=False)
    wanted = {r["query"]: [r["negative_1"], r["negative_2"]] for r in theirs}
    rows = [row(i, q, texts[i][1], document=f"p{i}", positives=[f"p{i}"]) for i, q in enumerate(queries)]
    found = mine(MineNegatives(margin=margin, near=1.0, depth=40), rows, texts)
    ours = {r.part("question"): [p.value for t in r.turns for p in t.parts if p.name == "negative"] for r in found}
    assert wanted and {q: n for q, n in ours.items() if len(n) == 2} == wanted
    mutant = mine(MineNegatives(margin=min(1.0, margin + 0.05), near=1.0, depth=40), rows, texts)
    assert [r.meta["negatives"] for r in mutant] != [r.meta["negatives"] for r in found]


def test_nothing_that_is_right_and_no_repetition_is_a_negative(mine, engine, pico_encoder):
    texts = [*texts_of(20), ("twin", texts_of(20)[0][1]), ("again", texts_of(20)[7][1])]
    query = texts[0][1]
    given = row(0, query, query, document="p0", positives=["p0", "p3"])
    (found,) = mine(MineNegatives(negatives=20, margin=0.0, depth=30, near=0.9999), [given], texts)
    names = found.meta["negatives"]
    assert names and not {"p0", "p3", "twin"} & set(names) and len({"p7", "again"} & set(names)) <= 1
    vectors = dict(zip([n for n, _ in texts], engine.embed(engine.load(pico_encoder), [t for _, t in texts]), strict=True))
    scores = [float(vectors[n] @ vectors["p0"]) for n in names]
    assert scores == sorted(scores, reverse=True) and max(scores) <= float(vectors["p3"] @ vectors["p0"]) + 1e-6
    (skipped,) = mine(MineNegatives(negatives=20, margin=0.0, depth=30, near=0.9999, skip=1), [given], texts)
    assert skipped.meta["negatives"][:3] == names[1:4]


def test_a_row_without_negatives_keeps_its_pair(mine):
    given = row(0, "module class", "module class", document="p0")
    (found,) = mine(MineNegatives(margin=1.0), [given], texts_of(3))
    assert found.meta["negatives"] == [] and replace(found, meta=given.meta) == given

"""hybrid: passages by meaning and by word, the two orders fused by reciprocal rank.

By meaning: cosine of the encoder's embeddings of query and passage; against every passage (exact) up to `exact_up_to`,
beyond through an index that is searched as far as gives the `recall`, which is measured against exact search and recorded
(see `_vectors`). By word: BM25 over stemmed words. Each gives its first `depth` passages, and

    score(passage) = sum over the lists it is in of 1 / (60 + rank),    rank = 1, 2, …

orders their union. Equal scores are ordered by passage id, within the lists as in the union, so the same index and the
same query always give the same passages. A query is plain text: no character of it is an operator.

When it helps: embeddings find other wordings, words find names and codes that an encoder has never seen; the fusion
needs no scale common to both. Source: Cormack, Clarke and Büttcher 2009, "Reciprocal rank fusion outperforms Condorcet
and individual rank learning methods"; Robertson and Zaragoza 2009, "The probabilistic relevance framework: BM25 and
beyond".
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from luthier.core.artifact import Artifact, seal
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.identity import digest
from luthier.core.kinds import Retriever
from luthier.core.step import Ctx
from luthier.techniques.retrieval._table import KEPT, TABLE, Rows, connect, matrix, open_table, passage_of, scan, schema_of
from luthier.techniques.retrieval._vectors import AT, EXACT, QUERIES, Kept, choose
from luthier.techniques.retrieval._vectors import search as nearest

if TYPE_CHECKING:
    import numpy as np

    from luthier.engine.models import Model

CONSTANT = 60
# Passages embedded at a time, and how many such batches are written at a time.
BATCH, SHARD = 128, 32
# Rows asked for beyond `depth`, to see whether a tie runs over its end.
SPARE = 16
# Queries that stand for users' own when recall is measured: so many words in a row, read up to so many tokens.
PIECE_WORDS, PIECE_TOKENS = 12, 64
Language = Literal["Arabic", "Danish", "Dutch", "English", "Finnish", "French", "German", "Greek",
                   "Hungarian", "Italian", "Norwegian", "Portuguese", "Romanian", "Russian", "Spanish", "Swedish",
                   "Tamil", "Turkish"]


class Hybrid(Retriever, name="hybrid", version=3):
    """Embeddings and BM25 fused by reciprocal rank, in a LanceDB table."""

    vector: bool = Field(True, description="search by meaning, with the encoder")
    text: bool = Field(True, description="search by word, with BM25")
    depth: int = Field(50, ge=1, description="how many passages of each of the two lists are fused")
    with_headings: bool = Field(True, description="a passage is searched together with the headings above it")
    max_tokens: int = Field(256, ge=8, description="how much of a passage the encoder reads; longer ones are counted")
    exact_up_to: int = Field(30_000, ge=0, description="with more passages, search by meaning goes through an index")
    recall: float = Field(0.99, gt=0, le=1, description="share of the true first ten that the index must find, else exact")
    language: Language = Field("English", description="whose endings are stripped from words")

    @field_validator("text")
    @classmethod
    def _one_is_on(cls, text: bool, info: ValidationInfo) -> bool:
        if not text and not info.data.get("vector", True):
            raise ValueError("vector is off too; leave one of the two on")
        return text

    def index(self, passages: Iterable[Passage], ctx: Ctx) -> Artifact:
        """The table of all passages, and how its vectors are searched. Embeddings are kept batch by batch, bit for bit.

        Memory holds a shard of passages and 16 bytes of each id.

        Raises:
            UserError: no passages, or two with the same id.
        """
        import pyarrow as pa
        from lancedb.index import FTS

        encoder = ctx.roles["encoder"]
        shutil.rmtree(ctx.folder / f"{TABLE}.lance", ignore_errors=True)  # of an attempt that was killed
        source = iter(passages)
        first = next(source, None)
        if first is None:
            raise UserError("There are no passages to search: the documents are empty.")
        rows = Rows()
        schema = schema_of(encoder.width if self.vector else 0)
        kept = Kept(ctx.folder, encoder.width, ctx.journal)
        batches = self._batches(chain([first], source), schema, rows, kept, ctx)
        table = connect(ctx.folder).create_table(TABLE, schema=schema)
        # Batches are made here and handed over: within LanceDB's own thread an error would arrive as another one.
        while shard := list(islice(batches, SHARD)):
            table.add(pa.Table.from_batches(shard))
        if self.text:
            # Stop words stay: in a manual of a programming language `if`, `not` and `with` are what is asked about,
            # and where they are everywhere BM25 gives them next to no weight.
            table.create_index("searched", config=FTS(language=self.language, remove_stop_words=False))
        how = self._choose(table, ctx) if self.vector and len(rows) > self.exact_up_to else EXACT
        kept.forget()
        if rows.cut:
            ctx.log(f"{rows.cut} of {len(rows)} passages are longer than the {self._limit(encoder)} tokens that the "
                    "encoder reads; by meaning they are found by their beginning only")
        # Table files hold random names and times; what the index says is a function of these three.
        identity = digest({"rows": rows.identity, "retriever": self.identity_values(), "encoder": encoder.identity})
        return seal("index", ctx.folder, identity=identity, retriever=self.to_dict(), passages=table.count_rows(),
                    vectors=how, cut=rows.cut, encoder={"identity": encoder.identity, "name": encoder.name})

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        """The k best passages of each query with their fused scores; fewer when fewer were found.

        Raises:
            UserError: k below 1, or the index was made with another encoder or with one side off.
        """
        for side in ("vector", "text"):
            if getattr(self, side) and not index.meta["retriever"][side]:
                raise UserError(f"This index was made with '{side}: false'. Search it with the same, or index again.")
        if k < 1:
            raise UserError(f"k = {k}: at least one passage must be asked for.")
        # Half a surrogate pair, as a broken file name gives, is no character that a tokenizer can read.
        asked = [q.encode("utf-8", "replace").decode("utf-8") for q in queries]
        depth = max(self.depth, k)
        lists: list[list[list[Passage]]] = [[] for _ in asked]
        table = open_table(index.folder)
        if lacking := [name for name in KEPT if name not in table.schema.names]:
            raise UserError(f"The index in {index.folder} is of an older version: it holds no {' and no '.join(lacking)} of "
                            "a passage. Index again: run the command that made it with --fresh.")
        if self.vector and asked:
            how = index.meta.get("vectors", EXACT)
            for found, vector in zip(lists, self._embed_queries(index, asked, ctx), strict=True):
                found.append(_first(lambda n, v=vector: _by_meaning(table, v, n, how), depth))  # type: ignore[misc]
        if self.text:
            for found, query in zip(lists, asked, strict=True):
                found.append(_first(lambda n, q=query: _by_word(table, q, n), depth))  # type: ignore[misc]
        return [fuse(found)[:k] for found in lists]

    def embedded(self, index: Artifact) -> Iterator[tuple[list[str], np.ndarray]]:
        """The texts of an index with their vectors, [texts, width], in batches; nothing where it holds no vectors."""
        if index.meta["retriever"]["vector"]:
            for batch in scan(open_table(index.folder), ["searched", "vector"]):
                yield batch.column("searched").to_pylist(), matrix(batch)

    def searched(self, passage: Passage) -> str:
        """The text by which a passage is found."""
        headings = " > ".join(passage.headings) if self.with_headings else ""
        return f"{headings}\n{passage.text}" if headings else passage.text

    def _limit(self, encoder: Model) -> int:
        return min(self.max_tokens, encoder.limit)

    def _batches(self, source: Iterator[Passage], schema: Any, rows: Rows, kept: Kept, ctx: Ctx) -> Iterator[Any]:
        """Record batches of the table; `rows` counts them."""
        import pyarrow as pa

        while batch := list(islice(source, BATCH)):
            for passage in batch:
                rows.add(passage)
            texts = [self.searched(p) for p in batch]
            columns = [[getattr(p, name) for p in batch] for name in KEPT]
            columns[KEPT.index("headings")] = [list(p.headings) for p in batch]
            arrays = [pa.array(c, type=schema.field(n).type) for n, c in zip(KEPT, columns, strict=True)]
            arrays.append(pa.array(texts))
            if self.vector:
                vectors, longer = self._embed(texts, kept, ctx)
                rows.cut += longer
                arrays.append(pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]))
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)
            ctx.progress(len(rows), len(rows), "passages")

    def _embed(self, texts: Sequence[str], kept: Kept, ctx: Ctx) -> tuple[np.ndarray, int]:
        """[texts, width] float32, and how many texts are longer than what was read."""
        encoder = ctx.roles["encoder"]

        def make() -> tuple[np.ndarray, int]:
            lengths = [len(encoder.tokenizer(t)["input_ids"]) for t in texts]
            return ctx.engine.embed(encoder, texts, self.max_tokens), sum(n > self._limit(encoder) for n in lengths)

        key = digest({"texts": texts, "encoder": encoder.identity, "max_tokens": self.max_tokens})
        return kept.do(f"embed/{key}", len(texts), make)

    def _choose(self, table: Any, ctx: Ctx) -> dict[str, Any]:
        """How the vectors are searched: pieces of passages, spread evenly over the table, are the queries that tell."""
        count = table.count_rows()
        spread = [i * count // QUERIES for i in range(QUERIES)]
        words = [row["searched"].split() for row in table.take_offsets(spread).select(["searched"]).to_list()]
        pieces = [" ".join(w[len(w) // 3:len(w) // 3 + PIECE_WORDS]) for w in words]
        queries = ctx.engine.embed(ctx.roles["encoder"], pieces, PIECE_TOKENS)
        how = choose(table, map(matrix, scan(table, ["vector"])), queries, self.depth + SPARE, self.recall)
        if how["index"] == "exact":
            ctx.log(f"no index over {count} vectors found {self.recall:.0%} of the true first {AT} (the best: "
                    f"{max(t['recall'] for t in how['tried']):.1%}); search by meaning compares every vector")
        return how

    def _embed_queries(self, index: Artifact, queries: Sequence[str], ctx: Ctx) -> np.ndarray:
        encoder, made_with = ctx.roles["encoder"], index.meta["encoder"]
        if encoder.identity != made_with["identity"]:
            raise UserError(
                f"The index was made with the encoder {made_with['name']} ({made_with['identity'][:8]}), the query "
                f"would be read by {encoder.name} ({encoder.identity[:8]}). Use the same, or index again.")
        vectors: np.ndarray = ctx.engine.embed(encoder, queries, self.max_tokens)
        return vectors


def fuse(lists: Iterable[Sequence[Passage]]) -> list[tuple[Passage, float]]:
    """Reciprocal rank fusion of ordered lists, best first, equal scores by id."""
    found: dict[str, Passage] = {}
    scores: dict[str, float] = {}
    for ordered in lists:
        for rank, passage in enumerate(ordered, 1):
            found[passage.id] = passage
            scores[passage.id] = scores.get(passage.id, 0.0) + 1 / (CONSTANT + rank)
    return [(found[i], scores[i]) for i in sorted(scores, key=lambda i: (-scores[i], i))]


def _first(ask: Callable[[int], list[tuple[float, Passage]]], depth: int) -> list[Passage]:
    """The `depth` best, equal scores by id: asks for more while a tie runs over the end of what came back."""
    limit = depth + SPARE
    while True:
        rows = sorted(ask(limit), key=lambda row: (-row[0], row[1].id))
        if len(rows) < limit or rows[-1][0] < rows[depth - 1][0]:
            return [passage for _, passage in rows[:depth]]
        limit *= 2


def _by_meaning(table: Any, vector: np.ndarray, limit: int, how: Mapping[str, Any]) -> list[tuple[float, Passage]]:
    # Rounded, so that what differs only by the order of a sum is a tie, and ties are ordered by id.
    return [(round(1 - row["_distance"], 6), passage_of(row))
            for row in nearest(table, vector, limit, how, [*KEPT, "_distance"])]


def _by_word(table: Any, text: str, limit: int) -> list[tuple[float, Passage]]:
    from lancedb.query import MatchQuery

    # A match query reads its text with the tokenizer of the index: nothing in it is an operator.
    query = table.search(MatchQuery(text, "searched"), query_type="fts")  # type: ignore[call-arg]
    return [(round(row["_score"], 4), passage_of(row)) for row in query.select([*KEPT, "_score"]).limit(limit).to_list()]

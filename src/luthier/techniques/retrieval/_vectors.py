"""Vectors of a table: kept while they are made, searched exactly or through an index whose recall was measured.

Comparing a query with every vector costs time in proportion to their number. An index divides the vectors into cells by
k-means, about `CELL` in each, keeps 8 bits of every number (`IVF_SQ`), and compares a query with the cells whose centres
are nearest; the `refine` times `limit` best of those are compared again with the whole vectors. How many cells are needed
is not typed in: `choose` asks for pieces of the passages themselves, with more and more cells, until

    recall@10 = mean over queries of |first 10 of the index that are as near as the true 10th| / 10

reaches what is wanted, and searches exactly where nothing does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.files import Journal

if TYPE_CHECKING:
    import numpy as np

COLUMN = "vector"
EXACT: dict[str, Any] = {"index": "exact"}
# Vectors to a cell; k-means sees so many vectors of each, so often.
CELL, SAMPLED, ROUNDS = 1000, 64, 10
# Queries whose answers are compared, at this rank.
QUERIES, AT = 64, 10
# Two ways of summing differ by less than this; what is nearer is a tie.
ROUNDING = 1e-5


class Kept:
    """Vectors in a file, in the order in which they were made; the journal says where, memory holds none of them."""

    def __init__(self, folder: Path, width: int, journal: Journal) -> None:
        self.path, self.width, self.journal = folder / "vectors.f4", width, journal

    def do(self, key: str, rows: int, make: Callable[[], tuple[np.ndarray, int]]) -> tuple[np.ndarray, int]:
        """`make()`, vectors [rows, width] float32 and a number, computed once: a later process reads it, bit for bit."""
        import numpy as np

        size = rows * self.width * 4
        place = self.journal.values.get(key)
        if place and self.path.exists() and place["at"] + size <= self.path.stat().st_size:
            with self.path.open("rb") as file:
                file.seek(place["at"])
                return np.frombuffer(file.read(size), dtype="<f4").reshape(rows, self.width), place["number"]
        vectors, number = make()
        vectors = np.ascontiguousarray(vectors, dtype="<f4")
        with self.path.open("ab") as file:  # closed, hence handed over, before the journal says that it is there
            at = file.tell()
            file.write(vectors.tobytes())
        self.journal.put(key, {"at": at, "number": number})
        return vectors, number

    def forget(self) -> None:
        """The table holds them now."""
        self.path.unlink(missing_ok=True)


def ladder(cells: int) -> list[tuple[int, int]]:
    """(cells probed, refine) from the quickest to the most thorough."""
    shares = [(max(1, cells // 64), 1), (max(1, cells // 16), 1), (max(1, cells // 4), 1), (cells, 1), (cells, 5)]
    return list(dict.fromkeys(shares))


def choose(table: Any, batches: Iterable[np.ndarray], queries: np.ndarray, limit: int, wanted: float) -> dict[str, Any]:
    """Make an index and say how it is searched for `limit` rows: as few cells as give the `wanted` recall@10.

    table: LanceDB's, with the vectors; batches: the same vectors, [rows, width] each; queries: [queries, width], length 1.
    Returns `index` ("exact" where nothing reaches it, and no index is left), `cells`, `probed`, `refine`, `limit`,
    `wanted`, `recall`, `queries`, and everything that was `tried`.
    """
    from lancedb.index import IvfSq

    cells = max(1, table.count_rows() // CELL)
    tenth = nth_similarity(batches, queries, AT)
    table.create_index(COLUMN, config=IvfSq(distance_type="cosine", num_partitions=cells, max_iterations=ROUNDS,
                                            sample_rate=SAMPLED))
    tried = []
    for probed, refine in ladder(cells):
        how = {"index": "IVF_SQ", "cells": cells, "probed": probed, "refine": refine, "limit": limit,
               "wanted": wanted}
        found = [[1 - row["_distance"] for row in search(table, query, limit, how, ["_distance"])] for query in queries]
        recall = sum(sum(float(s) >= least - ROUNDING for s in sorted(near, reverse=True)[:AT])
                     for near, least in zip(found, tenth.tolist(), strict=True)) / (AT * len(queries))
        tried.append({"probed": probed, "refine": refine, "recall": round(recall, 4)})
        if recall >= wanted:
            return {**how, "recall": round(recall, 4), "queries": len(queries), "tried": tried}
    for index in table.list_indices():
        if COLUMN in index.columns:
            table.drop_index(index.name)
    return {**EXACT, "tried": tried}


def nth_similarity(batches: Iterable[np.ndarray], queries: np.ndarray, n: int) -> np.ndarray:
    """[queries]: the cosine of the n-th nearest vector of all batches, by comparing every one; vectors have length 1."""
    import numpy as np

    best = np.full((len(queries), n), -np.inf, dtype=np.float32)
    for batch in batches:
        both = np.concatenate([best, queries @ batch.T], axis=1)
        best = np.partition(both, -n, axis=1)[:, -n:]
    return best.min(axis=1)


def search(table: Any, vector: np.ndarray, limit: int, how: Mapping[str, Any], columns: list[str]) -> list[dict[str, Any]]:
    """The `limit` rows nearest by cosine, with their `_distance`: fewer only where there are fewer.

    What goes deeper than the recall was measured for, or than the probed cells reach, is searched exactly; what goes less
    deep compares as many candidates with whole vectors as were compared when it was measured.
    """
    def query() -> Any:
        return table.search(vector, vector_column_name=COLUMN).distance_type("cosine").select(columns).limit(limit)

    if how["index"] != "exact" and limit <= how["limit"]:
        refine = -(-how["refine"] * how["limit"] // limit)
        rows: list[dict[str, Any]] = query().nprobes(how["probed"]).refine_factor(refine).to_list()
        if len(rows) == limit:
            return rows
    exact: list[dict[str, Any]] = query().bypass_vector_index().to_list()
    return exact

"""aliases: what users call a product ("PS") becomes its name and a filter on the documents that are searched.

A table says for each product its aliases and its documents (patterns of paths). An alias in a query, as a whole word and
whatever its case, is replaced by the product's name, longer aliases first; if the query names one product or several,
only passages of their documents are found. A query that names none is searched as it is. An alias of two products stands
for both: nothing is guessed.

When it helps: one index over manuals of several products whose users speak in abbreviations. Source: seed 1 (arXiv
2404.14760), its product disambiguation; the classifier for queries that name nothing is not part of this table.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from pydantic import BaseModel, ConfigDict, Field, field_validator

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.example import Passage
from luthier.core.step import Ctx
from luthier.techniques.retrieval._shared import Around


class Product(BaseModel):
    """One product of the table."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    aliases: tuple[str, ...] = Field((), description="what users write for it, beside its name")
    documents: tuple[str, ...] = Field(("*",), description="patterns of the paths of its documents, such as photoshop/*")


class Aliases(Around, name="aliases", seeds=[1]):
    """Replace aliases by product names, and search the documents of the products that a query names."""

    products: dict[str, Product] = Field({}, description="name -> {aliases: [PS], documents: ['photoshop/*']}")

    @field_validator("products")
    @classmethod
    def _written(cls, products: Mapping[str, Product]) -> Mapping[str, Product]:
        empty = next((n for n, p in products.items() if not n.strip() or not all(a.strip() for a in p.aliases)), None)
        if empty is not None:
            raise ValueError(f"product {empty!r} has an empty name or alias")
        return products

    def named(self, query: str) -> tuple[str, tuple[str, ...]]:
        """The query with names for aliases, and the products that it names, in the order of the table."""
        stands_for: dict[str, list[str]] = {}
        for name, product in self.products.items():
            for word in (name, *product.aliases):
                stands_for.setdefault(word.casefold(), []).append(name)
        if not stands_for:
            return query, ()
        words = "|".join(re.escape(w) for w in sorted(stands_for, key=lambda w: (-len(w), w)))
        found: set[str] = set()

        def name_of(match: re.Match[str]) -> str:
            products = stands_for[match[0].casefold()]
            found.update(products)
            return " or ".join(products)

        said = re.sub(rf"(?<!\w)(?:{words})(?!\w)", name_of, query, flags=re.IGNORECASE)
        return said, tuple(n for n in self.products if n in found)

    def search(self, index: Artifact, queries: Sequence[str], k: int, ctx: Ctx) -> list[list[tuple[Passage, float]]]:
        """The k best passages of each query among the documents of its products; fewer when there are fewer."""
        if k < 1:
            raise UserError(f"k = {k}: at least one passage must be asked for.")
        retriever, own = self.inner(index)
        asked = [self.named(query) for query in queries]
        results: list[list[tuple[Passage, float]]] = [[] for _ in asked]
        waiting, depth, most = list(range(len(asked))), k, int(index.meta["passages"])
        while waiting:
            # The filter comes after the search: ask deeper until enough of the right documents are there.
            for n, hits in zip(waiting, retriever.search(own, [asked[n][0] for n in waiting], depth, ctx), strict=True):
                results[n] = [hit for hit in hits if self._belongs(hit[0], asked[n][1])][:k]
            waiting = [n for n in waiting if len(results[n]) < k and asked[n][1]] if depth < most else []
            depth = min(4 * depth, most)
        return results

    def _belongs(self, passage: Passage, products: Sequence[str]) -> bool:
        patterns = [pattern for name in products for pattern in self.products[name].documents]
        return not products or any(fnmatchcase(passage.document, pattern) for pattern in patterns)

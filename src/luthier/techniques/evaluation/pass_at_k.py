"""pass-at-k: the chance that at least one of k sampled programs passes a problem's tests.

Of n samples of a problem c pass: value = 1 - C(n - c, k) / C(n, k), which is unbiased. Programs are the model's answers to
the question as raw text behind `prefix`, cut to their first function, and run with `meta["tests"]` in the sandbox. `details`
holds how programs ended, as shares. Source: Chen et al. 2021, section 2.1; the prefix is that of seed 47.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from math import comb
from typing import Any, ClassVar, Self

from pydantic import Field, model_validator

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Decoder, Metric, Prediction
from luthier.core.step import Ctx

_FUNCTION = re.compile(r"^(?:async )?def ", re.MULTILINE)


class PassAtK(Metric, name="pass-at-k", seeds=[47]):
    """Share of problems that one of k programs would solve."""

    roles: ClassVar[tuple[str, ...]] = ("policy",)
    needs_answers: ClassVar[bool] = False
    n: int = Field(10, ge=1, description="programs of each problem")
    k: int = Field(1, ge=1, description="programs that a user would try")
    prefix: str = Field("", description="what stands before the problem, such as <|good|>")
    stop_words: tuple[str, ...] = Field(("\nclass", "\nassert", "\nprint", "\nif", '"""'), description="where a program is cut")
    decoder: Slot[Decoder] = Field(named("sample:temperature=0.8,top_p=0.95,max_new_tokens=256"),
                                   description="how programs are written")
    seconds: float = Field(5.0, gt=0, description="longest time of one program with its tests")

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.k > self.n:
            raise ValueError(f"k = {self.k} programs can't be drawn of n = {self.n}; give n at least k")
        return self

    def score(self, examples: Sequence[Example], predictions: Sequence[Prediction], ctx: Ctx) -> list[dict[str, Any]]:
        """`value`, how many `passed`, and how each program `ended`. Raises UserError for a problem without tests."""
        from luthier.engine.rendering import renderer
        from luthier.engine.sandbox import Limits

        bare = next((e.id for e in examples if not e.meta.get("tests")), None)
        if bare is not None:
            raise UserError(f"pass-at-k needs tests, and row {bare} has none (meta.tests).")
        model = ctx.roles["policy"]
        render = renderer(model)
        asked = [e for e in examples for _ in range(self.n)]
        prompts = [render._start() + render.encode(self.prefix + e.part("question")) for e in asked]
        made = ctx.engine.generate(model, prompts, self.decoder, rng=ctx.rng.within("programs"), journal=ctx.journal)
        texts = [self._cut(e.part("question"), str(render.decode(list(g.ids)))) for e, g in zip(asked, made, strict=True)]
        ended = ctx.engine.execute([f"{e.part('question')}{t}\n\n{e.meta['tests']}" for e, t in zip(asked, texts, strict=True)],
                                   Limits(seconds=self.seconds))
        found = []
        for i, e in enumerate(examples):
            own = ended[i * self.n:(i + 1) * self.n]
            passed = sum(o.ok for o in own)
            found.append({"id": e.id, "value": estimate(self.n, passed, self.k), "passed": passed,
                          "ended": [o.error or o.outcome for o in own]})
        return found

    def details(self, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """How programs ended: shares of `ok`, `SyntaxError`, `AssertionError`, `timeout` and whatever else there was."""
        kinds = Counter(kind for r in records for kind in r["ended"])
        return {kind: count / kinds.total() for kind, count in sorted(kinds.items())}

    def _cut(self, problem: str, written: str) -> str:
        """Up to the first stop word, and to the first function; one that the problem begins is the first."""
        begun = 1 if _FUNCTION.search(problem) else 0
        ends = [at for at in (written.find(word) for word in self.stop_words) if at >= 0]
        ends += [m.start() for m in _FUNCTION.finditer(written)][1 - begun:2 - begun]
        return written[:min(ends, default=len(written))].rstrip("\n")


def estimate(n: int, passed: int, k: int) -> float:
    """1 - C(n - passed, k) / C(n, k)."""
    return 1 - comb(n - passed, k) / comb(n, k)

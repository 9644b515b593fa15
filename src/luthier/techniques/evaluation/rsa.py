"""rsa: which layers did tuning change? The similarity of similarities, layer by layer, before and after.

Of n texts and layer l the mean over tokens, of length 1, x_i; S = X X^T; r_l = Pearson's correlation of the strict upper
triangles of S before and after. Rotations and scales of the space change nothing. With `measure=cka` linear CKA. Told is the
finding of the least similar layer, all layers in `layers.jsonl`, and the K that `--method full:freeze_bottom=K` would be
given: the largest whose layers 0..K all keep `alike`. The interval is that of a jackknife over texts.

When it helps: to see how much of a model a task needs; lower layers mostly stay. Source: Shi et al. 2023, arXiv 2304.05216,
section 3 (seed 52); Kriegeskorte et al. 2008.
"""

from __future__ import annotations

import json
import math
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.errors import UserError
from luthier.core.files import write_lines
from luthier.core.finding import Finding, audited
from luthier.core.identity import hash_file
from luthier.core.kinds import Audit
from luthier.core.step import Ctx
from luthier.engine.subjects import ROLES, Subject
from luthier.techniques.evaluation._sets import frozen

if TYPE_CHECKING:
    import torch

LAYERS = "layers.jsonl"
FEWEST, BLOCKS = 8, 20


class Rsa(Audit, name="rsa", seeds=[52]):
    """How alike each layer's representations are before and after tuning."""

    battery: ClassVar[bool] = False
    mends: ClassVar[tuple[str, ...]] = ("method full",)
    data: str = Field("", description="a file of texts, a line each, or JSON lines with text; held-out rows, else "
                                      "general texts, if left out")
    by: Literal["rsa", "cka"] = Field("rsa", description="similarity of similarities, or linear CKA")
    most_rows: int = Field(100, ge=FEWEST, description="most texts")
    max_tokens: int = Field(256, ge=8, description="how much of a text is read")
    alike: float = Field(0.9, gt=0, le=1, description="least similarity of layers that could have been frozen")
    max_change: float = Field(0.5, gt=0, description="most that the least similar layer may have changed: 1 - similarity")

    def check(self) -> None:
        """Refuse a file that can't be used."""
        if self.data:
            texts_of(self.data)

    def content(self) -> dict[str, Any]:
        """The file of texts."""
        return {"data": hash_file(Path(self.data).expanduser())} if self.data else {}

    def measure(self, ctx: Ctx, subject: Subject) -> list[Finding]:
        """`audit/rsa`; one line a layer, 0 = embeddings."""
        from luthier.engine.representations import cka, pooled, rsa, states_of

        texts = self._texts(subject)
        if len(texts) < FEWEST:
            raise UserError(f"rsa compares similarities of texts: {len(texts)} are too few, give at least {FEWEST}: "
                            "--audit rsa:data=FILE.")
        sides = []
        for role in ROLES:
            model = subject.model(role)
            limit = min(self.max_tokens, model.limit)
            read = [model.tokenizer(t, truncation=True, max_length=limit)["input_ids"] for t in texts]
            sides.append(pooled(states_of(model, read)).cpu())
        if sides[0].shape[0] != sides[1].shape[0]:
            raise UserError(f"rsa compares layer with layer: the models have {len(sides[0]) - 1} and {len(sides[1]) - 1}.")
        measured = rsa if self.by == "rsa" else cka
        found = [1.0 if subject.same else measured(one, two) for one, two in zip(*sides, strict=True)]
        write_lines(ctx.folder / LAYERS, ({"layer": n, self.by: r} for n, r in enumerate(found)))
        least = min(range(len(found)), key=found.__getitem__)
        ends = (0.0, 0.0) if subject.same else jackknife(measured, sides[0][least], sides[1][least])
        frozen_ = min(len(list(takewhile(lambda r: r >= self.alike, found))) - 1, len(found) - 2)
        kept = f"layers 0 to {frozen_} keep" if frozen_ >= 0 else "not even the embeddings keep"
        return [audited("audit/rsa", None, 1 - found[least], self.max_change, ends, unit="", evidence=LAYERS,
                        title=f"change of the representations ({self.by})", freeze_bottom=frozen_,
                        layers={str(n): r for n, r in enumerate(found)},
                        detail=f"layer {least} of {len(found) - 1} changed most: {self.by} {found[least]:.3f}, on {len(texts)} "
                               f"texts; {kept} {self.alike:g}")]

    def _texts(self, subject: Subject) -> list[str]:
        if self.data:
            found = texts_of(self.data)
        else:
            found = ["\n".join(t.text for t in e.turns) for e in subject.held_out()] or \
                [str(r["text"]) for r in frozen("general/texts")]
        return [found[i * len(found) // min(self.most_rows, len(found))] for i in range(min(self.most_rows, len(found)))]


def texts_of(path: str) -> list[str]:
    """One text a line, plain or as JSON with `text`. Raises UserError for a file that has none."""
    place = Path(path).expanduser()
    if not place.is_file():
        raise UserError(f"rsa: data = {path!r}: there is no such file. Give texts, one a line, or JSON lines with text.")
    lines = [line for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
    if place.suffix != ".jsonl":
        return lines
    try:
        return [str(json.loads(line)["text"]) for line in lines]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: a line has no text ({error}).") from None


def jackknife(measured: Any, one: torch.Tensor, two: torch.Tensor) -> tuple[float, float]:
    """95 % of 1 - similarity, from what leaving out each of `BLOCKS` parts of the texts does; within 0 and 2."""
    import torch

    blocks = min(BLOCKS, len(one) // 2)
    keep = [torch.arange(len(one)) % blocks != b for b in range(blocks)]
    parts = [1 - measured(one[k], two[k]) for k in keep]
    mean = sum(parts) / blocks
    half = 1.96 * math.sqrt((blocks - 1) / blocks * sum((p - mean) ** 2 for p in parts))
    whole = 1 - measured(one, two)
    return max(0.0, whole - half), min(2.0, whole + half)

"""restarts: one training begun again and again, and what became of each.

Every restart trains on the same rows with another draw of head, order and dropout, and is an independent unit: arms are paired
by the number of the restart. Lines of `scores.jsonl` belong to the set `on`:

    accuracy   share of the test rows that are right        dev         the same on rows to choose settings by
    failed     1 where accuracy is below `failed_below`     deviation   |accuracy - the median of all restarts|
    distance   |w - u| over linear layers / |u|             wobble      divergence under a worst move of the embeddings
    kept       accuracy of a linear probe, on features of the tuned encoder, of what the text is about

`deviation` is what the test of Brown and Forsythe compares: its mean is a spread. `wobble` is the mean over test rows of
KL(P||Q) + KL(Q||P) after `worst_steps` steps uphill in a ball of `radius` root mean squares of the embeddings.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.artifact import Artifact, seal, write_examples
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.files import write_lines
from luthier.core.finding import Finding, receipt
from luthier.core.rng import Rng
from luthier.core.step import Ctx, FitCtx, Step

if TYPE_CHECKING:
    import torch

    from luthier.engine.models import Model

METRICS = {"accuracy": True, "dev": True, "failed": False, "deviation": False, "distance": False, "wobble": False, "kept": True}
RIDGE = 1e-2
ASKED_ROWS = 8


class Restarts(Step, name="restarts"):
    """Train a classifier several times from the same rows."""

    inputs: ClassVar[dict[str, str]] = {"base": "model", "examples": "examples"}
    output: ClassVar[str] = "records"
    seeded: ClassVar[bool] = False
    arm: str = Field("tuned", description="name of this arm in tables")
    on: str = Field("restarts", description="name of the set of restarts")
    fit: dict[str, Any] = Field({}, description="settings of each training")
    count: int = Field(16, ge=1, description="restarts")
    rows: int = Field(64, ge=2, description="rows that each learns from")
    dev_rows: int = Field(50, ge=1, description="further rows to choose settings by")
    tested: int = Field(200, ge=1, description="further rows that are tested")
    failed_below: float = Field(0.6, gt=0, lt=1, description="accuracy of a training that has failed")
    worst_steps: int = Field(0, ge=0, description="steps uphill of `wobble`; 0 leaves it out")
    radius: float = Field(0.1, gt=0, description="ball of `wobble`")
    first: int = Field(0, ge=0, description="number of the first restart")
    seed: int = Field(0, ge=0, description="which rows, and which restarts")

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Raises UserError for a world with too few rows."""
        given = list(inputs["examples"].examples("all"))
        needed = self.rows + self.dev_rows + self.tested
        if len(given) < needed:
            raise UserError(f"restarts: {len(given)} rows are there, {needed} are needed. Raise the world's rows.")
        draw = Rng(self.seed).within("restarts")
        mixed = [given[i] for i in draw("rows").permutation(len(given))]
        parts = {"test": mixed[:self.tested], "dev": mixed[self.tested:self.tested + self.dev_rows],
                 "train": mixed[needed - self.rows:needed]}
        (ctx.folder / "data").mkdir(exist_ok=True)
        data = write_examples(ctx.folder / "data", parts, labels=sorted({str(e.label) for e in given}))
        found = [ctx.journal.do(f"restart/{n}", lambda n=n: self._one(n, inputs["base"], data, parts, draw, ctx))  # type: ignore[misc]
                 for n in range(self.first, self.first + self.count)]
        middle = median(f["accuracy"] for f in found)
        lines = [{"id": f"{self.on}/{n}", "set": self.on, "cluster": f"{self.on}/{n}", "metric": name, "value": value}
                 for n, numbers in enumerate(found, self.first)
                 for name, value in {**numbers, "deviation": abs(numbers["accuracy"] - middle)}.items()]
        write_lines(ctx.folder / "scores.jsonl", lines)
        metrics = {name: METRICS[name] for name in dict.fromkeys(line["metric"] for line in lines)}
        return seal("records", ctx.folder, arm=self.arm, metrics=metrics, lines=len(lines))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """Every restart has a line of each metric."""
        return [receipt("restarts/lines", self.count * len(artifact.meta["metrics"]), artifact.meta["lines"], unit="lines")]

    def _one(self, number: int, base: Artifact, data: Artifact, parts: Mapping[str, Sequence[Example]], draw: Rng, ctx: Ctx
             ) -> dict[str, float]:
        import torch

        from luthier.engine.models import add_tuned

        own = Ctx(**{**ctx.__dict__, "folder": ctx.folder / "copies" / str(number), "rng": draw.within(str(number)),
                     "log": lambda text: None})
        fit = {"use": "fit", "tasks": [{"data": "examples.train", "objective": "classify", "head": "linear"}],
               "over_long": "truncate", "dtype": "float32", **self.fit}
        tuned = ctx.engine.fit(fit, {"base": base, "examples": data}, own)
        model = add_tuned(ctx.engine.fresh(base, torch.float32), tuned)
        accuracies = {name: _accuracy(model, tuned, parts[name], own) for name in ("test", "dev")}
        weights = dict(ctx.engine.load(base, dtype=torch.float32).module.named_parameters())
        found = {"accuracy": accuracies["test"], "dev": accuracies["dev"],
                 "failed": float(accuracies["test"] < self.failed_below), "distance": _distance(model, weights),
                 "kept": _kept(model, parts["test"])}
        if self.worst_steps:
            found["wobble"] = self._wobble(model, parts["test"], own)
        shutil.rmtree(own.folder)  # a hundred copies of an encoder would be gigabytes
        return found

    def _wobble(self, model: Model, rows: Sequence[Example], ctx: Ctx) -> float:
        from types import SimpleNamespace

        import torch

        from luthier.core.component import build
        from luthier.engine.forward import Forward
        from luthier.techniques.training._passes import apart, divergence, embedded, predicted

        fit_ctx = FitCtx(**ctx.__dict__)
        fit_ctx.clock, fit_ctx.perturbed = SimpleNamespace(step=0, steps=1), lambda moves: None  # type: ignore[assignment]
        part = build("regularizer", {"use": "smart", "mu": 0, "radius": self.radius, "steps": self.worst_steps})
        hook = part.start(model, fit_ctx)
        run, total = Forward({"policy": model}), 0.0
        run.task = next(iter(model.heads))
        with torch.no_grad():
            for batch in _batches(model, rows):
                with apart(run):
                    x = embedded(model, batch["input"])
                    clean = predicted(run, batch["input"], x)
                    moved = hook.worst(run, batch, batch["input"], x, clean)
                    total += float(divergence(predicted(run, batch["input"], moved), clean).sum())
        return total / len(rows)


def _batches(model: Model, rows: Sequence[Example]) -> list[dict[str, Any]]:
    """Rows as texts, a few at a time."""
    from luthier.engine.batches import collate
    from luthier.engine.rendering import renderer

    render = renderer(model, min(64, model.limit), over_long="truncate")
    texts: list[Any] = [{"input": render.text(row)} for row in rows]
    pad = model.tokenizer.pad_token_id or 0
    return [collate(texts[i:i + ASKED_ROWS], [r.id for r in rows[i:i + ASKED_ROWS]], pad)
            for i in range(0, len(rows), ASKED_ROWS)]


def _accuracy(model: Model, tuned: Artifact, rows: Sequence[Example], ctx: Ctx) -> float:
    from luthier.engine.classification import classify

    said = classify(model, tuned, list(rows), ctx)
    return sum(p.label == str(e.label) for p, e in zip(said, rows, strict=True)) / len(rows)


def _distance(model: Model, weights: Mapping[str, torch.Tensor]) -> float:
    """How far the weights of linear layers went, relative to their length."""
    from torch import nn

    names = [f"{n}.weight" for n, m in model.module.named_modules() if isinstance(m, nn.Linear)]
    own = dict(model.module.named_parameters())
    gone = sum(float((own[n] - weights[n]).square().sum()) for n in names)
    return float((gone / sum(float(weights[n].square().sum()) for n in names)) ** 0.5)


def _kept(model: Model, rows: Sequence[Example]) -> float:
    """Accuracy, on every second row, of a ridge regression from the encoder's features to the rows' sources."""
    import torch

    from luthier.engine.forward import Forward

    run = Forward({"policy": model})
    with torch.no_grad():
        x = torch.cat([run("policy", b["input"]).pooled() for b in _batches(model, rows)]).double()
    names = sorted({row.source for row in rows})
    y = torch.zeros(len(rows), len(names), dtype=torch.float64)
    for i, row in enumerate(rows):
        y[i, names.index(row.source)] = 1
    known, asked = slice(0, None, 2), slice(1, None, 2)
    mean, deviation = x[known].mean(0), x[known].std(0, correction=0).clamp(min=1e-9)
    x = torch.cat([(x - mean) / deviation, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    gram = x[known].T @ x[known] + RIDGE * len(x) * torch.eye(x.shape[1], dtype=torch.float64)
    solved = torch.linalg.solve(gram, x[known].T @ y[known])
    return float(((x[asked] @ solved).argmax(1) == y[asked].argmax(1)).double().mean())

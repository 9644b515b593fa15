"""Rows of a file that a rule asks models about, and the loss of an objective on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.example import Example, Part, Turn, question
from luthier.core.files import json_lines

if TYPE_CHECKING:
    import torch

    from luthier.core.kinds import Objective
    from luthier.core.rng import Rng
    from luthier.engine.models import Model

FORMS = (("question", "answer"), ("prompt", "completion"))
LABELLED = ("text", "label")


def read_pairs(path: str, rule: str, field: str) -> list[Example]:
    """The questions and answers of a JSON-lines file.

    Raises:
        UserError: no file, no rows, or a row that is none of the legal forms.
    """
    return _read(path, rule, field, FORMS)


def read_rows(path: str, rule: str, field: str) -> list[Example]:
    """Texts with labels, or questions with answers, of a JSON-lines file; all of one kind.

    Raises:
        UserError: no file, no rows, a row that is none of the legal forms, or rows of both kinds.
    """
    found = _read(path, rule, field, (LABELLED, *FORMS))
    if len({e.label is None for e in found}) > 1:
        raise UserError(f"{path} has rows with labels and rows with answers. Give rows of one kind.")
    return found


def _read(path: str, rule: str, field: str, forms: Sequence[tuple[str, str]]) -> list[Example]:
    legal = [" and ".join(f) for f in forms]
    if not Path(path).expanduser().is_file():
        raise UserError(f"{rule}: {field} = {path!r}: there is no such file. Give JSON lines with {', or with '.join(legal)}.")
    problems: list[str] = []
    found = []
    for number, row in json_lines(Path(path).expanduser().read_text(encoding="utf-8"), problems):
        said = row if isinstance(row, dict) else {}
        form = next((f for f in forms if all(isinstance(said.get(key), str) and said[key] for key in f)), None)
        if form is None:
            problems.append(f"line {number}: has no {', and no '.join(legal)}, in words")
        elif form == LABELLED:
            found.append(Example(f"{number}", (Turn("user", (Part(row["text"], name="text"),)),), task="classify",
                                 label=row["label"]))
        else:
            # The answer stands as a reference, too: metrics compare with it.
            found.append(question(f"{number}", row[form[0]], row[form[1]], references=(row[form[1]],)))
    if problems or not found:
        raise UserError(f"{path}: {len(problems)} lines can't be used ({'; '.join(problems[:3])})." if problems
                        else f"{path} has no rows.")
    return found


class Asked:
    """An objective's loss on rows, for a model whose weights may be changed between calls."""

    def __init__(self, model: Model, examples: list[Example], objective: Objective, rng: Rng, rows: int,
                 max_tokens: int) -> None:
        from luthier.engine.batches import collate
        from luthier.engine.forward import Forward
        from luthier.engine.rendering import renderer

        task = next(iter(model.heads), "")
        labelled: dict[str, Any] = {"labels": model.labels[task], "over_long": "truncate"} if task else {}
        render = renderer(model, min(max_tokens, model.limit), **labelled)
        self.objective, self._forward = objective, Forward({"policy": model})
        self._forward.task = task
        features = [f for e in examples for f in objective.rows(e, render, rng)]
        pad = int(model.tokenizer.pad_token_id or 0)
        cuts = [features[i:i + rows] for i in range(0, len(features), rows)]
        self.batches = [collate(cut, [f"{n}-{i}" for i in range(len(cut))], pad, model.device) for n, cut in enumerate(cuts)]

    def loss(self, batch: Any) -> torch.Tensor:
        """Sum over parts of the mean loss of one batch, a scalar."""
        import torch

        counts, weights = self.objective.count(batch), self.objective.coefficients()
        sums = self.objective.loss(self._forward, batch)
        return torch.stack([weights.get(name, 1.0) * value / counts[name] for name, value in sums.items()]).sum()


def merged_weights(model: Model) -> dict[str, torch.Tensor]:
    """The weights by their names on disk, an adapter merged."""
    if hasattr(model.module, "merge_and_unload"):
        model.module = model.module.merge_and_unload()
    model.module.requires_grad_(False)
    return {n: p.detach().float() for n, p in model.module.named_parameters()}

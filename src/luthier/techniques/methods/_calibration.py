"""What the inputs of a decoder's linear layers look like: squares by channel of a whole model, and X'X layer by layer.

Layer by layer, each layer is fed what the ones before it say after they were changed, so that it can make up for them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.engine.layers import Stack, evaluating, hidden_of
from luthier.techniques.methods._reordering import SHARING

if TYPE_CHECKING:
    import torch

    from luthier.core.step import Ctx
    from luthier.engine.models import Model

LEAST = 8
ROWS = 8  # sequences of one length that go through the model at once
Hessians = dict[str, "torch.Tensor"]


def sequences(method: str, model: Model, source: str, count: int, tokens: int, ctx: Ctx | None) -> list[torch.Tensor]:
    """Batches [rows, tokens] of ids: pieces of a text file, or rows of INPUT.SUBSET as they come, cut at `tokens`.

    Raises:
        UserError: fewer than 8 sequences.
    """
    import torch

    path = Path(source).expanduser()
    if path.is_file():
        ids = model.tokenizer(_text(path), verbose=False)["input_ids"]
        found = [ids[at:at + tokens] for at in range(0, len(ids) - tokens + 1, tokens)]
    else:
        try:
            rows = list(ctx.stream(source)) if ctx is not None else []
        except (KeyError, OSError):
            rows = []
        texts = ["\n".join(t.text for t in row.turns) for row in rows]
        found = [ids[:tokens] for text in texts if len(ids := model.tokenizer(text, verbose=False)["input_ids"]) > 1]
    if len(found) < LEAST:
        raise UserError(f"{method}: calibration = {source!r} gives {len(found)} sequences; at least {LEAST} are needed. Name a "
                        f"text file with more than {LEAST} pieces of {tokens} tokens, or rows such as examples.train.")
    if ctx is not None:
        found = [found[i] for i in ctx.rng("calibration").permutation(len(found))]
    found = sorted(found[:count], key=len)
    groups: list[list[list[int]]] = []
    for ids in found:
        if not groups or len(groups[-1][0]) != len(ids) or len(groups[-1]) == ROWS:
            groups.append([])
        groups[-1].append(ids)
    return [torch.tensor(group, device=model.device) for group in groups]


def _text(path: Path) -> str:
    """The text of a file; of a .jsonl one, the field `text` of its rows."""
    import json

    whole = path.read_text(encoding="utf-8")
    if path.suffix != ".jsonl":
        return whole
    try:
        return "\n\n".join(str(json.loads(line)["text"]) for line in whole.splitlines() if line.strip())
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"calibration: {path}: every line must be an object with 'text' ({error}).") from None


def squares(model: Model, layers: Sequence[Mapping[str, str]], batches: Sequence[torch.Tensor]) -> list[Hessians]:
    """2 sum x_c^2 [in] of each layer's inputs, by the first linear layer that reads them (keys of `SHARING`)."""
    import torch

    found: list[Hessians] = [{} for _ in layers]
    with ExitStack() as undo:
        for names, sums in zip(layers, found, strict=True):
            for first in SHARING:
                undo.callback(_adding(model.module.get_submodule(names[first]), sums, first,
                                      lambda x: 2 * x.square().sum(0)))
        undo.enter_context(evaluating(model.module.modules()))
        undo.enter_context(torch.no_grad())
        for ids in batches:
            model.module(input_ids=ids, use_cache=False)
    return found


def _adding(module: Any, sums: Hessians, name: str, of: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], None]:
    """Sum up `of` the module's inputs [tokens, in] in float32; returns what ends it."""
    def seen(module: Any, given: Any) -> None:
        said = of(given[0].detach().float().flatten(0, -2))
        sums[name] = sums[name] + said if name in sums else said

    remove: Callable[[], None] = module.register_forward_pre_hook(seen).remove
    return remove


def walk(model: Model, stack: Stack, layers: Sequence[Mapping[str, str]], batches: Sequence[torch.Tensor],
         visit: Callable[[int, Hessians], None]) -> None:
    """`visit(number, 2 X'X by the first layer that reads X)` for each layer in turn; it may change that one's linear layers."""
    import torch

    with torch.no_grad(), evaluating(list(model.module.modules())):
        hidden, calls = _entering(model, stack, batches)
        for number, names in enumerate(layers):
            layer = stack.layers[number]
            sums: dict[str, torch.Tensor] = {}
            with ExitStack() as undo:
                for first in SHARING:
                    undo.callback(_adding(model.module.get_submodule(names[first]), sums, first, lambda x: 2 * (x.T @ x)))
                for states, (rest, named) in zip(hidden, calls[number], strict=True):
                    layer(states, *rest, **named)
            visit(number, sums)
            hidden = [hidden_of(layer(states, *rest, **named))
                      for states, (rest, named) in zip(hidden, calls[number], strict=True)]


def _entering(model: Model, stack: Stack, batches: Sequence[torch.Tensor]) -> tuple[list[torch.Tensor], list[list[Any]]]:
    """What enters the first layer, and what each layer is called with besides hidden states, for every batch."""
    hidden: list[torch.Tensor] = []
    calls: list[list[Any]] = [[] for _ in stack.layers]

    def hearing(number: int) -> Callable[..., None]:
        def heard(module: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            named = dict(named)
            states = given[0] if given else named.pop("hidden_states")
            if not number:
                hidden.append(states)
            calls[number].append((given[1:], named))

        return heard

    with ExitStack() as undo:
        for number, layer in enumerate(stack.layers):
            undo.callback(layer.register_forward_pre_hook(hearing(number), with_kwargs=True).remove)
        for ids in batches:
            model.module(input_ids=ids, use_cache=False)
    return hidden, calls

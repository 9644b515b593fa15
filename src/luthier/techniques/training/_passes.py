"""What regularizers with further forwards share: predictions from given embeddings, and how far two of them lie apart.

A batch has one sequence a row, `input`. Its predictions are one row of scores [outputs] for each row that has a head, or for
each learned token of a language model: the units. Padding is never moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from luthier.core.errors import UserError
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.batches import TokenBatch
    from luthier.engine.forward import Forward
    from luthier.engine.models import Model

SPREAD_ROWS = 4096  # rows of the embedding table that its root mean square is taken of


def sequence_of(what: str, batch: Mapping[str, Any]) -> TokenBatch:
    """The batch's one sequence. Raises UserError where an objective has others, such as two answers to compare."""
    from luthier.engine.batches import TokenBatch

    found = [name for name, part in batch.items() if isinstance(part, TokenBatch)]
    if found != ["input"]:
        raise UserError(f"{what} needs an objective with one sequence a row (input); this one has "
                        f"{', '.join(found) or 'none'}.")
    sequence: TokenBatch = batch["input"]
    return sequence


def chooses(batch: Mapping[str, Any]) -> bool:
    """Whether its rows are options to choose from (`engine/choices.py`)."""
    return "options" in batch


def units(inputs: TokenBatch) -> int:
    """How many predictions are made: learned tokens, or rows where labels are learned."""
    return inputs.learned or len(inputs)


def embedded(model: Model, inputs: TokenBatch) -> torch.Tensor:
    """[rows, tokens, width] embedded ids, with their graph."""
    found: torch.Tensor = model.module.get_input_embeddings()(inputs.ids)
    return found


def predicted(run: Forward, inputs: TokenBatch, embeds: torch.Tensor) -> torch.Tensor:
    """[units, outputs] scores in float32."""
    said = run("policy", inputs, embeds=embeds)
    return said.logits() if inputs.learned else run.head(said.pooled()).float()


def divergence(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """[units] KL(P||Q) + KL(Q||P) = sum (p - q)(log p - log q) of two scores, in nats; of one number its squared difference.

    Gradients flow into both. In this form both factors of equal scores are 0, and so is the gradient, exactly.
    """
    if one.shape[-1] == 1:
        return (one - other).square().sum(-1)
    p, q = one.log_softmax(-1), other.log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


@contextmanager
def apart(run: Forward, seed: int | None = None) -> Iterator[None]:
    """Further passes within a micro-batch, which leave its dropout as it is: their own has this seed, or is off without one."""
    import torch

    from luthier.engine.layers import evaluating

    model, frozen = run.models["policy"], run.frozen
    modules = [m for part in (model.module, *model.heads.values()) for m in part.modules()]
    run.frozen = None  # gradients of the embeddings go through every layer
    try:
        with ExitStack() as block:
            if seed is None:
                block.enter_context(evaluating(modules))
            else:
                block.enter_context(torch.random.fork_rng([model.device] if model.device.type == "cuda" else []))
                torch.manual_seed(seed)
            yield
    finally:
        run.frozen = frozen


def noise(draw: Callable[[torch.Generator, int, int], torch.Tensor], rng: Rng, name: str, step: int, ids: list[str],
          like: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """[rows, tokens, width] float32, each row's from (its id, the step) alone and 0 at padding; `draw(generator, n, width)`."""
    import torch

    found = torch.zeros(like.shape, dtype=torch.float32)
    for i, (row, length) in enumerate(zip(ids, mask.sum(1).tolist(), strict=True)):
        generator = torch.Generator().manual_seed(rng.key(name, f"{step}/{row}"))
        found[i, :length] = draw(generator, int(length), like.shape[-1])
    return found.to(like.device)


def normal(generator: torch.Generator, tokens: int, width: int) -> torch.Tensor:
    """[tokens, width] of deviation 1."""
    import torch

    return torch.randn(tokens, width, generator=generator)


def embedding_rms(model: Model) -> float:
    """Root mean square of the embeddings, as the model makes them, over the table or evenly spread rows of a long one."""
    import torch

    table = model.module.get_input_embeddings()
    size = int(table.weight.shape[0])
    ids = torch.arange(0, size, -(-size // SPREAD_ROWS), device=model.device)
    with torch.no_grad():
        return float(table(ids).float().square().mean().sqrt())


def require_embeds(what: str, model: Model) -> None:
    """Raises UserError for a model that computes something else from embeddings than from the ids that they embed."""
    import torch

    from luthier.engine.forward import trunk_of
    from luthier.engine.layers import evaluating

    ids = torch.arange(5, 11, device=model.device)[None] % int(model.module.config.vocab_size)
    further: dict[str, Any] = {} if model.architecture == "encoder" else {"use_cache": False}
    if model.architecture == "encoder-decoder":
        further["decoder_input_ids"] = ids
    inner = model.module.get_base_model() if hasattr(model.module, "get_base_model") else model.module
    refused = f"{what} moves embeddings, and {type(inner).__name__} ({model.name}) "
    try:
        with torch.no_grad(), evaluating(list(model.module.modules())):
            known = trunk_of(model)(input_ids=ids, **further).last_hidden_state
            moved = trunk_of(model)(inputs_embeds=model.module.get_input_embeddings()(ids), **further).last_hidden_state
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise UserError(f"{refused}does not take them (inputs_embeds): {error}. Leave {what} out.") from None
    if (known - moved).abs().max() > 1e-3 * known.abs().max():
        raise UserError(f"{refused}computes something else from them than from ids. Leave {what} out.")

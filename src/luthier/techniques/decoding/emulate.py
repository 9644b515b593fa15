"""Emulated fine-tuning: a large base model with what tuning changed in a small one, added token by token.

With l log-probabilities over the shared vocabulary [batch, vocabulary], M the large base, and (N tuned, N base) a pair of
small models, the next token comes from

    softmax(s / temperature),  s = l_M + alpha (l_N tuned - l_N base) + sum of weight (l_tuned - l_base) over further pairs

N tuned is the model that is asked (`policy`). Tuning is seen as r = beta log(tuned / base) up to a constant, so a pair is a
reward, and several mix. `filter: nucleus` keeps the up-scaling l_M - l_N base only for the small model's top-p tokens; the
others keep what is left. With `draft_tokens` the small model writes ahead and the others check a block at once: accepted
with probability min(1, p / q), else drawn from (p - q)+, which gives samples of p exactly.

When it helps: a large model that can't be tuned, and a small one of the same tokenizer that can. Two small models are asked
beside the large one at every token. Source: Mitchell et al. 2023, "An Emulator for Fine-Tuning Large Language Models using
Small Language Models" (seed 116).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from luthier.core.kinds import Decoder
from luthier.core.rng import Rng
from luthier.techniques.decoding._shared import drawn, same_tokens

if TYPE_CHECKING:
    import torch

    from luthier.engine.lookout import Lookout
    from luthier.engine.models import Model


class Pair(BaseModel):
    """What tuning changed in a further small model."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    tuned: str = Field(description="the tuned model: an input, a run or a base")
    base: str = Field(description="what it was tuned on")
    weight: float = Field(1.0, allow_inf_nan=False, description="how much of the change is added")


class Emulate(Decoder, name="emulate", seeds=[116]):
    """A large base with a small model's tuning: log-probabilities added at every token."""

    big: str = Field("big", description="the large base: an input, a run or a base")
    small_base: str = Field("small_base", description="what the small model that is asked was tuned on")
    alpha: float = Field(1.0, allow_inf_nan=False, description="how much of the small model's tuning is added")
    deltas: tuple[Pair, ...] = Field((), description="further pairs of small models, each with a weight")
    filter: Literal["none", "nucleus"] = Field("none", description="nucleus: up-scale the small model's likely tokens only")
    p: float = Field(0.9, ge=0, le=1, description="share that the likely tokens of the filter hold")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 takes the best token, 1 samples")
    draft_tokens: int = Field(0, ge=0, description="tokens that the small model writes ahead; 0 asks all models each time")

    def models(self) -> dict[str, str]:
        named = {"big": self.big, "small_base": self.small_base}
        for n, pair in enumerate(self.deltas, 1):
            named |= {f"tuned_{n}": pair.tuned, f"base_{n}": pair.base}
        return named

    @property
    def searches(self) -> bool:
        return self.draft_tokens > 0

    def check(self, models: Mapping[str, Model]) -> None:
        same_tokens("emulate", models)

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """[batch, vocabulary] log-probabilities; a token that one of the models does not have is never chosen."""
        import torch

        width = min(s.shape[-1] for s in states.values())
        logs = {role: s[..., :width].float().log_softmax(-1) for role, s in states.items()}
        small = logs["policy"]
        moved = (self.alpha - 1) * (small - logs["small_base"])
        for n, pair in enumerate(self.deltas, 1):
            moved = moved + pair.weight * (logs[f"tuned_{n}"] - logs[f"base_{n}"])
        up = logs["big"] - logs["small_base"]
        if self.filter == "nucleus":
            up = torch.where(_likely(small, self.p), up, torch.zeros_like(up))
        found = (small + up + moved).log_softmax(-1)
        return torch.nn.functional.pad(found, (0, states["policy"].shape[-1] - width), value=float("-inf"))

    def choose(self, scores: torch.Tensor, rngs: Sequence[Callable[[], float]]) -> torch.Tensor:
        return drawn(self._chances(scores), rngs)

    def _chances(self, scores: torch.Tensor) -> torch.Tensor:
        """[batch, vocabulary] probabilities at the temperature; at 0 all of it on the best token."""
        import torch

        if self.temperature:
            return (scores / self.temperature).softmax(-1)
        return torch.nn.functional.one_hot(scores.argmax(-1), scores.shape[-1]).float()

    # --- speculative ---------------------------------------------------------------------------------------------

    def search(self, look: Lookout, prompts: Sequence[Sequence[int]], rngs: Sequence[Rng]) -> list[list[int]]:
        answers: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        while going:
            drafts, chances = self._drafts(look, prompts, answers, going, rngs)
            sequences = [[*prompts[i], *answers[i], *d] for i, d in zip(going, drafts, strict=True)]
            states = {role: look.scores(role, sequences, [len(d) + 1 for d in drafts], [len(prompts[i]) for i in going])
                      for role in ("policy", *self.roles)}
            for n, i in enumerate(going):
                wanted = self._chances(self.scores({role: s[n] for role, s in states.items()}))
                draw = _numbers(rngs[i], len(answers[i]))
                answers[i] += accepted(drafts[n], chances[n], wanted, draw)
                ended = next((k for k, t in enumerate(answers[i]) if t in look.ends), None)
                answers[i] = answers[i][:self.max_new_tokens if ended is None else min(ended + 1, self.max_new_tokens)]
            going = [i for i in going if len(answers[i]) < self.max_new_tokens and answers[i][-1] not in look.ends]
        return answers

    def _drafts(self, look: Lookout, prompts: Sequence[Sequence[int]], answers: Sequence[list[int]], going: Sequence[int],
                rngs: Sequence[Rng]) -> tuple[list[list[int]], list[list[torch.Tensor]]]:
        """Tokens that the small model writes ahead, each with the probabilities [vocabulary] that it was drawn from."""
        import torch

        drafts: list[list[int]] = [[] for _ in going]
        chances: list[list[torch.Tensor]] = [[] for _ in going]
        for place in range(self.draft_tokens):
            said = torch.cat(look.scores("policy", [[*prompts[i], *answers[i], *d] for i, d in zip(going, drafts, strict=True)],
                                         None, [len(prompts[i]) for i in going]))
            spread = self._chances(said)
            draws = [_one(rngs[i], "draft", len(answers[i]), place) for i in going]
            for n, token in enumerate(drawn(spread, draws).tolist()):
                drafts[n].append(token)
                chances[n].append(spread[n])
        return drafts, chances


def accepted(draft: Sequence[int], drafted: Sequence[torch.Tensor], wanted: torch.Tensor,
             draw: Callable[[str, int], float]) -> list[int]:
    """The tokens that a block of drafted ones becomes: samples of `wanted` [draft + 1, vocabulary], whatever was drafted.

    A token drafted with probability q and wanted with p stays with min(1, p / q); the first that does not is drawn from
    (p - q)+ and ends the block, and where all stay one more is drawn. `draw(name, place)` gives a uniform number.
    """
    for place, (token, q) in enumerate(zip(draft, drafted, strict=True)):
        p = wanted[place]
        if draw("keep", place) * float(q[token]) < float(p[token]):
            continue
        rest = (p - q).clamp(min=0)
        return [*draft[:place], int(drawn(rest[None], [lambda at=place: draw("again", at)]))]  # type: ignore[misc]
    return [*draft, int(drawn(wanted[-1:], [lambda: draw("more", len(draft))]))]


def _likely(logs: torch.Tensor, p: float) -> torch.Tensor:
    """[batch, vocabulary] whether a token is among the fewest likeliest that hold the share p; the first always is."""
    import torch

    probabilities, order = logs.exp().sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    inside = (before < p) | (torch.arange(logs.shape[-1], device=logs.device) == 0) | torch.tensor(p >= 1, device=logs.device)
    return torch.zeros_like(inside).scatter(-1, order, inside)


def _one(rng: Rng, name: str, written: int, place: int) -> Callable[[], float]:
    return lambda: float(rng(name, f"{written}/{place}").random())


def _numbers(rng: Rng, written: int) -> Callable[[str, int], float]:
    return lambda name, place: _one(rng, name, written, place)()

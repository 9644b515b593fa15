"""What reward-guided decoders share: of the likeliest next tokens, each is weighed by what answers through it are worth.

At a token, k candidates z of a reference policy with log-probabilities l(z) are each continued by a model and the texts are
rewarded; the token maximises l(z) + value(z) / alpha, or is drawn from the soft-max of it over the k.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from luthier.core.component import Slot, build, named
from luthier.core.kinds import Decoder, Metric
from luthier.core.rng import Rng
from luthier.techniques.decoding._shared import drawn, same_tokens

if TYPE_CHECKING:
    import torch

    from luthier.engine.lookout import Lookout
    from luthier.engine.models import Model

# Candidate z of item n: its prompt, and the answer up to z.
Begun = tuple[int, list[int]]


class Guided(Decoder):
    """Answers token by token, each chosen by the reward of what may follow."""

    reward: Slot[Metric] = Field(named("stops"), description="what an answer is worth, from its question and its text alone")
    alpha: float = Field(1.0, gt=0, description="how little the reward counts; infinite: plain decoding")
    top_k: int = Field(10, ge=1, description="candidates for each token")
    every: int = Field(1, ge=1, description="one token in so many is chosen by reward, the others plainly")
    temperature: float = Field(0.0, ge=0, allow_inf_nan=False, description="0 takes the best candidate, above 0 samples")

    @property
    def searches(self) -> bool:
        return True

    @property
    def _speaker(self) -> str:
        """Whose tokens are candidates."""
        return "policy"

    def check(self, models: Mapping[str, Model]) -> None:
        same_tokens(self.info.name, models)

    def scores(self, states: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Plain decoding of the asked model, where nothing is weighed."""
        return states["policy"]

    @abstractmethod
    def values(self, look: Lookout, prompts: Sequence[Sequence[int]], begun: Sequence[Begun], rngs: Sequence[Rng]
               ) -> list[float]:
        """What each begun answer is expected to be worth; `rngs` are those of the prompts."""

    def search(self, look: Lookout, prompts: Sequence[Sequence[int]], rngs: Sequence[Rng]) -> list[list[int]]:
        import torch

        answers: list[list[int]] = [[] for _ in prompts]
        for place in range(self.max_new_tokens):
            going = [i for i, a in enumerate(answers) if not a or a[-1] not in look.ends]
            if not going:
                break
            said = torch.cat(look.scores(self._speaker, [[*prompts[i], *answers[i]] for i in going], None,
                                         [len(prompts[i]) for i in going]))
            logs, tokens = said.log_softmax(-1).topk(min(self.top_k, said.shape[-1]), -1)
            if place % self.every == 0 and 1 / self.alpha > 0:
                begun = [(i, [*answers[i], z]) for i, row in zip(going, tokens.tolist(), strict=True) for z in row]
                worth = torch.tensor(self.values(look, prompts, begun, rngs), dtype=logs.dtype, device=logs.device)
                logs = guided(logs, worth.view_as(logs), self.alpha)
            draws = [lambda r=rngs[i], at=place: float(r("token", at).random()) for i in going]  # type: ignore[misc]
            best = drawn((logs / self.temperature).softmax(-1), draws) if self.temperature else logs.argmax(-1)
            for i, token in zip(going, tokens.gather(1, best[:, None])[:, 0].tolist(), strict=True):
                answers[i].append(token)
        return answers


def guided(logs: torch.Tensor, values: torch.Tensor, alpha: float) -> torch.Tensor:
    """[…, k] log of what is proportional to reference x exp(value / alpha)."""
    return logs + values / alpha


def expected(rewards: torch.Tensor, log_weights: torch.Tensor, normalised: bool = True) -> torch.Tensor:
    """[…] mean of rewards […, n] under weights exp(log_weights); divided by the mean weight where normalised."""
    weights = log_weights.softmax(-1) if normalised else log_weights.exp() / rewards.shape[-1]
    return (weights * rewards).sum(-1)


def rolled_out(look: Lookout, role: str, prompts: Sequence[Sequence[int]], begun: Sequence[Begun], horizon: int,
               rngs: Sequence[Rng], rollouts: int) -> list[list[list[int]]]:
    """`rollouts` answers for each begun one, of `horizon` more tokens at most; one that has ended stands for itself.

    One roll-out is greedy, several are sampled. What is drawn depends on the prompt's own numbers, the begun answer and the
    number of the roll-out.
    """
    how: dict[str, Any] = {"use": "greedy"} if rollouts == 1 else {"use": "sample", "temperature": 1.0, "top_p": 1.0}
    decoder = build("decoder", {**how, "max_new_tokens": horizon})
    asked = [(n, r) for n, (_, answer) in enumerate(begun) for r in range(rollouts) if answer[-1] not in look.ends]
    made = look.continued(
        role, [[*prompts[begun[n][0]], *begun[n][1]] for n, _ in asked], decoder,
        [rngs[begun[n][0]].within(f"{'-'.join(map(str, begun[n][1]))}/{r}") for n, r in asked],
        [len(prompts[begun[n][0]]) for n, _ in asked]) if asked else []
    found = [[list(answer)] * rollouts for _, answer in begun]
    for (n, r), more in zip(asked, made, strict=True):
        found[n][r] = [*begun[n][1], *more]
    return found

"""PPO: learn from the rewards of answers that the policy itself writes, close to a frozen reference.

A round samples an answer y to each of `rollouts` prompts. Token t is rewarded r_t = -beta (log π(y_t) - log ρ(y_t)), the
last one with the score of y on top. With values V from a head on the policy, generalised advantages A and returns R = A + V
are computed once; A is whitened over the round. The rows are then passed over `passes` times, minimising

    sum max(-A ratio, -A clip(ratio, 1 ± clip)) / tokens + value_weight sum max((V - R)², (clipped V - R)²) / 2 / tokens

with ratio = π / π_old. beta follows the KL to its target. Answers, log-probabilities and losses are computed without
dropout, so that ratio = 1 in the first pass. An answer cut off at the length limit scores 0 and is counted (`cut_off`).
A row of data as it stands (validation, receipts) gives the nll of its answer, not trained on here.

When it helps: a reward can be computed (tests, a compiler, a verifier, a model of preferences) and right answers are not
rare. Sources: Schulman et al. 2017; Ziegler et al. 2019; Palit & Sharma 2024 for refactoring (seed 143), whose settings are
`passes=100`, `learning_rate=2.94e-5`, `rollouts=16`, `batch_rows=4`, 512 new tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Decoder, Features, Metric, Objective, Prediction, Tokens
from luthier.core.rng import Rng
from luthier.techniques.objectives import _ppo

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.generation import Generated
    from luthier.engine.rendering import Render
    from luthier.engine.rollouts import Round


class Ppo(Objective, name="ppo", seeds=[143]):
    """Learn from the rewards of the policy's own answers, held to a reference."""

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    parts: ClassVar[Mapping[str, Literal["additive", "coupled"]]] = {
        "policy": "additive", "value": "additive", "nll": "additive"}
    brings_head: ClassVar[str] = "value"
    on_policy: ClassVar[bool] = True
    reward: Slot[Metric] = Field(named("exact-match"), description="what an answer is worth: the value of this metric")
    decoder: Slot[Decoder] = Field(named("sample:temperature=1,top_p=1"), description="how answers are sampled")
    rollouts: int = Field(32, ge=1, description="answers of a round")
    passes: int = Field(4, ge=1, description="how often a round's answers are passed over")
    beta: float = Field(0.2, ge=0, description="how strongly the policy is held to the reference at first; reward per nat")
    target_kl: float | None = Field(6.0, gt=0, description="KL of an answer (nats) that beta is steered to; none keeps beta")
    stop_kl: float = Field(1.5, gt=0, description="KL of a token (nats) to the policy that wrote the answers, above which a "
                                                  "round is over")
    gamma: float = Field(1.0, gt=0, le=1, description="what a reward one token later is worth")
    smoothing: float = Field(0.95, ge=0, le=1, description="lambda of the generalised advantages")
    clip: float = Field(0.2, gt=0, description="how far a ratio may leave 1, and a value its old one, to be learned from")
    value_weight: float = Field(0.1, ge=0, description="weight of the error of the values")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]  # an answer is to a whole prompt

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """`input`, the row as it stands, and the `prompt` that is answered."""
        return {"input": render.tokens(example), "prompt": tuple(render.prompt(example))}

    def count(self, batch: Mapping[str, Any]) -> dict[str, float]:
        learned = batch["input"].learned
        return {"policy": learned, "value": learned} if "advantages" in batch else {"nll": learned}

    def coefficients(self) -> dict[str, float]:
        return {"value": self.value_weight}

    def loss(self, run: Forward, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Raises UserError where the task has no head of one output."""
        import torch

        if "advantages" not in batch:
            return {"nll": run("policy", batch["input"]).nll().sum()}
        with _as_written(run):
            output = run("policy", batch["input"], layers=not run.splits["policy"])
            log_ratio, value = -output.nll() - _flat(batch, "logs"), _values(run, output.predicting())
        policy = _ppo.policy_loss(log_ratio, _flat(batch, "advantages"), self.clip)
        ratio = log_ratio.detach().exp()
        run.measure(ratio=ratio, clipped=((ratio - 1).abs() > self.clip).float())
        return {"policy": policy.sum(),
                "value": torch.sum(_ppo.value_loss(value, _flat(batch, "values"), _flat(batch, "returns"), self.clip))}

    def experience(self, given: Round) -> list[Features]:
        """Answers with their advantages, returns, and what policy and values said of them.

        Raises:
            UserError: the reward gives an answer no number.
        """
        import torch

        prompts: list[list[int]] = [list(row["prompt"]) for row in given.rows]  # type: ignore[arg-type]
        made = given.ctx.engine.generate(given.run.models["policy"], prompts, self.decoder, rng=given.rng.within("answers"),
                                         stop_ids=given.render.stop_ids)
        scores = self._scores(given, made)
        policy = given.run.models["policy"]
        rows: list[Features] = [{"input": _row(policy, p, list(g.ids))} for p, g in zip(prompts, made, strict=True)]
        with torch.no_grad(), _as_written(given.run):
            logs, values, reference = (_by_row(rows, said) for said in _said(given.run, rows))
        beta = given.memory.setdefault("beta", self.beta)
        rewards = [_ppo.token_rewards(*one, beta) for one in zip(logs, reference, scores, strict=True)]
        found = [_ppo.advantages(r, v, self.gamma, self.smoothing) for r, v in zip(rewards, values, strict=True)]
        returns = [[a + v for a, v in zip(*one, strict=True)] for one in zip(found, values, strict=True)]
        kls = [sum(p - r for p, r in zip(*one, strict=True)) for one in zip(logs, reference, strict=True)]
        self._say(given, scores, made)
        _tell(given.run, reward=scores, kl=kls, beta=[beta], cut_off=[not g.stopped for g in made],
              answer_tokens=[g.tokens for g in made])
        if self.target_kl is not None:
            given.memory["beta"] = _ppo.next_beta(beta, sum(kls) / len(kls), self.target_kl, len(kls))
        return [{**row, "logs": tuple(p), "values": tuple(v), "advantages": tuple(a), "returns": tuple(r)}
                for row, p, v, a, r in zip(rows, logs, values, _ppo.whitened(found), returns, strict=True)]

    def spent(self, given: Round, rows: list[Features]) -> str:
        import torch

        with torch.no_grad(), _as_written(given.run):
            logs = _by_row(rows, _said(given.run, rows)[0])
        away = [b - a for row, now in zip(rows, logs, strict=True)
                for b, a in zip(row["logs"], now, strict=True)]  # type: ignore[arg-type]
        kl = sum(away) / len(away)
        return f"the policy is {kl:.2f} nats a token from the one that wrote the answers (stop_kl={self.stop_kl:g})" \
            if kl > self.stop_kl else ""

    def _scores(self, given: Round, made: Sequence[Generated]) -> list[float]:
        said = [Prediction(e.id, text=g.text, stopped=g.stopped, tokens=g.tokens)
                for e, g in zip(given.examples, made, strict=True)]
        records = self.reward.score(given.examples, said, given.ctx)
        for record in records:
            if record["value"] is None:
                raise UserError(f"ppo: the reward {self.reward.info.name} has no value for row {record['id']}. A reward must "
                                "give every answer a number.")
            _tell(given.run, **{f"reward_{n}": [v] for n, v in record.items() if n != "value" and isinstance(v, float | bool)})
        return [float(r["value"]) if g.stopped else 0.0 for r, g in zip(records, made, strict=True)]

    def _say(self, given: Round, scores: Sequence[float], made: Sequence[Generated]) -> None:
        """Log what keeps a round from teaching anything."""
        if len(set(scores)) == 1 and len(scores) > 1:
            given.ctx.log(f"ppo: all {len(scores)} answers of this round are worth {scores[0]:g}: nothing tells them apart")
        if not all(g.stopped for g in made):
            given.ctx.log(f"ppo: {sum(not g.stopped for g in made)} of {len(made)} answers were cut off at "
                          f"max_new_tokens={self.decoder.max_new_tokens} and are worth 0")


def _tell(run: Forward, **numbers: Sequence[float]) -> None:
    """Show the means of numbers beside the loss."""
    import torch

    run.measure(**{name: torch.tensor([float(v) for v in values]) for name, values in numbers.items()})


@contextmanager
def _as_written(run: Forward) -> Iterator[None]:
    """Without dropout, as answers are written: else the ratio would not be 1 where nothing has moved."""
    modules = [run.models["policy"].module, *run.models["policy"].heads.values()]
    before = [m.training for m in modules]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)


def _row(model: Any, prompt: list[int], answer: list[int]) -> Tokens:
    """A prompt with its answer, whose tokens are learned."""
    if model.architecture == "encoder-decoder":
        return Tokens(prompt, [False] + [True] * len(answer), [model.decoder_start, *answer])
    return Tokens(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def _values(run: Forward, states: torch.Tensor) -> torch.Tensor:
    """[tokens] values of states [tokens, width]."""
    if run.task not in run.models["policy"].heads:
        raise UserError("ppo needs a head of one output: tasks: [{objective: ppo, head: value}].")
    said = run.head(states).float()
    if said.shape[-1] != 1:
        raise UserError(f"ppo needs a head of one output; this one has {said.shape[-1]}. Take head: value.")
    return said[:, 0]


def _said(run: Forward, rows: Sequence[Features], size: int = 16) -> tuple[list[float], list[float], list[float]]:
    """Of the tokens of all answers, row by row: log π, value, log ρ."""
    from luthier.engine.batches import collate

    model = run.models["policy"]
    found: tuple[list[float], list[float], list[float]] = ([], [], [])
    for at in range(0, len(rows), size):
        some = [{"input": row["input"]} for row in rows[at:at + size]]
        batch = collate(some, [str(i) for i in range(len(some))], model.tokenizer.pad_token_id or 0, model.device)["input"]
        output = run("policy", batch, layers=not run.splits["policy"])
        for kept, said in zip(found, (-output.nll(), _values(run, output.predicting()), -run("reference", batch).nll()),
                              strict=True):
            kept += said.tolist()
    return found


def _by_row(rows: Sequence[Features], flat: Sequence[float]) -> list[list[float]]:
    """Numbers of all tokens as one list an answer."""
    found, at = [], 0
    for row in rows:
        count = sum(row["input"].targets)  # type: ignore[union-attr]
        found.append(list(flat[at:at + count]))
        at += count
    return found


def _flat(batch: Mapping[str, Any], name: str) -> torch.Tensor:
    """[learned] numbers of a batch, row by row, without what fills the shorter rows up."""
    import torch

    counts = batch["input"].targets[:, 1:].sum(1)
    return batch[name][torch.arange(batch[name].shape[1], device=counts.device) < counts[:, None]]  # type: ignore[no-any-return]

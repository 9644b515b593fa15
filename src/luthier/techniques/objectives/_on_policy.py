"""What objectives share that learn from rewards of the policy's own answers: answering, rewarding, and weighing anew.

Answers, log-probabilities and losses are computed without dropout, so that π / π_old = 1 where nothing has moved. An answer cut
off at the length limit is worth 0 and is counted (`cut_off`). A row of data as it stands (validation, receipts) gives the
nll of its answer, which is not trained on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.kinds import Decoder, Features, Metric, Objective, Prediction, Tokens
from luthier.core.rng import Rng

if TYPE_CHECKING:
    import torch

    from luthier.engine.forward import Forward
    from luthier.engine.generation import Generated
    from luthier.engine.rendering import Render
    from luthier.engine.rollouts import Round


class OnPolicy(Objective):
    """Learn from the rewards of the policy's own answers."""

    roles: ClassVar[tuple[str, ...]] = ("reference",)
    on_policy: ClassVar[bool] = True
    reward: Slot[Metric] = Field(named("exact-match"), description="what an answer is worth: the value of this metric")
    decoder: Slot[Decoder] = Field(named("sample:temperature=1,top_p=1"), description="how answers are sampled")
    rollouts: int = Field(32, ge=1, description="prompts of a round")
    passes: int = Field(4, ge=1, description="how often a round's answers are passed over")
    stop_kl: float = Field(1.5, gt=0, description="KL of a token (nats) to the policy that wrote the answers, above which a "
                                                  "round is over")
    clip: float = Field(0.2, gt=0, description="how far a ratio may leave 1 to be learned from")

    def rows(self, example: Example, render: Render, rng: Rng) -> list[Features]:
        return [self.encode(example, render, rng)]  # an answer is to a whole prompt

    def encode(self, example: Example, render: Render, rng: Rng) -> Features:
        """`input`, the row as it stands, and the `prompt` that is answered."""
        return {"input": render.tokens(example), "prompt": tuple(render.prompt(example))}

    @abstractmethod
    def experience(self, given: Round) -> list[Features]:
        """Answers with their advantages, and what the policy said of them."""

    def spent(self, given: Round, rows: list[Features]) -> str:
        import torch

        with torch.no_grad(), as_written(given.run):
            logs, = asked(given.run, rows, lambda batch: (-given.run("policy", batch).nll(),))
        away = [b - a for row, now in zip(rows, logs, strict=True)
                for b, a in zip(row["logs"], now, strict=True)]  # type: ignore[arg-type]
        kl = sum(away) / len(away)
        return f"the policy is {kl:.2f} nats a token from the one that wrote the answers (stop_kl={self.stop_kl:g})" \
            if kl > self.stop_kl else ""

    def answered(self, given: Round, each: int = 1) -> tuple[list[Features], list[float]]:
        """`each` answers to each prompt, one after the other, as rows, and what they are worth.

        Raises:
            UserError: the reward gives an answer no number.
        """
        prompts: list[list[int]] = [list(row["prompt"]) for row in given.rows for _ in range(each)]  # type: ignore[arg-type]
        policy = given.run.models["policy"]
        made = given.ctx.engine.generate(policy, prompts, self.decoder, rng=given.rng.within("answers"),
                                         stop_ids=given.render.stop_ids)
        scores = self._scores(given, [e for e in given.examples for _ in range(each)], made)
        self._say(given, scores, made)
        tell(given.run, reward=scores, cut_off=[not g.stopped for g in made], answer_tokens=[g.tokens for g in made])
        return [{"input": _row(policy, p, list(g.ids))} for p, g in zip(prompts, made, strict=True)], scores

    def _scores(self, given: Round, examples: Sequence[Example], made: Sequence[Generated]) -> list[float]:
        said = [Prediction(e.id, text=g.text, stopped=g.stopped, tokens=g.tokens) for e, g in zip(examples, made, strict=True)]
        records = self.reward.score(examples, said, given.ctx)
        for record in records:
            if record["value"] is None:
                raise UserError(f"{self.info.name}: the reward {self.reward.info.name} has no value for row {record['id']}. A "
                                "reward must give every answer a number.")
            tell(given.run, **{f"reward_{n}": [v] for n, v in record.items() if n != "value" and isinstance(v, float | bool)})
        return [float(r["value"]) if g.stopped else 0.0 for r, g in zip(records, made, strict=True)]

    def _say(self, given: Round, scores: Sequence[float], made: Sequence[Generated]) -> None:
        """Log what keeps a round from teaching anything."""
        name = self.info.name
        if len(set(scores)) == 1 and len(scores) > 1:
            given.ctx.log(f"{name}: all {len(scores)} answers of this round are worth {scores[0]:g}: nothing tells them apart")
        if not all(g.stopped for g in made):
            given.ctx.log(f"{name}: {sum(not g.stopped for g in made)} of {len(made)} answers were cut off at "
                          f"max_new_tokens={self.decoder.max_new_tokens} and are worth 0")


def tell(run: Forward, **numbers: Sequence[float]) -> None:
    """Show the means of numbers beside the loss."""
    import torch

    run.measure(**{name: torch.tensor([float(v) for v in values]) for name, values in numbers.items()})


@contextmanager
def as_written(run: Forward) -> Iterator[None]:
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


def asked(run: Forward, rows: Sequence[Features], ask: Callable[[Any], Sequence[torch.Tensor]], size: int = 16
          ) -> list[list[list[float]]]:
    """For each number that `ask` gives of the learned tokens of a batch, [learned], its values as one list a row."""
    from luthier.engine.batches import collate

    model, found = run.models["policy"], []
    for at in range(0, len(rows), size):
        some = [{"input": row["input"]} for row in rows[at:at + size]]
        batch = collate(some, [str(i) for i in range(len(some))], model.tokenizer.pad_token_id or 0, model.device)["input"]
        found.append([said.tolist() for said in ask(batch)])
    return [_by_row(rows, [x for batch in found for x in batch[n]]) for n in range(len(found[0]))]


def flat(batch: Mapping[str, Any], name: str) -> torch.Tensor:
    """[learned] numbers of a batch, row by row, without what fills the shorter rows up."""
    import torch

    counts = answer_lengths(batch)
    return batch[name][torch.arange(batch[name].shape[1], device=counts.device) < counts[:, None]]  # type: ignore[no-any-return]


def answer_lengths(batch: Mapping[str, Any]) -> torch.Tensor:
    """[batch] learned tokens of each row."""
    return batch["input"].targets[:, 1:].sum(1)  # type: ignore[no-any-return]


def _row(model: Any, prompt: list[int], answer: list[int]) -> Tokens:
    """A prompt with its answer, whose tokens are learned."""
    if model.architecture == "encoder-decoder":
        return Tokens(prompt, [False] + [True] * len(answer), [model.decoder_start, *answer])
    return Tokens(prompt + answer, [False] * len(prompt) + [True] * len(answer))


def _by_row(rows: Sequence[Features], values: Sequence[float]) -> list[list[float]]:
    found, at = [], 0
    for row in rows:
        count = sum(row["input"].targets)  # type: ignore[union-attr]
        found.append(list(values[at:at + count]))
        at += count
    return found

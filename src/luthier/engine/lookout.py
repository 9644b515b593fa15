"""What a decoder that searches may ask: scores after any tokens, continuations by any role, and what an answer is worth.

Sequences are read anew each time they are asked about, rows that begin alike once: exact, and slower than a cache where
answers are long.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from luthier.core.errors import UserError
from luthier.core.example import Example, question
from luthier.core.kinds import Decoder, Metric, Prediction, Tokens
from luthier.core.rng import Rng
from luthier.engine.batches import collate
from luthier.engine.forward import hidden_states, packs, vocabulary_of
from luthier.engine.models import Model
from luthier.engine.scoring import BATCH_TOKENS

if TYPE_CHECKING:
    from luthier.engine.workshop import Engine


@dataclass
class Lookout:
    """The models by role, the tokens that end an answer, and the examples by prompt."""

    models: Mapping[str, Model]
    ends: frozenset[int]
    engine: Engine | None
    examples: Mapping[tuple[int, ...], Example]

    @classmethod
    def of(cls, models: Mapping[str, Model], ends: Sequence[int], engine: Engine | None, prompts: Sequence[Sequence[int]],
           examples: Sequence[Example] | None) -> Lookout:
        """`examples` belong to `prompts`; without them a prompt's own text is the question."""
        tokenizer = models["policy"].tokenizer
        given = [question(f"prompt-{i}", str(tokenizer.decode(list(p), skip_special_tokens=True)))
                 for i, p in enumerate(prompts)] if examples is None else [_asked(e) for e in examples]
        return cls(models, frozenset(ends), engine, {tuple(p): e for p, e in zip(prompts, given, strict=True)})

    @torch.no_grad()
    def scores(self, role: str, sequences: Sequence[Sequence[int]], last: Sequence[int] | None = None,
               prompts: Sequence[int] | None = None) -> list[torch.Tensor]:
        """[last, vocabulary] float32 scores of the tokens that follow the last `last` positions (1) of each sequence.

        prompts: how many tokens of each are its prompt, which an encoder-decoder reads apart.
        """
        model = self.models[role]
        last = last or [1] * len(sequences)
        rows = []
        for n, (ids, count) in enumerate(zip(sequences, last, strict=True)):
            # The token that closes a row is never seen: it only marks the position before it as one to be foretold.
            if model.architecture == "encoder-decoder":
                read = len(ids) if prompts is None else prompts[n]
                written = [model.decoder_start, *ids[read:], 0]
                rows.append(Tokens(list(ids[:read]), [i >= len(written) - count for i in range(len(written))], written))
            else:
                rows.append(Tokens([*ids, 0], [i >= len(ids) + 1 - count for i in range(len(ids) + 1)]))
        vocabulary, packed, found = vocabulary_of(model), packs(model), []
        size = max(1, BATCH_TOKENS // max(len(r.ids) for r in rows))
        for at in range(0, len(rows), size):
            some = rows[at:at + size]
            batch = collate([{"input": r} for r in some], [""] * len(some), model.tokenizer.pad_token_id or 0, model.device)
            said = hidden_states(model, batch["input"], vocabulary, packed=packed).logits().float()
            found += list(said.split(list(last[at:at + size])))
        return found

    def continued(self, role: str, sequences: Sequence[Sequence[int]], decoder: Decoder, rngs: Sequence[Rng],
                  prompts: Sequence[int] | None = None) -> list[list[int]]:
        """What one role writes after each sequence, the token that ends it included; equal work is done together."""
        from luthier.engine.generation import answers
        from luthier.engine.scheduling import Request, beginnings

        if self.models[role].architecture == "encoder-decoder":
            return self._stepwise(role, sequences, decoder, rngs, prompts)
        requests = [Request(list(s), decoder, rng, ends=self.ends) for s, rng in zip(sequences, rngs, strict=True)]
        shared = beginnings([r.prompt for r in requests])
        for _ in answers({"policy": self.models[role]}, list(zip(requests, shared, strict=True)), sorted(self.ends)):
            pass
        return [[*r.written, *(() if r.end is None else (r.end,))] for r in requests]

    def _stepwise(self, role: str, sequences: Sequence[Sequence[int]], decoder: Decoder, rngs: Sequence[Rng],
                  prompts: Sequence[int] | None) -> list[list[int]]:
        """The same for a model that reads the prompt apart: requests begin with an empty answer, these may not."""
        whole, going = [list(s) for s in sequences], list(range(len(sequences)))
        for place in range(decoder.max_new_tokens):
            said = torch.cat(self.scores(role, [whole[i] for i in going], None,
                                         [prompts[i] for i in going] if prompts else None)) if going else torch.empty(0)
            if not going:
                break
            drawn = [lambda r=rngs[i], at=place: float(r("token", at).random()) for i in going]
            for i, token in zip(going, decoder.choose(decoder.scores({"policy": said}), drawn).tolist(), strict=True):
                whole[i].append(token)
            going = [i for i in going if whole[i][-1] not in self.ends]
        return [w[len(s):] for w, s in zip(whole, sequences, strict=True)]

    def worth(self, metric: Metric, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]) -> list[float]:
        """The value of each answer (ids) to its prompt.

        Raises:
            UserError: the metric has no number for an answer, or one that is not finite.
        """
        from luthier.core.files import Journal
        from luthier.core.step import Ctx

        tokenizer = self.models["policy"].tokenizer
        asked = [replace(self.examples[tuple(p)], id=str(n)) for n, p in enumerate(prompts)]
        said = [Prediction(str(n), text=str(tokenizer.decode([i for i in ids if i not in self.ends], skip_special_tokens=True)
                                            ).strip(), stopped=bool(ids) and ids[-1] in self.ends, tokens=len(ids))
                for n, ids in enumerate(answers)]
        with tempfile.TemporaryDirectory() as folder:
            engine: Any = self.engine
            ctx = Ctx(Rng(0), Path(folder), Journal(Path(folder) / "journal.jsonl"), engine, roles=dict(self.models))
            values = [r["value"] for r in metric.score(asked, said, ctx)]
        if len(values) != len(said):
            raise UserError(f"The reward {metric.info.name} gives {len(values)} numbers to {len(said)} answers.")
        for text, value in zip(said, values, strict=True):
            if value is None or value != value or value in (float("inf"), float("-inf")):
                raise UserError(f"The reward {metric.info.name} gives {value!r} to the answer {text.text[:60]!r}. A decoder "
                                "that searches needs a finite number for each, from the question and the answer alone.")
        return [float(v) for v in values]


def _asked(example: Example) -> Example:
    """An example without what an answer is compared with: no decoder sees that."""
    return replace(example, turns=tuple(t for t in example.turns if not t.target), references=(), label=None, meta={},
                   rejected=None)

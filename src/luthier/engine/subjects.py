"""What an audit looks at: a run, a pair of models or data; its models are loaded when asked for, frozen, and never trained.

The model `before` tuning and the one `after` it are asked in the same way: with the template that the tuned model learned,
else with the one of their tokenizer, which must then be the same. Whatever they say is kept in the journal under the
model's identity and what was asked: a killed audit goes on, and of two equal models only one is asked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from luthier.core.artifact import Artifact
from luthier.core.errors import UserError
from luthier.core.example import Example
from luthier.core.identity import digest
from luthier.core.kinds import Decoder, Prediction, Tokens
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.engine.models import Model
    from luthier.engine.rendering import Render
    from luthier.engine.workshop import Engine

Role = Literal["before", "after"]
ROLES: tuple[Role, ...] = ("before", "after")
TRAIN = "train"
# Subsets that no training has seen, in the order in which they are looked for.
HELD_OUT = ("unseen", "test", "dev")
_SCORED_TOGETHER = 64  # rows between two lines of the journal


@dataclass
class Subject:
    """`base` is what the tuned weights rest on; `tuned` the weights after tuning (none: the base itself is looked at).

    `reference` is what tuning is compared with, where it is not the base. `examples` are the rows of the run by subset.
    """

    engine: Engine
    base: Artifact | None = None
    tuned: Artifact | None = None
    reference: Artifact | None = None
    examples: Artifact | None = None

    @classmethod
    def of(cls, inputs: Mapping[str, Artifact], engine: Engine) -> Subject:
        """The subject of a step's inputs `base`, `tuned`, `reference` and `examples`.

        Raises:
            UserError: the two models have different chat templates, so that their answers can't be compared.
        """
        subject = cls(engine, *(inputs.get(name) for name in ("base", "tuned", "reference", "examples")))
        subject._check_templates()
        return subject

    @property
    def kind(self) -> Literal["run", "pair", "data"]:
        """run: models and the rows one of them was trained on; pair: models alone; data: rows alone."""
        if self.base is None and self.tuned is None:
            return "data"
        return "run" if self.examples is not None else "pair"

    @property
    def same(self) -> bool:
        """Whether before and after are the same weights: then every change is exactly zero."""
        return self._source("before").identity == self._source("after").identity

    def model(self, role: Role) -> Model:
        """The model of a role, frozen and in evaluation mode, with the template that both are asked with."""
        import torch

        from luthier.engine.forward import packs, vocabulary_of

        source = self._source(role)
        rests = self.base if "base" in source.meta else None
        self._make_room(source)
        model = self.engine.load(rests, source) if rests is not None else self.engine.load(source)
        template = self._source("after").meta.get("template", {})
        if role == "after" or not template or model.heads:
            return model
        with torch.no_grad():  # what is found by trying is found once, for the model that is kept
            packs(model)
            vocabulary_of(model)
        return replace(model, template=template)

    def render(self, role: Role, rows: Sequence[Example] = ()) -> Render:
        """How examples become tokens for a role."""
        from luthier.engine.encoding import chats
        from luthier.engine.rendering import renderer

        return renderer(self.model(role), chats=chats(rows))

    @property
    def labels(self) -> bool:
        """Whether the model after tuning answers with labels."""
        return bool(self._source("after").meta.get("heads"))

    @property
    def encoder(self) -> bool:
        """Whether the models write nothing: encoders, with or without a head."""
        return str((self.base or self._source("after")).meta["architecture"]) == "encoder"

    @property
    def spoken(self) -> bool:
        """Whether a request is a message: the rows of the run are chats or, without rows, the model has a chat template."""
        from luthier.engine.chat import own_jinja

        rows = self.rows(TRAIN)
        if rows:
            return rows[0].spoken
        kept = self._source("after").meta.get("template", {})
        return bool(kept.get("chat")) if kept else bool(own_jinja(self.engine.tokenizer(self.base or self._source("after"))))

    def rows(self, subset: str) -> list[Example]:
        """The run's rows of one subset; none where there are none. In data that is not divided `train` is all of it."""
        if self.examples is None:
            return []
        if subset == TRAIN and self.examples.subsets == ["all"]:
            subset = "all"
        return list(self.examples.examples(subset)) if subset in self.examples.subsets else []

    def held_out(self) -> list[Example]:
        """Rows that were not trained on: the first of `unseen`, `test` and `dev` that holds any."""
        return next((rows for name in HELD_OUT if (rows := self.rows(name))), [])

    # --- what the models say -----------------------------------------------------------------------------------

    def token_scores(self, ctx: Ctx, role: Role, sides: Sequence[tuple[list[int], list[int]]]) -> list[list[float]]:
        """Log-probability of every token of given continuations of given prompts (ids), [rows][tokens], in nats."""
        from luthier.engine.scoring import score_tokens

        model, found = self.model(role), []
        for start in range(0, len(sides), _SCORED_TOGETHER):
            part = sides[start:start + _SCORED_TOGETHER]
            key = f"score/{digest({'model': model.identity, 'sides': [list(s) for s in part]})}"
            found += ctx.journal.do(key, lambda part=part: score_tokens(model, part))  # type: ignore[misc]
            ctx.progress(len(found), len(sides), "rows")
        return found

    def answer_scores(self, ctx: Ctx, role: Role, rows: Sequence[Example]) -> list[list[float]]:
        """Log-probability of every token of each row's answer, the one that ends it included."""
        render = self.render(role, rows)
        return self.token_scores(ctx, role, [parted(render.whole(row)) for row in rows])

    def text_scores(self, ctx: Ctx, role: Role, texts: Sequence[str]) -> list[list[float]]:
        """Log-probability of every token of plain texts after the start token; the first one is not predicted without it."""
        render = self.render(role)
        start = [render.tokenizer.bos_token_id] if render.tokenizer.bos_token_id is not None else []
        rows = [[*start, *render.encode(text)] for text in texts]
        return self.token_scores(ctx, role, [(ids[:1], ids[1:]) for ids in rows])

    def answers(self, ctx: Ctx, role: Role, rows: Sequence[Example], decoder: Decoder | str, *, repeats: int = 1
                ) -> list[list[Prediction]]:
        """What a role answers to each row, [rows][repeats]; equal draws for both roles."""
        prompts = [ids for ids in map(self.render(role, rows).prompt, rows) for _ in range(repeats)]
        said = [replace(p, id=rows[i // repeats].id)
                for i, p in enumerate(self.continued(ctx, role, prompts, decoder, rows))]
        return [said[i:i + repeats] for i in range(0, len(said), repeats)]

    def continued(self, ctx: Ctx, role: Role, prompts: Sequence[list[int]], decoder: Decoder | str,
                  rows: Sequence[Example] = ()) -> list[Prediction]:
        """What a role writes after token ids; `rows` say how it is asked elsewhere, and so what ends an answer."""
        made = self.engine.generate(self.model(role), prompts, decoder, rng=ctx.rng.within("answers"),
                                    stop_ids=self.render(role, rows).stop_ids, journal=ctx.journal, progress=ctx.progress)
        return [Prediction(str(i), text=g.text, stopped=g.stopped, tokens=g.tokens) for i, g in enumerate(made)]

    def classified(self, ctx: Ctx, rows: Sequence[Example]) -> list[Prediction]:
        """Labels with probabilities from the tuned model's head."""
        from luthier.engine.classification import classify

        return classify(self.model("after"), self._source("after"), rows, ctx)

    # --- parts -------------------------------------------------------------------------------------------------

    def _source(self, role: Role) -> Artifact:
        """The artifact that plays a role."""
        source = (self.tuned or self.base) if role == "after" else (self.reference or self.base or self.tuned)
        if source is None:
            raise UserError("There is no model here, only data. Name a run or a model folder: luthier audit RUN.")
        return source

    def _check_templates(self) -> None:
        if self.kind == "data" or self.same or self._source("after").meta.get("template"):
            return
        before, after = (self.engine.tokenizer(s).chat_template for s in map(self._source, ROLES) if "base" not in s.meta)
        if before != after:
            raise UserError("The chat templates of the two models differ: a change of answers could be a change of prompts. "
                            "Give both folders the same chat_template, or compare with another --base.")

    def _make_room(self, source: Artifact) -> None:
        """One model at a time where two may not fit."""
        from luthier.engine.memory import available_mb
        from luthier.engine.models import folder_of

        files = folder_of(self.base or source).glob("*.safetensors")
        if available_mb() < 3 * sum(p.stat().st_size for p in files) / 1e6:
            self.engine.forget()


def parted(row: Tokens) -> tuple[list[int], list[int]]:
    """Prompt and answer ids of a row: what stands before the last run of learned tokens, and those."""
    if row.decoder_ids is not None:
        return row.ids, row.decoder_ids[1:]
    end = len(row.targets) - row.targets[::-1].index(True)
    start = end
    while start > 0 and row.targets[start - 1]:
        start -= 1
    return row.ids[:start], row.ids[start:end]


def paired_change(subject: Subject, before: Sequence[float], after: Sequence[float], clusters: Sequence[str],
                  level: float = 0.95) -> tuple[tuple[float, float] | None, int | None]:
    """Interval of the mean of after - before, and about how many more questions would decide it.

    The house's paired comparison. Of equal weights the change is exactly 0, however few the questions.
    """
    from luthier.engine.statistics import paired

    if subject.same:
        return (0.0, 0.0), None
    result = paired(before, after, clusters, level=level)
    return (None if result.low is None or result.high is None else (result.low, result.high)), result.needed


def fields_of(subject: Subject) -> dict[str, Any]:
    """Names and identities of the models and rows that were looked at, for the record."""
    found = {name: getattr(subject, name) for name in ("base", "tuned", "reference", "examples")}
    return {name: {"identity": a.identity, **({"name": a.meta["name"]} if "name" in a.meta else {})}
            for name, a in found.items() if a is not None}

"""leti: a model's own programs, each with what the interpreter said, as texts to be learned.

Each problem (a `question` that a program continues or answers, `meta["tests"]` that call it) gets `samples` programs,
written after the good token. A program is cut at the first stop word and to its first function, run with the tests in the
sandbox, and told as

    <|good|> or <|bad|>  <|lang_feedback|>FEEDBACK<|/lang_feedback|>  PROBLEM  PROGRAM

without what stands between them here; FEEDBACK is the traceback, or why there is none (timeout, memory), and is left out
where there is nothing to say. The objective `leti` learns all of it; asked after the good token (`reward-token`) the model
gives good programs. Repeated, it trains itself. `feedback: binary` keeps the first token alone, `successes` only programs
that pass, without any token (rejection sampling), `shuffled` exchanges the feedback of failed programs (a control).
Where something else than tests says what is right, `verifier` is a metric: an answer is good where its value is above 0, and
what its record has as `feedback` is told of one that is not.

When it helps: problems with tests and no solutions, which a model solves now and then. Source: Wang et al. 2023, "LETI:
Learning to Generate from Textual Interactions" (seed 47).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.core.component import Slot, named
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, Part, Turn
from luthier.core.kinds import DataStep, Decoder, Metric, Prediction
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.engine.sandbox import Executed

GOOD, BAD, OPEN, CLOSE = "<|good|>", "<|bad|>", "<|lang_feedback|>", "<|/lang_feedback|>"
STOP_WORDS = ("\nclass", "\nassert", "\nprint", "\nif", '"""')
QUOTED = 128
_FUNCTION = re.compile(r"^(?:async )?def ", re.MULTILINE)


@dataclass(frozen=True)
class Attempt:
    """A program that was run: `cut` is what was left out of what the model wrote."""

    problem: Example
    program: str
    cut: str
    ended: Executed

    @property
    def feedback(self) -> str:
        """What there is to say: the traceback, or why there is none."""
        return "" if self.ended.ok else self.ended.text.strip() or self.ended.outcome


class Leti(DataStep, name="leti", seeds=[47]):
    """Programs that the model writes for problems with tests, told with what the interpreter says."""

    roles: ClassVar[tuple[str, ...]] = ("writer",)
    gives: ClassVar[Literal["same", "more", "other"]] = "other"
    samples: int = Field(128, ge=1, description="programs of each problem")
    feedback: Literal["textual", "binary", "shuffled", "successes"] = Field("textual", description="what is told of a program")
    cut_feedback: bool = Field(False, description="say it where something after the first function was cut off")
    decoder: Slot[Decoder] = Field(named("sample:temperature=1.0,top_p=1.0,max_new_tokens=256"),
                                   description="how programs are written")
    seconds: float = Field(5.0, gt=0, description="longest time of one program with its tests")
    verifier: Slot[Metric] | None = Field(None, description="a metric that judges answers instead of tests")

    def apply(self, rows: Iterator[Example], ctx: Ctx) -> Iterator[Example | Dropped]:
        """Texts, and `Dropped` for problems that can't be tried and programs that did not end.

        Raises:
            UserError: no model, a problem without tests, or a machine that can't confine a program.
        """
        if "writer" not in ctx.roles:
            raise UserError("leti needs the model that writes: inputs: {writer: base}.")
        problems = list(rows)
        bare = next((p.id for p in problems if not p.meta.get("tests")), None)
        if bare is not None and self.verifier is None:
            raise UserError(f"leti needs tests, and problem {bare} has none (meta.tests): nothing else says what is right. "
                            "Give tests, or a verifier (a metric).")
        broken = {} if self.verifier else self._broken(problems, ctx)
        yield from (Dropped(i, "tests can't be run", why) for i, why in broken.items())
        attempts, endless = self._attempts([p for p in problems if p.id not in broken], ctx)
        yield from endless
        yield from self._told(attempts, ctx)

    def _broken(self, problems: Sequence[Example], ctx: Ctx) -> dict[str, str]:
        """Problems whose tests fail for an import even where no program stands above them."""
        from luthier.engine.sandbox import Limits

        ended = ctx.engine.execute([p.meta["tests"] for p in problems], Limits(seconds=self.seconds))
        found = {p.id: e.text.strip().splitlines()[-1] for p, e in zip(problems, ended, strict=True)
                 if e.error in ("ImportError", "ModuleNotFoundError")}
        if found:
            ctx.log(f"leti: the tests of {len(found)} of {len(problems)} problems import what is not there; first: "
                    f"{next(iter(found))}: {next(iter(found.values()))}")
        return found

    def _attempts(self, problems: Sequence[Example], ctx: Ctx) -> tuple[list[Attempt], list[Dropped]]:
        """Every sampled program that ended or was cut to a whole function, as it was run."""
        from luthier.engine.rendering import renderer
        from luthier.engine.sandbox import Limits

        writer = ctx.roles["writer"]
        render = renderer(writer)
        asked = [p for p in problems for _ in range(self.samples)]
        good = "" if self.feedback == "successes" else GOOD
        prompts = [render._start() + render.encode(good + p.part("question")) for p in asked]
        made = ctx.engine.generate(writer, prompts, self.decoder, rng=ctx.rng.within("programs"), journal=ctx.journal,
                                   progress=ctx.progress)
        dropped, kept = [], []
        for n, (problem, answer) in enumerate(zip(asked, made, strict=True)):
            program, cut = first_function(problem.part("question"), str(render.decode(list(answer.ids))))
            if answer.stopped or cut:
                kept.append((problem, program, cut))
            else:
                dropped.append(Dropped(f"{problem.id}/{n % self.samples}", "too long",
                                       f"not ended after max_new_tokens={self.decoder.max_new_tokens}"))
        ended = self._verified(kept, ctx) if self.verifier else ctx.engine.execute(
            [f"{p.part('question')}{program}\n\n{p.meta['tests']}" for p, program, _ in kept], Limits(seconds=self.seconds))
        return [Attempt(*k, ended=e) for k, e in zip(kept, ended, strict=True)], dropped

    def _verified(self, kept: Sequence[tuple[Example, str, str]], ctx: Ctx) -> list[Executed]:
        """How the verifier judges each answer, as a program would have ended."""
        from luthier.engine.sandbox import Executed

        assert self.verifier is not None
        records = self.verifier.score([p for p, _, _ in kept], [Prediction(p.id, text=answer) for p, answer, _ in kept], ctx)
        return [Executed("ok" if (r["value"] or 0) > 0 else "error", "", str(r.get("feedback", "")), "", 0.0) for r in records]

    def _told(self, attempts: Sequence[Attempt], ctx: Ctx) -> Iterator[Example]:
        passed = sum(a.ended.ok for a in attempts)
        kinds = Counter(a.ended.error or a.ended.outcome for a in attempts)
        ctx.log(f"leti: {passed} of {len(attempts)} programs pass; " + ", ".join(f"{k} {n}" for k, n in sorted(kinds.items())))
        if attempts and passed in (0, len(attempts)):
            ctx.log(f"leti: {'no program passes' if not passed else 'every program passes'}: nothing sets good and bad apart")
        said = self._feedback(attempts, ctx)
        number: Counter[str] = Counter()
        for attempt, feedback in zip(attempts, said, strict=True):
            number[attempt.problem.id] += 1
            if self.feedback == "successes" and not attempt.ended.ok:
                continue
            text = f"{attempt.problem.part('question')}{attempt.program}" if self.feedback == "successes" else \
                told(attempt.ended.ok, feedback, attempt.problem.part("question"), attempt.program)
            name = f"{attempt.problem.id}/{number[attempt.problem.id]}"
            yield replace(attempt.problem, id=name, task="text", turns=(Turn("assistant", (Part(text),), target=True),),
                          references=(), cluster=attempt.problem.cluster or attempt.problem.id,
                          meta={"passed": attempt.ended.ok, "ended": attempt.ended.error or attempt.ended.outcome})

    def _feedback(self, attempts: Sequence[Attempt], ctx: Ctx) -> list[str]:
        """What is told of each program."""
        if self.feedback in ("binary", "successes"):
            return [""] * len(attempts)
        said = [a.feedback for a in attempts]
        if self.feedback == "shuffled":
            failed = [n for n, a in enumerate(attempts) if not a.ended.ok]
            others = [said[failed[k]] for k in ctx.rng("shuffled").permutation(len(failed))]
            for n, other in zip(failed, others, strict=True):
                said[n] = other
        return [" ".join(filter(None, (text, cut_off(a.cut) if self.cut_feedback else ""))) for text, a in
                zip(said, attempts, strict=True)]


def told(passed: bool, feedback: str, problem: str, program: str) -> str:
    """The text that is learned."""
    return (GOOD if passed else BAD) + (f"{OPEN}{feedback}{CLOSE}" if feedback else "") + problem + program


def cut_off(text: str) -> str:
    """What is said of what was cut off; nothing where nothing was."""
    return f"Only the first function is wanted, without: {text.strip()[:QUOTED]}" if text.strip() else ""


def first_function(problem: str, written: str) -> tuple[str, str]:
    """(What is kept of a written program, what is cut off): up to the first stop word, and to the first function.

    A function that the problem begins is the first one.
    """
    ends = [at for at in (written.find(word) for word in STOP_WORDS) if at >= 0]
    begun = 1 if _FUNCTION.search(problem) else 0
    functions = [m.start() for m in _FUNCTION.finditer(written)]
    ends += functions[1 - begun:2 - begun]
    at = min(ends, default=len(written))
    return written[:at].rstrip("\n"), written[at:]

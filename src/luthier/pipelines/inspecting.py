"""What was understood of a user's data, shown before anything is trained."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact, open_artifact
from luthier.core.component import build
from luthier.core.errors import UserError
from luthier.core.example import Dropped, Example, with_rejected
from luthier.core.files import Journal
from luthier.core.kinds import DroppedRow, Tokens
from luthier.core.rng import Rng
from luthier.core.step import Ctx
from luthier.pipelines.sources import format_of, is_artifact
from luthier.techniques.data._formats import FORMATS

if TYPE_CHECKING:
    from luthier.engine.rendering import Render

DEFAULT_BASE = "gemma3-270m"


def inspect_data(path: str, base: str | None, rows: int, max_tokens: int, template: str = "auto",
                 data_steps: Sequence[str] = (), **settings: Any) -> dict[str, Any]:
    """`about` in words and numbers, the first rows as they would be trained on, and counts of all rows: their `lengths`
    in tokens, and how many belong to each of the `sources` and `clusters`. Of documents also which were `refused`, and why.

    Without a base, rows are shown as the demo's base reads them, and documents are counted in words and signs. Each of
    `data_steps` is asked by itself which of the rows it would leave out (`flagged`); nothing is changed. `settings` are
    those of the step `read`: format, columns, reader.

    Raises:
        UserError: the data or the base can't be read; a data step that needs a model, or that reads other rows.
    """
    found = _inspected(path, base, rows, max_tokens, template, data_steps, settings)
    if data_steps and found["about"]["kind"] != "examples":
        raise UserError(f"--data-step looks at rows; {path} holds documents. See: luthier data curate")
    return found


def _inspected(path: str, base: str | None, rows: int, max_tokens: int, template: str, data_steps: Sequence[str],
               settings: dict[str, Any]) -> dict[str, Any]:
    from luthier.pipelines.steps.ingest import Ingest
    from luthier.pipelines.steps.read import Read, reads

    if is_artifact(path):
        given = open_artifact(Path(path))
        if given.kind == "documents":
            return _documents(given, rows, str(given.meta.get("counted_by", "")))
        if given.kind != "examples":
            raise UserError(f"{path} is an artifact of the kind '{given.kind}'; examples and documents are shown here.")
        return _flagged(_examples(given, base or DEFAULT_BASE, rows, max_tokens, [], template), given, data_steps)
    told = Path(path).is_dir() and not reads(Path(path))
    ingest = Ingest(paths=[path])
    suffixes = {suffix for reader in ingest.readers for suffix in getattr(reader, "suffixes", ())}
    if told or Path(path).suffix.lower() in suffixes:
        ingest.check()
        with TemporaryDirectory() as folder:
            ctx = _ctx(folder)
            if base is not None:
                from luthier.engine.models import load_tokenizer, resolve

                ctx.roles = {"tokenizer": load_tokenizer(resolve(base))}
            return _documents(ingest.run({}, ctx), rows, base or "words and signs")
    read = Read(path=path, **settings)
    read.check()
    with TemporaryDirectory() as folder:
        said: list[str] = []
        artifact = read.run({}, _ctx(folder, said))
        return _flagged(_examples(artifact, base or DEFAULT_BASE, rows, max_tokens, said, template), artifact, data_steps)


def _flagged(found: dict[str, Any], artifact: Artifact, data_steps: Sequence[str]) -> dict[str, Any]:
    """What was found, with the rows that each data step would leave out."""
    flagged: list[dict[str, str]] = []
    for spec in data_steps:
        step = build("data_step", spec)
        if step.roles or "Example" not in str(type(step).apply.__annotations__["rows"]):
            raise UserError(f"--data-step {spec}: only steps that look at rows without a model can be asked here. See: "
                            "luthier data curate")
        with TemporaryDirectory() as folder:
            rows = (e for name in artifact.subsets for e in artifact.examples(name))
            flagged += [{"step": step.info.name, "id": r.id, "reason": r.reason, "detail": r.detail}
                        for r in step.apply(rows, _ctx(folder)) if isinstance(r, Dropped)]
        found["about"][f"rows flagged by {step.info.name}"] = sum(f["step"] == step.info.name for f in flagged)
    return {**found, **({"flagged": flagged} if data_steps else {})}


def reading(sets: Sequence[str]) -> dict[str, Any]:
    """Settings of the step `read` from `FIELD=VALUE` texts: how rows are read that are to be shown."""
    from luthier.core.recipe import Recipe
    from luthier.pipelines.overrides import override

    text = {"steps": {"rows": {"use": "read", "path": "rows.jsonl"}}}
    made = override(Recipe(text), sets=[s if s.startswith("rows.") else f"rows.{s}" for s in sets])
    return {k: v for k, v in made.text["steps"]["rows"].items() if k not in ("use", "path")}


def _ctx(folder: str, said: list[str] | None = None) -> Ctx:
    log = (lambda text: None) if said is None else said.append
    return Ctx(Rng(0), Path(folder), Journal(Path(folder) / "journal.jsonl"), None, log=log)  # type: ignore[arg-type]


def _documents(artifact: Artifact, rows: int, counted_by: str) -> dict[str, Any]:
    refused = list(artifact.ledger())
    reasons = Counter(r["reason"].split(":")[0] for r in refused)
    passages = list(artifact.passages())
    about = {"kind": "documents", **{k: artifact.meta[k] for k in ("files", "documents", "passages", "tokens")},
             "counted by": counted_by, "sections": len({p.section for p in passages}),
             "left out": ", ".join(f"{n} {why}" for why, n in reasons.items()) or "nothing"}
    shown = [{"id": p.id, "text": f"{' / '.join(p.headings)} ({p.tokens} tokens)\n{p.text}"} for p in passages[:rows]]
    return {"about": about, "lengths": [p.tokens for p in passages], "shown": shown, "refused": refused,
            "sources": Counter(p.document for p in passages)}


def _examples(artifact: Artifact, base: str, rows: int, max_tokens: int, said: list[str],
              template: str) -> dict[str, Any]:
    from luthier.engine.chat import choose
    from luthier.engine.encoding import chats
    from luthier.engine.models import architecture_of, load_tokenizer, resolve
    from luthier.engine.rendering import Render
    from luthier.pipelines.report.questions import written

    folder = resolve(base)
    examples = [e for name in artifact.subsets for e in artifact.examples(name)]
    found = format_of(artifact)
    tokenizer = load_tokenizer(folder)
    chat = choose(tokenizer, base, template, chats(examples))
    render = Render(tokenizer, architecture_of(folder), max_tokens, chat=chat)
    labelled = FORMATS[found].learned_by in ("classify", "")
    lengths, dropped = [], Counter[str]()
    for example in examples:
        try:
            lengths += [len(tokens.ids) + len(tokens.decoder_ids or ()) for tokens in _rows(example, render, labelled)]
        except DroppedRow as drop:
            dropped[drop.dropped.reason] += 1
    about: dict[str, Any] = {
        "kind": "examples", "format": found, "rows": len(examples),
        **({"subsets": ", ".join(f"{n} {name}" for name, n in artifact.meta["rows"].items())}
           if artifact.subsets != ["all"] else {}),
        "learned by": FORMATS[found].learned_by or "no objective yet",
        **({"left out while reading": f"{artifact.meta['dropped']} rows"} if artifact.meta.get("dropped") else {}),
        "clusters": len({e.cluster for e in examples}), "base": base,
        **({"template": chat.name if chat else "plain"} if chats(examples) else {}),
        "tokens a row": f"{min(lengths)} to {max(lengths)}" if lengths else "none fits",
        "left out at max_tokens": f"{sum(dropped.values())} ({', '.join(dropped)})" if dropped else "none"}
    if any(e.task == "tags" for e in examples):
        tags = Counter(t for e in examples for turn in e.turns if turn.target for t in turn.parts[0].value)
        about["tags"] = dict(tags)
    elif found == "pair-score":
        scores = [float(e.label) for e in examples if e.label is not None]
        about["scores"] = f"{min(scores):g} to {max(scores):g}"
    elif labelled:
        about["labels"] = dict(Counter(str(e.label) for e in examples))
    if said:
        about["said while reading"] = "; ".join(said)
    return {"about": about, **written(artifact), "lengths": lengths, "clusters": Counter(e.cluster for e in examples),
            "sources": Counter(e.source for e in examples),
            "shown": [shown for e in examples[:rows] for side in _sides(e) for shown in _shown(side, render, labelled)]}


def _sides(example: Example) -> list[Example]:
    """Both answers of a preference, one after the other; any other example as it is."""
    if example.rejected is None:
        return [example]
    return [replace(example, id=f"{example.id}, chosen"), replace(with_rejected(example), id=f"{example.id}, rejected")]


def _rows(example: Example, render: Render, labelled: bool) -> list[Tokens]:
    """What training makes of one example: mostly one row."""
    if labelled:
        return [render.text(example)]
    if example.task == "text":
        return list(render.blocks(example))
    return [render.tokens(piece) for piece in render.pieces(example)]


def _shown(example: Example, render: Render, labelled: bool) -> list[dict[str, Any]]:
    """The rows of one example as text segments with their mask, decoded from the very ids that would be trained on."""
    if labelled:
        return [{"id": example.id, "text": f"{example.turns[0].text[:400]}\n{_told(example)}"}]
    try:
        rows = _rows(example, render, labelled)
    except DroppedRow as drop:
        return [{"id": example.id, "text": f"left out: {drop.dropped.reason}, {drop.dropped.detail}"}]
    names = [example.id] if len(rows) == 1 else [f"{example.id}/{n}" for n in range(1, len(rows) + 1)]
    return [_segments(name, tokens, render) for name, tokens in zip(names, rows, strict=True)]


def _told(example: Example) -> str:
    """What a row with labels, tags or a score says of its text."""
    if example.task != "tags":
        return f"-> {'score' if example.task == 'score' else 'label'}: {example.label}"
    tokens = example.turns[0].parts[1].value
    return "-> " + " ".join(f"{token}/{tag}" for token, tag in zip(tokens, example.turns[1].parts[0].value, strict=True))


def _segments(name: str, tokens: Tokens, render: Render) -> dict[str, Any]:
    pieces = list(zip(tokens.ids, tokens.targets, strict=True)) if tokens.decoder_ids is None else [
        *((i, False) for i in tokens.ids), *zip(tokens.decoder_ids, tokens.targets, strict=True)]
    segments = [{"text": render.tokenizer.decode([i for i, _ in group]), "learned": learned}
                for learned, group in groupby(pieces, key=lambda pair: pair[1])]
    return {"id": name, "segments": segments, "tokens": len(pieces), "learned": sum(t for _, t in pieces)}

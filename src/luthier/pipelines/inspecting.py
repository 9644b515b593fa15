"""What was understood of a user's data, shown before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from luthier.core.artifact import Artifact
from luthier.core.example import Example, with_rejected
from luthier.core.files import Journal
from luthier.core.kinds import DroppedRow, Tokens
from luthier.core.rng import Rng
from luthier.core.step import Ctx

if TYPE_CHECKING:
    from luthier.engine.rendering import Render

DEFAULT_BASE = "gemma3-270m"


def inspect_data(path: str, base: str | None, rows: int, max_tokens: int, template: str = "auto") -> dict[str, Any]:
    """`about` in words and numbers, the first rows as they would be trained on, and counts of all rows: their `lengths`
    in tokens, and how many belong to each of the `sources` and `clusters`.

    Without a base, rows are shown as the demo's base reads them, and documents are counted in words and signs.

    Raises:
        UserError: the data or the base can't be read.
    """
    from luthier.pipelines.steps.ingest import Ingest
    from luthier.pipelines.steps.read import Read

    if Path(path).is_dir() or Path(path).suffix.lower() in (".md", ".markdown", ".txt", ".rst", ".html", ".htm"):
        ingest = Ingest(paths=[path])
        ingest.check()
        with TemporaryDirectory() as folder:
            ctx = _ctx(folder)
            if base is not None:
                from luthier.engine.models import load_tokenizer, resolve

                ctx.roles = {"tokenizer": load_tokenizer(resolve(base))}
            return _documents(ingest.run({}, ctx), rows, base or "words and signs")
    read = Read(path=path)
    read.check()
    with TemporaryDirectory() as folder:
        said: list[str] = []
        artifact = read.run({}, _ctx(folder, said))
        return _examples(artifact, base or DEFAULT_BASE, rows, max_tokens, said, template)


def _ctx(folder: str, said: list[str] | None = None) -> Ctx:
    log = (lambda text: None) if said is None else said.append
    return Ctx(Rng(0), Path(folder), Journal(Path(folder) / "journal.jsonl"), None, log=log)  # type: ignore[arg-type]


def _documents(artifact: Artifact, rows: int, counted_by: str) -> dict[str, Any]:
    reasons = Counter(r["reason"].split(":")[0] for r in artifact.ledger())
    passages = list(artifact.passages())
    about = {"kind": "documents", **{k: artifact.meta[k] for k in ("files", "documents", "passages", "tokens")},
             "counted by": counted_by, "sections": len({p.section for p in passages}),
             "left out": ", ".join(f"{n} {why}" for why, n in reasons.items()) or "nothing"}
    shown = [{"id": p.id, "text": f"{' / '.join(p.headings)} ({p.tokens} tokens)\n{p.text}"} for p in passages[:rows]]
    return {"about": about, "lengths": [p.tokens for p in passages], "shown": shown,
            "sources": Counter(p.document for p in passages)}


def _examples(artifact: Artifact, base: str, rows: int, max_tokens: int, said: list[str],
              template: str) -> dict[str, Any]:
    from luthier.engine.chat import choose
    from luthier.engine.encoding import chats
    from luthier.engine.models import architecture_of, load_tokenizer, resolve
    from luthier.engine.rendering import Render

    folder = resolve(base)
    examples = list(artifact.examples("all"))
    tokenizer = load_tokenizer(folder)
    chat = choose(tokenizer, base, template, chats(examples))
    render = Render(tokenizer, architecture_of(folder), max_tokens, chat=chat)
    labelled = artifact.meta["format"] == "text-label"
    lengths, dropped = [], Counter[str]()
    for example in examples:
        try:
            lengths += [len(tokens.ids) + len(tokens.decoder_ids or ()) for tokens in _rows(example, render, labelled)]
        except DroppedRow as drop:
            dropped[drop.dropped.reason] += 1
    about: dict[str, Any] = {
        "kind": "examples", "format": artifact.meta["format"], "rows": len(examples),
        "clusters": len({e.cluster for e in examples}), "base": base,
        **({"template": chat.name if chat else "plain"} if chats(examples) else {}),
        "tokens a row": f"{min(lengths)} to {max(lengths)}" if lengths else "none fits",
        "left out at max_tokens": f"{sum(dropped.values())} ({', '.join(dropped)})" if dropped else "none"}
    if labelled:
        about["labels"] = dict(Counter(str(e.label) for e in examples))
    if said:
        about["said while reading"] = "; ".join(said)
    return {"about": about, "lengths": lengths, "clusters": Counter(e.cluster for e in examples),
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
        return [{"id": example.id, "text": f"{example.turns[0].text[:400]}\n-> label: {example.label}"}]
    try:
        rows = _rows(example, render, labelled)
    except DroppedRow as drop:
        return [{"id": example.id, "text": f"left out: {drop.dropped.reason}, {drop.dropped.detail}"}]
    names = [example.id] if len(rows) == 1 else [f"{example.id}/{n}" for n in range(1, len(rows) + 1)]
    return [_segments(name, tokens, render) for name, tokens in zip(names, rows, strict=True)]


def _segments(name: str, tokens: Tokens, render: Render) -> dict[str, Any]:
    pieces = list(zip(tokens.ids, tokens.targets, strict=True)) if tokens.decoder_ids is None else [
        *((i, False) for i in tokens.ids), *zip(tokens.decoder_ids, tokens.targets, strict=True)]
    segments = [{"text": render.tokenizer.decode([i for i, _ in group]), "learned": learned}
                for learned, group in groupby(pieces, key=lambda pair: pair[1])]
    return {"id": name, "segments": segments, "tokens": len(pieces), "learned": sum(t for _, t in pieces)}

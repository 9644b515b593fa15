"""`luthier adapt DOCS…`"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from luthier.cli import _shared as shared


def command(
    docs: Annotated[list[str] | None, typer.Argument(help="files and folders: text, HTML, PDF, Office, EPUB, code")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Python's language reference, with Gemma 3 270M")] = False,
    pico: Annotated[bool, typer.Option("--pico", help="with --demo: ten pages and random weights, in a minute")] = False,
    questions: Annotated[str | None, typer.Option("--questions", metavar="FILE", help="hand-written test questions "
                                                     "(JSON lines: id, set, question, answers, quote, page)")] = None,
    pretrain: Annotated[bool, typer.Option("--pretrain", help="a fifth arm: continued pretraining on the documents")] = False,
    paraphrases: Annotated[list[int] | None, typer.Option("--paraphrases", metavar="N", min=0, max=10, help="an arm "
                           "pretrained on each passage and N paraphrases of it; repeatable, at equal steps")] = None,
    arm: Annotated[list[str] | None, typer.Option("--arm", metavar="NAME", help="compare these arms only: base, tuned, "
                   "pretrained, pretrained-pN, each alone or with +retrieval; repeatable")] = None,
    tune_retriever: Annotated[bool, typer.Option("--tune-retriever", help="tune the encoder on the training questions; "
                              "it is used if it finds better on dev")] = False,
    clicks: Annotated[str | None, typer.Option("--clicks", metavar="FILE", help="with --tune-retriever: searches and what was "
                      "clicked (JSON lines: query, doc_id, clicks, impressions)")] = None,
    base: shared.Base = None, out: shared.Out = None, recipe: shared.RecipeOption = None, seed: shared.Seed = None,
    method: shared.Method = None, regularizer: shared.Regularizer = None, optimizer: shared.Optimizer = None,
    decoder: shared.Decoder = None, metric: shared.Metric = None, data_step: shared.DataStep = None,
    retriever: shared.Retriever = None, sets: shared.Sets = None, accept_terms: shared.Terms = None,
    exact: shared.Exact = False, fresh: shared.Fresh = False, as_json: shared.Json = False,
    executor: shared.Executor = "local",
) -> None:
    """Documents in; base, base+retrieval, tuned and tuned+retrieval out, compared on questions kept apart."""
    from luthier.core.errors import UserError
    from luthier.pipelines import arms, jobs
    from luthier.pipelines.overrides import override
    from luthier.pipelines.retrieving import with_tuned_retriever

    shared.accept(accept_terms)
    if demo and (docs or questions or recipe):
        raise UserError("--demo brings its own documents, questions and recipe; leave the others out.")
    if pico and not demo:
        raise UserError("--pico goes with --demo. For a small base on your own documents: --base pico.")
    if not demo and not docs and not recipe:
        raise UserError("Name files or folders with documents: luthier adapt DOCS. Or try: luthier adapt --demo")
    made = jobs.demo(pico) if demo else jobs.adapt(docs or [], recipe=recipe or "adapt", questions=questions)
    if arm and (pretrain or paraphrases):
        raise UserError("--arm names every arm; leave --pretrain and --paraphrases out and add --arm pretrained-p8.")
    if arm:
        made = arms.with_arms(made, arm)
    for count in dict.fromkeys([*([0] if pretrain else []), *(paraphrases or [])]):
        made = arms.with_pretrained(made, count)
    if clicks and not tune_retriever:
        raise UserError("--clicks goes with --tune-retriever.")
    if tune_retriever:
        made = with_tuned_retriever(made, clicks)
    parts = {"method": method or [], "regularizer": regularizer or [], "optimizer": optimizer or [],
             "decoder": decoder or [], "metric": metric or [], "data_step": data_step or [], "retriever": retriever or []}
    made = override(made, base=base, seed=seed, parts=parts, sets=sets or ())
    folder = out or Path("runs") / ("demo-pico" if pico else "demo" if demo else made.name.replace(" ", "-"))
    run = jobs.run(made, folder, fresh=fresh, exact=exact, watcher=shared.watcher(as_json), executor=executor)
    shared.finish(run, as_json)
    if not as_json and run.has("comparison"):
        luthier = shared.typed()
        print(f'Ask it: {luthier} ask {folder} "your question"')
        print(f"Serve it: {luthier} serve {folder}")
        print(f"Look at it: {luthier} ui {folder.parent}")

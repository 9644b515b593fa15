"""What the pages show, as HTML: made with the report's own pieces, so that the same thing looks the same in both."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from luthier.core.run import Run
from luthier.pipelines import report
from luthier.pipelines.asking import abstained, where
from luthier.pipelines.report.markup import ABSENT, Html, counted, details, duration, el, escape, join, moment, number, table
from luthier.ui.processes import Processes

PAGES = (("/", "Adapt"), ("/runs", "Runs"), ("/compare", "Compare"), ("/audit", "Audit"), ("/catalogue", "Catalogue"))
INTERRUPTED = 130
ENDED = {2: "refused", 3: "a limit is broken"}  # what a command's exit codes mean
LINES = 14  # of a log that are shown
OPEN_CARDS = 1  # a search with so few results shows them opened
MOST_CARDS = 40

# A button beside each command; without a script the command can still be marked and copied.
SCRIPT = """<script>document.addEventListener("click", (e) => {
  const b = e.target.closest("button[data-copy]"); if (!b) return;
  navigator.clipboard.writeText(b.dataset.copy).then(() => { const t = b.textContent; b.textContent = "copied";
    setTimeout(() => { b.textContent = t; }, 1500); });
});</script>"""


def head() -> str:
    """What stands in the head of every page: the report's style for what stands in `framed`, and the page's own."""
    style = (files("luthier.pipelines.report") / "style.css").read_text(encoding="utf-8").replace(":root", "&")
    own = (files(__package__) / "style.css").read_text(encoding="utf-8")
    return f"<style>.luthier {{\n{style}\n}}\n{own}</style>{SCRIPT}"


def framed(*content: Any) -> str:
    """HTML in the report's style."""
    return el("div", *content, class_="luthier")


def navigation(here: str) -> str:
    """Links to all pages."""
    links = (el("li", el("a", title, href=path, aria_current="page" if path == here else None)) for path, title in PAGES)
    return framed(el("nav", el("span", "Luthier", class_="brand"), el("ul", *links), class_="pages", aria_label="Pages"))


def title(name: str, about: str) -> str:
    """The head of a page."""
    return framed(el("h1", name), el("p", about, class_="about"))


def notice(text: str) -> str:
    """What went wrong, in words."""
    return framed(el("div", *(el("p", line) for line in text.splitlines()), class_="alarm", role="alert")) if text else ""


def quiet(text: str) -> str:
    """A remark."""
    return framed(el("p", text, class_="quiet"))


def copied(command: str) -> Html:
    """A command that can be copied."""
    return el("div", el("pre", command, tabindex="0"), el("button", "copy", type="button", data_copy=command), class_="command")


# --- runs ----------------------------------------------------------------------------------------------------------

def runs(found: Mapping[str, Run], processes: Processes, chosen: str = "") -> str:
    """The table of runs; each name leads to its run."""
    if not found:
        return quiet("There is no run here yet. Make one on the page Adapt, or with: luthier adapt --demo --pico")
    rows = [_row(name, run, processes, chosen) for name, run in found.items()]
    return framed(table("Runs", ["run", "recipe", "state", "base", "steps", "begun", "time in steps"], "ttttntn", rows,
                        class_="runs"))


def _row(name: str, run: Run, processes: Processes, chosen: str) -> list[Any]:
    record, steps = run.record, run.steps()
    base = next((run.step(n).meta.get("name") for n, s in steps.items() if s.get("use") == "base"), None)
    took = [s["seconds"] for s in steps.values() if isinstance(s.get("seconds"), (int, float))]
    link = el("a", name, href=f"/runs?run={name}", aria_current="true" if name == chosen else None)
    return [link, record.get("name") or ABSENT, state(name, run, processes), base or ABSENT, number(len(steps)),
            moment(record.get("started")), duration(float(sum(took)))]


def state(name: str, run: Run | None, processes: Processes) -> Html:
    """Whether it runs, is finished, or was stopped, as a chip."""
    code = processes.code(name)
    if processes.running(name):
        word, tone = "running", "partly"
    elif code not in (None, 0, INTERRUPTED):
        word, tone = ENDED.get(code, "failed"), "differs"
    elif code == 0 or (code is None and run is not None and run.record.get("state") == "finished"):
        word, tone = "finished", "agrees"
    else:
        word, tone = "not finished", ""
    return el("span", word, class_=f"chip {tone}".strip())


def watched(name: str, run: Run | None, processes: Processes, curve: bool = True) -> str:
    """A run from outside: its state, its command, the last lines it said, and its curve as far as it has come."""
    lines = processes.said(name)[-LINES:]
    said = el("pre", "\n".join(lines), class_="sample log", tabindex="0", aria_label="Last words") if lines else None
    command = copied(processes.command(name)) if processes.known(name) else None
    begun = curve and run is not None and run.record
    drawn = el("div", Html(report.parts(run, ["learning"])), class_="live") if run is not None and begun else None
    head = el("p", el("b", name), " ", state(name, run, processes), role="status")
    return framed(head, command, said, drawn)


# --- answers -------------------------------------------------------------------------------------------------------

def answers(found: Sequence[Mapping[str, Any]], waiting: Sequence[str] = ()) -> str:
    """Answers side by side, each with the passages it was shown, the sentence it points at marked."""
    columns = [_answer(a) for a in found] + [el("section", el("h3", arm), el("p", "writes …", class_="quiet"), class_="arm")
                                             for arm in waiting]
    return framed(el("div", *columns, class_="arms", aria_live="polite"))


def _answer(answer: Mapping[str, Any]) -> Html:
    cited = {c["number"]: c.get("sentence") or "" for c in answer["citations"]}
    passages = [el("li", el("p", el("b", where(dict(p))), " ", el("span", number(p["score"]), class_="quiet")),
                   el("p", marked(p["excerpt"], cited.get(n, ""))), class_="cited" if n in cited else None)
                for n, p in enumerate(answer["passages"], 1)]
    shown = el("ol", *passages) if passages else el("p", "This arm is shown no passages.", class_="quiet")
    note = "" if answer["stopped"] else ", cut off at the length limit"
    declined = el("p", el("span", "declines", class_="chip partly")) if abstained(dict(answer)) else None
    return el("section", el("h3", answer["arm"]), el("p", answer["answer"] or "(no answer)", class_="said"), declined,
              el("p", duration(answer["seconds"]), note, class_="quiet"), shown, class_="arm")


def marked(excerpt: str, sentence: str) -> Html:
    """An excerpt with the cited sentence marked; one that lies beyond it follows."""
    flat = " ".join(sentence.split())
    if not flat:
        return escape(excerpt)
    before, found, after = excerpt.partition(flat)
    if found:
        return join((before, el("mark", flat), after))
    return join((excerpt, " ", el("mark", flat)))


# --- the catalogue -------------------------------------------------------------------------------------------------

def cards(found: Sequence[Mapping[str, Any]], commands: Mapping[int, Sequence[str]], recorded: Mapping[int, Any]) -> str:
    """Techniques of the catalogue, each to be opened."""
    if not found:
        return quiet("Nothing in the catalogue holds all these words. Try fewer, or another one.")
    shown = [_card(seed, commands.get(seed["id"], ()), recorded.get(seed["id"], {}), len(found) <= OPEN_CARDS)
             for seed in found[:MOST_CARDS]]
    rest = len(found) - len(shown)
    more = el("p", counted(rest, "more technique"), ": one more word narrows the search.", class_="quiet") if rest else None
    return framed(el("p", counted(len(found), "technique"), ".", role="status"), *shown, more)


def _card(seed: Mapping[str, Any], commands: Sequence[str], record: Mapping[str, Any], opened: bool) -> Html:
    status = seed["status"] if seed["status"] != "-" else "not yet verified" if commands else "not here yet"
    tone = {"studied": "agrees", "verified": "agrees", "runs": "partly", "stale": "partly"}.get(status, "")
    summary = join((el("b", seed["name"]), " ", el("span", status, class_=f"chip {tone}".strip()), el("br"),
                    el("span", seed["summary"], class_="quiet")))
    to_type = [copied(command) for command in commands] or [
        el("p", "No component of it is registered here yet.", class_="quiet")]
    outcomes = {c["n"]: c["outcome"] for c in record.get("clauses", ())} if seed["status"] != "stale" else {}
    rows = [[str(o["n"]), o["text"], outcomes.get(o["n"], ABSENT)] for o in seed["oracles"]]
    return details(summary, el("p", el("i", seed["title"]), f" (no. {seed['id']}, {seed['kind']}, {seed['slug']})"),
                   el("h4", "To type"), *to_type, el("h4", "It works when"), el("p", _coded(seed["works_when"])),
                   _study(seed["result"]), el("h4", "What its tests hold it to, and what came of it here"),
                   table("Oracle", ["", "clause", "recorded here"], "ttt", rows, class_="oracle"), open_=opened)


def _coded(text: str) -> Html:
    """Text in which `words` between backticks are code."""
    return join(el("code", part) if n % 2 else part for n, part in enumerate(text.split("`")))


def _study(result: Mapping[str, Any] | None) -> Html | None:
    if not result:
        return None
    old = "" if result["current"] else ", of an earlier version"
    return join((el("h4", "Its claim, tried here"), el("p", el("b", result["verdict"]), f" at the {result['scale']} scale "
                 f"({result['world']}){old}: {result['why']}")))

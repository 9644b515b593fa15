"""Write the catalogue of seeds, `src/luthier/data/catalog.jsonl`, from a folder of seeds.

    python scripts/make_catalog.py SEEDS [--out FILE] [--show]

SEEDS holds `catalog.jsonl` (one paper a line) and `cards/NNN-slug.md` (one page a paper). From them come one line a
seed: what it is, the commands it must answer, the components that will realise it, and the clauses of its oracle. The
pages were written before the command line had its final names, so every command is put into the names of the house.
`--show` prints each command that changed and every clause, for reading.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

OUT = Path(__file__).resolve().parents[1] / "src" / "luthier" / "data" / "catalog.jsonl"
KINDS = ("method", "objective", "regularizer", "optimizer", "decoder", "metric", "audit", "data-step", "rule",
         "retriever", "recipe")

# ---------------------------------------------------------------- commands: from the pages' names to the house's

# `--set KEY=part` chose a part; now its kind does. Keys that are missing here edit a recipe path and stay.
PART_KEYS = {
    "audits": "audit", "mechanism": "audit", "metric": "metric", "metrics": "metric", "scorer": "metric",
    "use": "data-step", "synthesizer": "data-step", "curator": "data-step", "curate": "data-step",
    "selector": "data-step", "augmenter": "data-step", "inspect": "data-step", "source": "data-step",
    "format": "data-step", "rule": "rule", "optimizer": "optimizer",
    "benchmark": "recipe", "pipeline": "recipe", "recipe": "recipe", "model": "base", "base": "base",
}
FLAGS = {"how": "rule", "only": "audit", "model": "base", "methods": "method", "objectives": "objective",
         "recipes": "recipe"}
# A stage that is one component is named by its kind; every other stage is a recipe.
STAGES = {"sft": ("objective", "supervised"), "ppo": ("objective", "ppo"), "grpo": ("objective", "grpo"),
          "reward": ("objective", "reward"), "reinit": ("method", "reinit"), "paft": ("data-step", "paft")}
NAMES = {("objective", "sft"): "supervised", ("method", "bias-only"): "bitfit", ("method", "prefix"): "prefix-tuning",
         ("recipe", "warm"): "warmup"}

VALUE = r"""(?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|\([^)\s]*\)|[^\s`"\[\]{}();])+"""
TOKEN = re.compile(rf"luthier (?P<command>[a-z]+)|--(?P<flag>[a-z]+(?:-[a-z]+)*)(?:[ ](?!--)(?P<value>{VALUE}))?")


def house(text: str) -> str:
    """The text with every command in the names of the house."""
    command = ""

    def swap(found: re.Match) -> str:
        nonlocal command
        if found["command"]:
            command = found["command"]
            return found[0]
        flag, value, tail = found["flag"], *cut_tail(found["value"] or "")
        if flag == "resume":
            return ""
        return " ".join(options(flag, value, command)) + tail if value else found[0]

    text = TOKEN.sub(swap, re.sub(r"`(?=(?:audits|benchmark)=)", "`--set ", text))
    text = re.sub(r"luthier evaluate(?=[^`]*? --audit)", "luthier audit", text)
    return re.sub(r"(?<=\s)-o(?=\s)", "--out", text)


def cut_tail(value: str) -> tuple[str, str]:
    """The value without the comma, colon or full stop of the sentence around it, and that mark."""
    mark = re.search(r"(?<!\.)[.,:]$", value)
    return (value[:-1], mark[0]) if mark else (value, "")


def options(flag: str, value: str, command: str) -> Iterator[str]:
    """The house's options for one old option."""
    if flag == "set":
        for key, part in assignments(value):
            kind = PART_KEYS.get(key)
            if key == "use" and command == "audit":
                kind = "audit"
            if key == "source" and command != "data":  # elsewhere it names a domain, not a reader
                kind = None
            yield from named(kind, part) if kind else (f"--set {key}={part}",)
    elif flag == "stage":
        name, colon, rest = value.partition(":")
        kind, name = STAGES.get(name, ("recipe", name))
        yield from named(kind, name + colon + rest)
    elif flag == "method" and command in ("merge", "data"):
        yield from named("rule" if command == "merge" else "data-step", value)
    else:
        yield from named(FLAGS.get(flag, flag), value)


def assignments(value: str) -> Iterator[tuple[str, str]]:
    """`a=1,b=2` as pairs; the commas of `a=part:x=1,y=2` belong to the part."""
    if ":" in value.partition("[")[0].partition(",")[0]:
        yield tuple(value.split("=", 1))
        return
    held: list[str] = []
    for piece in [*commas(value), "end="]:
        if held and re.match(r"[\w.]+=", piece):
            yield tuple(",".join(held).split("=", 1))
            held = []
        held.append(piece)


def commas(text: str) -> list[str]:
    """The pieces between commas outside brackets and quotes."""
    return re.findall(r"""(?:"[^"]*"|\[[^\]]*\]|\{[^}]*\}|\([^)]*\)|[^,"\[({])+""", text)


def named(kind: str, value: str) -> Iterator[str]:
    """One `--kind part` for each part of a value that may be a list: `[a,b]`, `a,b:x=1`."""
    if kind not in KINDS:
        yield f"--{kind} {value}"
        return
    parts: list[str] = []
    for piece in commas(value[1:-1] if value.startswith("[") and value.endswith("]") else value):
        if parts and (re.match(r"\s*[\w.]+=", piece) or (":" in parts[-1] and "=" not in parts[-1])):
            parts[-1] += "," + piece
        else:
            parts.append(piece.strip())
    for part in parts:
        name, colon, rest = part.partition(":")
        if kind in ("method", "recipe"):
            rest = re.sub(r"(?:^|(?<=,))r=", "rank=", rest)
        yield f"--{kind} {NAMES.get((kind, name), name).replace('_', '-')}{colon}{rest}"


# ---------------------------------------------------------------- components: what the commands name

COMPONENT = re.compile(rf"--({'|'.join(KINDS)}) ([A-Za-z][\w@/.|+-]*)")
REGISTERED = {"data-step": "data_step", "rule": "weight_rule"}  # kinds whose flag is not their name
# Parts that nearly every command needs. They count where the seed is about them and nowhere else.
GENERIC = {"full", "lora", "adapter", "bitfit", "prefix-tuning", "prompt", "linear", "dense", "supervised", "classify",
           "causal-lm", "lm", "mlm", "adamw", "adalora", "perplexity", "accuracy", "exact-match"}
ABOUT = {"adapter": {"adapter"}, "adapt-or-finetune": {"adapter", "full"}, "bitfit": {"bitfit"}, "lora": {"lora"},
         "finetune-stability": {"adamw"}, "lora-asymmetry": {"lora"}, "lora-learns-less": {"lora"}, "maple": {"lora"},
         "mam-adapter": {"adapter"}, "multilingual-adapter": {"adapter"}, "peft-knowledge-editing": {"lora"},
         "personalized-code": {"full", "prefix-tuning"}, "petl-ast": {"adapter"}, "prefix-tuning": {"prefix-tuning"},
         "roberta": {"mlm"}, "telly": {"full"}, "vl-adapter": {"adapter"}}
# Parts that the pages name outside a command.
UNNAMED = {"enct5": [("head", "enct5")], "fireact": [("environment", "search")], "limit": [("metric", "judge")],
           "splinter": [("head", "qass")], "spaceqa": [("retriever", name) for name in ("bm25", "minilm", "colbert")],
           "web-agent-self-improve": [("environment", "webworld")]}


def components(slug: str, *texts: str) -> list[dict]:
    """The parts that the commands in the texts name, in order, each once."""
    found = [pair for text in texts for pair in COMPONENT.findall(text)]
    parts = dict.fromkeys((kind, name.rstrip(".")) for kind, names in found for name in names.split("|"))
    kept = [(kind, name) for kind, name in [*parts, *UNNAMED.get(slug, [])]
            if name and not name.endswith((".yaml", ".json"))
            and (name not in GENERIC or name in ABOUT.get(slug, ()))]
    return [{"kind": REGISTERED.get(kind, kind), "name": name} for kind, name in kept]


# ---------------------------------------------------------------- oracles: one claim a clause

ABBREVIATIONS = ("e.g", "i.e", "v", "vs", "cf", "incl", "approx", "resp", "w.r.t")
# Clauses that the rule cuts off but that cannot be tested without the one before, as the rule counts them.
JOINED = {
    "slick": (2, 3, 4), "t-sas": (4,), "prototypical-prompting": (2, 3), "dsee": (4,), "instag": (2,),
    "bio-mqm": (2, 3, 4), "skill-grafting": (5,), "flan": (2,), "t5-data-to-text": (3,), "tanda": (4,),
    "meta-pretraining": (4,), "smart": (3,), "petl-ast": (4,), "p-tuning-v2": (3,), "personalized-code": (3,),
    "wrapper-audit": (2,), "mftcoder": (2,), "intruder-dimensions": (3,), "iaa": (6, 7), "pit": (5,), "qgoft": (9,),
    "mam-adapter": (4,), "tts-speaker-adapters": (3,), "robofume": (5,), "ul2": (6,), "continual-code-apis": (4,),
    "ernie-3": (3,), "domain-robustness": (2,), "jaquad": (2, 3, 4), "instructretro": (3,), "booster": (6,),
    "alignment-elasticity": (2, 3), "pii-leak": (3, 4), "straggler-sharpness": (3,), "elastic-reset": (3,),
    "contextual-as2": (3,), "reallm": (4,),
}


def clauses(slug: str, text: str) -> list[dict]:
    """The claims of a paragraph, cut after sentences and after semicolons that stand outside brackets and quotes."""
    cuts, depth, quoted = [0], 0, False
    for at, mark in enumerate(text):
        quoted ^= mark == '"'
        depth = max(0, depth + (mark in "([{") - (mark in ")]}"))
        if depth == 0 and not quoted and (mark == ";" or ends_sentence(text, at)):
            cuts.append(at + 1)
    spans: list[tuple[int, int]] = []
    pieces = [cut for cut in zip(cuts, [*cuts[1:], len(text)], strict=True) if text[slice(*cut)].strip(" ;")]
    for n, (start, end) in enumerate(pieces, 1):
        spans.append((spans.pop()[0] if n in JOINED.get(slug, ()) else start, end))
    claims = [re.sub(r"^\([a-e]\) |(?<!\.)\.$", "", text[start:end].strip(" ;")) for start, end in spans]
    return [{"n": n, "text": claim} for n, claim in enumerate(claims, 1)]


def ends_sentence(text: str, at: int) -> bool:
    """Whether the character ends a sentence: a full stop or `.)` before a space, and no abbreviation."""
    if text[at + 1:at + 2] not in ("", " ") or not (text[at] == "." or text[at - 1:at + 1] == ".)"):
        return False
    word = text[:at].rpartition(" ")[2].lstrip("(")
    return bool(word) and word not in ABBREVIATIONS


# ---------------------------------------------------------------- corrections by hand

# (seed, found on its page, what it should say). Each must be found, so that none outlives its reason.
EDITS = (
    # commands: parts without their flag, and chains of stages, which are one recipe of the house
    ("personalized-code", "--method full, selective:…, prefix:…",
     "--method full --method selective:… --method prefix:…"),
    ("vega-v1", "--stage transductive / self-calibrated", "--stage transductive / --stage self-calibrated"),
    ("qa-memory-levels", "selector=qa-memory-levels returns", "--set selector=qa-memory-levels returns"),
    ("finetune-stability", "optimizer llrd, --stage reinit and", "--optimizer adamw:llrd=0.9, --stage reinit and"),
    ("slick", "curator=slick filters", "--set curator=slick filters"),
    ("tanda", "luthier tune --stage transfer:… --stage adapt:…", "luthier tune target.jsonl --recipe tanda:…"),
    ("tanda", "--stage transfer:data=as2.jsonl,lr=2e-5,epochs=2 --stage adapt:", "--recipe tanda:"),
    ("guardrails", "graddiff:retain=r.jsonl|idk", "graddiff:retain=r.jsonl --objective idk"),
    ("scalable-elicitation", "--stage weak:rows=500 --stage gold:rows=50,pick",
     "--recipe scalable-elicitation:weak=500,gold=50,pick"),
    ("machine-annotations", "--set use=label-value", "--set audits=label-value"),
    ("delta-come", "delta-svd|bitdelta|delta-uniform", "delta-svd|delta-uniform"),
    ("points", "--how greedy-soup:", "--how model-soup:kind=greedy,"),
    ("lora", "when --method is omitted", "when no method is named"),
    ("robofume", "(also cql, bc)", "(also --objective cql --objective bc)"),
    ("continual-code-apis", "also si, rwalk, a-gem, lwf;",
     "also --regularizer si --regularizer rwalk --regularizer a-gem --regularizer lwf ;"),
    ("telechat", "--stage sft --stage long --stage reward --stage ppo", "--recipe telechat"),
    ("telechat", "--stage sft:neftune_alpha=5 --stage long:", "--recipe telechat:"),
    ("paragraph-joint", "and `joint-rerank:k=5` run", "and `--objective joint-rerank:k=5` run"),
    ("llava", "luthier tune visual.jsonl --stage vlm-align --stage vlm-instruct` runs",
     "luthier tune visual.jsonl --recipe llava` runs"),
    ("chatqa", "`luthier tune --stage sft --stage context-qa`", "`luthier tune --recipe chatqa`"),
    ("refactor-rl", "--stage sft --stage ppo --objective refactoring`", "--recipe refactor-rl`"),
    ("refactor-rl", "--stage ppo|grpo", "--stage ppo --stage grpo"),
    ("tweac", "`tweac-extend`", "`--method tweac-extend`"),
    ("fair-ft-vs-icl", "--methods icl,full,lora", "--decoder icl --methods full,lora"),
    ("proofread", "`luthier tune pairs.jsonl --stage sft --stage grpo`",
     "`luthier tune pairs.jsonl --recipe proofread`"),
    ("low-shot-robustness", "--methods full,lp-ft,wise-ft,soup",
     "--methods full,lp-ft --rule wise-ft --rule model-soup"),
    ("random-selection-at-scale", "--set selectors=...,", "--data-step ... --set "),
    ("mera", "`--method mera:align=none`", "`--rule mera:align=none`"),
    ("transfer-q-star", "`controlled-decoding:...`", "`--decoder controlled-decoding:...`"),
    ("pii-leak", "exit 4 above", "exit 3 above"),
    ("as2-pretraining", "--stage transfer --stage target", "--recipe tanda"),
    ("order-matters", "--stage pretrain:data=high,steps=3000 --stage mix:", "--recipe order-matters:"),
    ("contextual-as2", "then `rerank:context=local`", "then `--objective rerank:context=local`"),
    ("radadapt", "--methods null,prefix-prompt,icl:k=2,prefix-tuning",
     "--decoder icl:k=2 --methods null,prefix-prompt,prefix-tuning"),
    ("scitune", "`--stage align:data", "`--stage scitune:data"),
    ("scitune", "`--stage instruct:data", "`--stage scitune:data"),
    ("instruction-residual", "--method delta-extract/delta-apply`",
     "--method delta-extract` then `--rule delta-apply`"),
    # oracles: a clause says what it means without the rest of the page
    ("s3ft", " Diagnostic, not a test: mean per-token NLL of t under M is usually below that of y in the accepted "
     "bucket.", ""),
    ("wrapper-audit", "probe accuracy below it", "probe accuracy below the planted wrapper"),
    ("telly", "(inner products preserved);", "(inner products preserved; the rotation is applied after pooling and "
     "before normalising, so norms are kept and RSA is exactly unchanged);"),
    ("telly", ' An "orthogonal rotation" is applied after pooling and before normalising: norms are kept, so RSA is '
     "exactly unchanged.", ""),
    ("mbpp", "; those that fail on", "; reference solutions that fail on"),
    ("rquge", "equal the ones above byte for byte",
     'equal "{q_c} \\n {D}" (a backslash and an n) and "{q} <q> {a_r} <r> {a_c} <c> {D}" byte for byte'),
    ("lora", "GPT-3 counts above follow", "GPT-3 counts (r=1 on Wq,Wv: 4.7M; r=4: 18.9M) follow"),
    ("telechat", "s(L) table above", "s(L) at 2, 4 and 12 times Ltrain is 3, 7 and 31"),
    ("jaquad", "equal the table above when", "equal 691 articles / 9,713 contexts / 31,748 questions in train and "
     "101 / 1,431 / 3,939 in dev when"),
    ("compacter", "T5-base counts above reproduced",
     "T5-base counts (2,376 an adapter, Compacter++ 104,704 = .047 %, Compacter .073 %) reproduced"),
    ("lora-asymmetry", "Closed forms above vs",
     "Closed forms (A=Q frozen: B* = Delta S Q^T (Q S Q^T)^-1; B=U frozen: A* = U^T Delta) vs"),
    ("vlguard", "loader counts equal the ones above", "loader counts: train 2000 images = 1023 unsafe + 977 safe -> "
     "2977 pairs, test 1000 = 442 unsafe + 558 safe -> 1558 questions"),
    ("qase", "the closed form above (1e-6)", "A_t = W_o(W_v C_t + b_v) + b_o (1e-6)"),
    ("booster", "There h after the step", "In this toy h after the step"),
    ("anytasktune", "the card's 3", "the task card's 3"),
    ("compacter", "checked by us", "checked"),
    ("alignment-elasticity", "checked by us", "checked"),
    ("lora-learns-less", "checked by us", "checked"),
    ("contextual-as2", "the 188 two-part model", "the two-part model of seed 188"),
)


def corrected(slug: str, *texts: str) -> list[str]:
    """The texts of one seed with the corrections that belong to it."""
    out = list(texts)
    for seed, old, new in EDITS:
        if seed == slug:
            if not any(old in text for text in out):
                raise SystemExit(f"{slug}: the correction of {old!r} finds nothing; remove it or renew it")
            out = [text.replace(old, new) for text in out]
    return out


# ---------------------------------------------------------------- the whole

def page(seeds: Path, seed: dict) -> dict[str, str]:
    """The sections of the seed's page, each as one line of text."""
    text = (seeds / "cards" / f"{seed['id']:03}-{seed['slug']}.md").read_text(encoding="utf-8")
    return {title: " ".join(body.split()) for title, body in re.findall(r"^## (.+)\n((?:(?!## ).*\n?)*)", text, re.M)}


def row(seeds: Path, seed: dict) -> dict:
    """One line of the catalogue."""
    slug, sections = seed["slug"], page(seeds, seed)
    texts = corrected(slug, seed["summary"], seed["works_when"], sections["User's view"], sections["Oracle"])
    summary, works_when, use, oracle = map(house, texts)
    return {"id": seed["id"], "slug": slug, "name": seed["name"], "title": seed["title"], "kind": seed["kind"],
            "home": seed["home"], "summary": summary, "works_when": works_when,
            "components": components(slug, works_when, use), "oracles": clauses(slug, oracle), "status": "-",
            "result": None}


def read(seeds: Path) -> list[dict]:
    """The seeds of a folder, by id."""
    lines = (seeds / "catalog.jsonl").read_text(encoding="utf-8").splitlines()
    found = sorted(map(json.loads, lines), key=lambda seed: seed["id"])
    named = {*JOINED, *ABOUT, *UNNAMED, *(slug for slug, _, _ in EDITS)}
    if strangers := named - {seed["slug"] for seed in found}:
        raise SystemExit(f"corrections name seeds that are not there: {', '.join(sorted(strangers))}")
    return found


def show(seeds: list[dict], rows: list[dict]) -> None:
    """Print what changed, the components and the clauses of every seed."""
    for seed, made in zip(seeds, rows, strict=True):
        print(f"\n{made['id']} {made['slug']} ({made['kind']}, {made['home']})")
        for field in ("summary", "works_when"):
            if seed[field] != made[field]:
                print(f"  was  {seed[field]}\n  is   {made[field]}")
        print("  by   " + ", ".join(f"{part['kind']} {part['name']}" for part in made["components"]))
        for clause in made["oracles"]:
            print(f"  {clause['n']:4} {clause['text']}")


def main(arguments: list[str] | None = None) -> None:
    """Read the seeds, write the catalogue."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("seeds", type=Path, help="folder with catalog.jsonl and cards/")
    parser.add_argument("--out", type=Path, default=OUT, help="file to write (default: the package data)")
    parser.add_argument("--show", action="store_true", help="print changed commands, components and clauses")
    given = parser.parse_args(arguments)
    seeds = read(given.seeds)
    rows = [row(given.seeds, seed) for seed in seeds]
    given.out.write_text("".join(json.dumps(made, ensure_ascii=False) + "\n" for made in rows), encoding="utf-8")
    if given.show:
        show(seeds, rows)
    counts = [len(made["oracles"]) for made in rows]
    print(f"{len(rows)} seeds, {sum(counts)} clauses (min {min(counts)}, median {statistics.median(counts):g}, "
          f"max {max(counts)} a seed), written to {given.out}")


if __name__ == "__main__":
    main()

"""Model card: what the model is, on what it rests, what was measured and what it can't do, as README.md.

The metadata follow the card format of the model hub (`model-index` with one result a set and metric). Every number is read
from the run's artifacts; what the run does not know is said to be unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from luthier.core.artifact import LICENSES, MODEL_KINDS, Artifact
from luthier.core.files import read_json, write_atomic
from luthier.core.finding import Finding
from luthier.core.run import Run
from luthier.engine.packages import PACKAGES
from luthier.pipelines.advice import advise
from luthier.pipelines.auditing import audits_of, sentence

FILE = "README.md"
LIBRARIES = {"adapter": "peft", "gguf": "llama.cpp"}  # others are read by transformers
RELATIONS = {"adapter": "adapter", "model": "finetune", "gguf": "quantized"}  # to the base, in the hub's words
MOST_REASONS = 4  # of what a step left out that are named


def write(run: Run) -> Path | None:
    """Write `RUN/README.md`; nothing where the run has tuned no model."""
    tuned = _tuned(run)
    if not tuned:
        return None
    path = run.folder / FILE
    inside = f"{tuned[0].folder.relative_to(run.folder).as_posix()}/"
    write_atomic(path, card(run, tuned[0], tuned[0].kind, (), inside))
    return path


def card(run: Run, tuned: Artifact, form: str, receipts: Sequence[Finding], inside: str = "") -> str:
    """The card of one tuned model of a run; `form` is the kind of the folder it will lie in, `inside` where from the card."""
    base, table = tuned.meta["base"], _table(run)
    arm = _arm_of(run, tuned)
    results = _results(table, arm, "text-classification" if tuned.meta.get("labels") else "question-answering")
    front = {
        "library_name": LIBRARIES.get(form, "transformers"), "base_model": base["name"],
        **({"base_model_relation": RELATIONS[form]} if form in RELATIONS else {}),
        **({"pipeline_tag": "text-classification"} if tuned.meta.get("labels") else {}),
        **_licence(base["name"]), "license_link": inside + LICENSES, "tags": ["luthier"],
        **({"model-index": [{"name": f"{run.record.get('name', 'run')}/{tuned.folder.name}", "results": results}]}
           if results else {}),
    }
    head = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    parts = [f"# {tuned.folder.name}: {base['name']} tuned by Luthier", _about(run, tuned, inside), _data(run),
             _evidence(run, table), _audits(run), _advice(run), _receipts(run, receipts), _loading(tuned, form),
             _limits(table, arm)]
    return f"---\n{head}---\n\n" + "\n\n".join(p for p in parts if p) + "\n"


def _tuned(run: Run) -> list[Artifact]:
    found = [run.step(n) for n in run.steps() if run.has(n)]
    trained = [a for a in found if a.kind in MODEL_KINDS and isinstance(a.meta.get("fit"), dict)]
    return sorted(trained, key=lambda a: a.folder.name != "tuned")


def _arm_of(run: Run, tuned: Artifact) -> str:
    from luthier.pipelines.asking import arms

    found = [name for name, node in arms(run).items() if node.inputs.get("tuned") == tuned.folder.name]
    return min(found, key=len, default="")


def _table(run: Run) -> list[dict[str, Any]]:
    return list(read_json(run.step("comparison").folder / "table.json")) if run.has("comparison") else []


def _results(table: list[dict[str, Any]], arm: str, task: str) -> list[dict[str, Any]]:
    """One result a set, with all of its metrics."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in table:
        if row["arm"] == arm:
            found.setdefault(row["set"], []).append(
                {"type": row["metric"], "value": round(row["value"], 4), "name": row["metric"]})
    return [{"task": {"type": task}, "dataset": {"name": f"{name} questions of the run", "type": name}, "metrics": metrics}
            for name, metrics in found.items()]


def _licence(base: str) -> dict[str, str]:
    """The licence of the base as the hub names it, where its terms are known here; the texts say what holds."""
    terms = PACKAGES[base].terms if base in PACKAGES else ""
    return {"license": terms} if terms else {"license": "other", "license_name": "see-licenses-folder"}


def _about(run: Run, tuned: Artifact, inside: str) -> str:
    base, fit = tuned.meta["base"], tuned.meta.get("fit", {})
    licences = sorted(p.name for p in (tuned.folder / LICENSES).glob("*"))
    rows = [("base", base["name"] + (f" ({base['note']})" if base.get("note") else "")),
            ("hash of the base", f"`{base['identity']}`"), ("form", tuned.kind),
            ("method", f"`{fit['method']}`" if "method" in fit else ""), ("optimizer steps", fit.get("steps")),
            ("trained parameters", fit.get("trained_parameters")),
            ("minutes of training", round(fit["seconds"] / 60, 1) if "seconds" in fit else None),
            ("seed", run.record.get("seed")), ("made", _made(run)),
            ("licences and terms", ", ".join(f"`{inside}{LICENSES}/{n}`" for n in licences))]
    told = "\n".join(f"- {k}: {v}" for k, v in rows if v not in (None, ""))
    bound = f"Use is bound by the terms of the base and of the data; their texts lie in `{inside}{LICENSES}/`."
    return f"## What it is\n\n{told}\n\n{bound}"


def _made(run: Run) -> str:
    """When, and with which versions."""
    versions = run.record.get("versions") or {}
    used = [f"{name} {versions[name]}" for name in ("luthier", "torch", "transformers", "peft") if name in versions]
    return ", ".join(filter(None, [str(run.record.get("started") or "")[:10], *used]))


def _data(run: Run) -> str:
    rows = []
    for name in run.steps():
        if run.has(name) and (a := run.step(name)).kind in ("documents", "examples"):
            counts = a.meta.get("rows") or {k: a.meta[k] for k in ("documents", "passages") if k in a.meta}
            told = ", ".join(f"{v} {k}" for k, v in counts.items() if not isinstance(v, (list, dict)))
            rows.append(f"| {name} | {told} | {_left_out(a)} |")
    return "## Data\n\n| step | rows | left out, and why |\n|---|---|---|\n" + "\n".join(rows) if rows else ""


def _left_out(step: Artifact) -> str:
    """How many rows a step left out, by the kind of reason: what follows a colon or names a row is in the ledger."""
    kinds = Counter(re.split(r" of |:", str(row["reason"]))[0] for row in step.ledger())
    named = [f"{count} {kind}" for kind, count in kinds.most_common(MOST_REASONS)]
    rest = kinds.total() - sum(count for _, count in kinds.most_common(MOST_REASONS))
    return ", ".join([*named, *([f"{rest} for other reasons"] if rest else [])]).replace("|", "\\|") or "none"


def _evidence(run: Run, table: list[dict[str, Any]]) -> str:
    if not table:
        return "## Evidence\n\nNothing was compared in this run."
    rows = [f"| {r['set']} | {r['arm']} | {r['metric']} | {r['value']:.3f} | "
            + (f"{r['low']:.3f} to {r['high']:.3f}" if r.get("low") is not None else "–")
            + f" | {r['questions']} | {r['clusters']} |" for r in table]
    level = run.step("comparison").meta.get("level", 0.95)
    return (f"## Evidence\n\n| set | arm | metric | value | {level:.0%} interval | questions | sections |\n"
            "|---|---|---|---|---|---|---|\n" + "\n".join(rows))


def _advice(run: Run) -> str:
    told = [f"- {a.text}" for a in advise(run)]
    return "## Advice\n\n" + "\n".join(told) if told else ""


def _audits(run: Run) -> str:
    told = [f"- {sentence(f)}" for f in audits_of(run)]
    return "## Audits\n\nBefore -> after tuning.\n\n" + "\n".join(told) if told else ""


def _receipts(run: Run, own: Sequence[Finding]) -> str:
    kept = [f for f in run.findings() if f.verdict in ("agrees", "differs")]
    told = [f"{sum(f.verdict == 'agrees' for f in kept)} of {len(kept)} receipts of the run agree."] if kept else []
    told += [f"- {f.name}: {f.verdict}" + (f", largest distance {f.difference:.1e}, at most {f.tolerance:.1e} ({f.detail})"
             if f.difference is not None and f.tolerance is not None else f" ({f.detail})") for f in own]
    return "## Receipts\n\n" + "\n".join(told) if told else ""


def _loading(tuned: Artifact, form: str) -> str:
    if form == "adapter":
        code = ("from peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n\n"
                f"base = AutoModelForCausalLM.from_pretrained(\"PATH OF {tuned.meta['base']['name']}\")\n"
                "model = PeftModel.from_pretrained(base, \"THIS FOLDER\")")
    elif form == "model":
        code = ("from transformers import AutoModelForCausalLM\n\n"
                "model = AutoModelForCausalLM.from_pretrained(\"THIS FOLDER\")")
    elif form == "gguf":
        return ("## How to load it\n\n```console\nllama-cli -m model.gguf\nollama create docs -f Modelfile\n```\n\n"
                "Prompts must be written as in training: see `Modelfile`, and `template` in `luthier.json`.")
    else:
        return "## How to load it\n\nThis is a set of moved tensors: `luthier export RUN --to model` makes full weights of it."
    return f"## How to load it\n\n```python\n{code}\n```\n\nAn encoder loads as `AutoModel`, an encoder-decoder as " \
           "`AutoModelForSeq2SeqLM`. Prompts must be written as in training: see `template` in `luthier.json`."


def _limits(table: list[dict[str, Any]], arm: str) -> str:
    mine = [r for r in table if r["arm"] == arm]
    told = ["It was measured on the questions above and on nothing else; other uses are unmeasured.",
            "The verdicts speak of this model, trained under one seed, not of the method."]
    abstains = next((r for r in mine if r["metric"] == "abstains" and r["set"] == "unanswerable"), None)
    if abstains:
        told.append(f"It declines {abstains['value']:.0%} of {abstains['questions']} questions that the documents do not "
                    "answer.")
    else:
        told.append("Whether it declines questions that it can't answer was not measured.")
    return "## Limits\n\n" + "\n".join(f"- {t}" for t in told)

"""What a path on the command line is: an artifact that a step left, rows, or documents."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from luthier.core.artifact import RECORD, Artifact, open_artifact
from luthier.core.errors import UserError
from luthier.techniques.data._formats import FORMATS, TASKS


def is_artifact(path: str) -> bool:
    """Whether a path is the folder of an artifact."""
    return (Path(path) / RECORD).is_file()


def source(path: str, kinds: tuple[str, ...]) -> dict[str, Any]:
    """The step that a recipe reads a path with: `existing` for an artifact, `read` for rows, `ingest` for documents.

    Raises:
        UserError: there is no such path, or it is an artifact of another kind than those wanted.
    """
    from luthier.pipelines.steps.read import reads

    if is_artifact(path):
        kind = open_artifact(Path(path)).kind
        if kind not in kinds:
            raise UserError(f"{path} is an artifact of the kind '{kind}'; wanted: {' or '.join(kinds)}.")
        return {"use": "existing", "path": path, "kind": kind}
    if not Path(path).exists():
        raise UserError(f"There is no file or folder '{path}'.")
    if "examples" in kinds and (kinds == ("examples",) or reads(Path(path))):
        return {"use": "read", "path": path}
    if reads(Path(path)):
        raise UserError(f"{path} holds rows; documents are wanted here (text, Markdown, HTML, …).")
    return {"use": "ingest", "paths": [path]}


def format_of(artifact: Artifact) -> str:
    """The format of an artifact's examples: as its reader noted it, else by the task of the first.

    Raises:
        UserError: there is no example in it.
    """
    noted = artifact.meta.get("format")
    if noted in FORMATS:
        return str(noted)
    first = next((e for name in artifact.subsets for e in islice(artifact.examples(name), 1)), None)
    if first is None:
        raise UserError(f"{artifact.folder} holds no examples.")
    return TASKS.get(first.task, "question-answer")

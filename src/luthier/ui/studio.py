"""What the pages share: the folder of runs, their processes, what was dropped, and the arms that can be asked."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.core.errors import UserError, nearest
from luthier.core.recipe import Recipe
from luthier.core.run import Run
from luthier.ui.processes import FOLDER, Processes
from luthier.ui.uploads import Most, take

DOCUMENTS = "documents"
SENT = "sent"
LONGEST_QUESTION = 4_000  # characters
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,59}")


@dataclass(frozen=True)
class Order:
    """What the page Adapt was asked for."""

    name: str
    files: Sequence[Path] = ()
    questions: Sequence[Path] = ()
    demo: bool = False
    base: str = ""
    method: str = ""
    seed: int | None = None
    terms: str = ""


class Studio:
    """A folder of runs, and everything that a page may do with it."""

    def __init__(self, root: Path, most: Most | None = None) -> None:
        self.root, self.most = root, most or Most()
        self.processes = Processes(root)
        self.sent = root / FOLDER / SENT  # where files lie that were just sent
        self._asking = threading.Lock()
        self._asked: tuple[Any, Any] = (None, None)

    # --- runs --------------------------------------------------------------------------------------------------

    def runs(self) -> dict[str, Run]:
        """The runs of the folder by name, the latest first."""
        found = {path.parent.name: Run(path.parent) for path in self.root.glob("*/run.json")}
        return dict(sorted(found.items(), key=lambda item: str(item[1].record.get("started")), reverse=True))

    def open(self, name: str | None) -> Run:
        """The run of a name. Raises UserError where there is none."""
        found = self.runs()
        if not name:
            raise UserError("Choose a run." if found else f"There is no run in {self.root} yet. Make one on the page Adapt.")
        if name not in found:
            raise UserError(f"There is no run '{name}' in {self.root}. {nearest(name, found)}")
        return found[name]

    # --- a new run ---------------------------------------------------------------------------------------------

    def prepared(self, order: Order) -> tuple[list[str], list[str]]:
        """Paths that are adapted to, and the command's arguments; what was dropped is kept beside the runs.

        Raises:
            UserError: a name that is none or taken, or files that are refused.
        """
        if not _NAME.fullmatch(order.name):
            raise UserError("Give the run a name of letters, digits, '-' and '_', which begins with a letter or digit.")
        folder = self.root / order.name
        if folder.exists() or self.processes.running(order.name):
            raise UserError(f"There is a run '{order.name}' already. Give this one another name.")
        if order.name == DOCUMENTS:
            raise UserError(f"'{DOCUMENTS}' is where dropped files are kept. Give the run another name.")
        told = [f"--out={folder}", *([f"--base={order.base}"] if order.base else []),
                *([f"--method={order.method}"] if order.method else []),
                *([f"--seed={order.seed}"] if order.seed is not None else []),
                *([f"--accept-terms={order.terms}"] if order.terms else [])]
        if order.demo:
            if order.files or order.questions:
                raise UserError("The demo brings its own documents and questions. Take yours away, or don't tick it.")
            return [], ["adapt", "--demo", "--pico", *told]
        return self._own(order, told)

    def _own(self, order: Order, told: list[str]) -> tuple[list[str], list[str]]:
        from luthier.pipelines.planning import command_for

        place = self.root / DOCUMENTS / order.name
        files = take(order.files, place / "files", self.most, self.sent)
        paths = [str(files[0] if len(files) == 1 else place / "files")]
        command = command_for(paths)
        if order.questions:
            if command == "tune":
                raise UserError("Questions of your own go with documents; these are rows, a part of which is kept for the "
                                "test.")
            told = [*told, f"--questions={take(order.questions, place / 'questions', self.most, self.sent)[0]}"]
        return paths, [command, *paths, *told]

    def inspected(self, order: Order, paths: list[str]) -> dict[str, Any]:
        """What `luthier data inspect` says of one path."""
        from luthier.engine.packages import accept
        from luthier.pipelines.inspecting import inspect_data
        from luthier.pipelines.planning import command_for

        if order.terms:
            accept(order.terms)
        base = order.base if command_for(paths) == "tune" and order.base else None
        return inspect_data(paths[0], base, 3, 512)

    def recipe(self, order: Order, paths: list[str]) -> Recipe:
        """The recipe that its command would run."""
        from luthier.engine.packages import accept
        from luthier.pipelines import jobs, planning
        from luthier.pipelines.overrides import override

        if order.terms:
            accept(order.terms)
        questions = next((str(p) for p in sorted((self.root / DOCUMENTS / order.name / "questions").glob("*"))), None)
        made = jobs.demo(True) if order.demo else planning.recipe_for(paths, questions=questions if order.questions else None)
        return override(made, base=order.base or None, seed=order.seed,
                             parts={"method": [order.method] if order.method else []})

    # --- asking ------------------------------------------------------------------------------------------------

    def answers(self, name: str, question: str, arms: Sequence[str]) -> Iterator[dict[str, Any]]:
        """What each arm of a run answers, one after the other, as `luthier ask` gives it.

        Raises:
            UserError: nothing was asked, too much, no arm was chosen, or a control token is in it.
        """
        if not question.strip():
            raise UserError("The question is empty.")
        if len(question) > LONGEST_QUESTION:
            raise UserError(f"The question has {len(question):,} characters; {LONGEST_QUESTION:,} are the most.")
        if not arms:
            raise UserError("Choose at least one arm.")
        run = self.open(name)
        with self._asking:
            catalogue = self._catalogue(run)
            for arm in arms:
                try:
                    served = catalogue.arm(f"{run.folder.resolve().name}/{arm}")
                except LookupError as error:
                    raise UserError(error.args[0]) from None
                served.harmless(question, "The question")
                yield served.asker.ask(question, arm=served.arm)

    def _catalogue(self, run: Run) -> Any:
        """The arms of one run, kept until another one is asked or it changes."""
        from luthier.serving.served import Catalogue

        key = (run.folder.resolve(), (run.folder / "run.json").stat().st_mtime_ns)
        if self._asked[0] != key:
            self.close()
            self._asked = (key, Catalogue([run.folder]))
        return self._asked[1]

    def close(self) -> None:
        """Let go of the models that were asked."""
        if self._asked[1] is not None:
            self._asked[1].shelf.desk.close()
        self._asked = (None, None)

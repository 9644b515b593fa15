"""The base model as an artifact: found, converted once, checked, its licence files beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from luthier.core.artifact import Artifact, copy_licenses, seal
from luthier.core.finding import Finding, receipt
from luthier.core.step import Ctx, Step


class Base(Step, name="base"):
    """A pretrained model by name, local folder or hub id: where it is, what it is, under which terms."""

    output: ClassVar[str] = "model"
    seeded: ClassVar[bool] = False
    model: str = Field(description="a packaged model (luthier list base), a local folder with safetensors, or a hub "
                                   "id org/name[@revision]")
    quantize: Literal["none", "nf4"] = Field("none", description="nf4: frozen weights in 4 bits, for adapters on a GPU")

    def check(self) -> None:
        """Refuse unknown bases, terms not accepted and models larger than the free memory."""
        from luthier.engine.memory import require_mb
        from luthier.engine.models import check_base
        from luthier.engine.quantized import check

        check(self.quantize, self.model)
        require_mb(check_base(self.model) * 1.2, f"Loading {self.model}")

    def content(self) -> dict[str, Any]:
        """The package's version, or the hash of a local folder's files: a changed folder is another base."""
        from luthier.engine.models import base_identity, resolve
        from luthier.engine.packages import PACKAGES, version_of

        if self.model in PACKAGES:
            return {"package": version_of(self.model)}
        return {"base": base_identity(resolve(self.model))}

    def run(self, inputs: Mapping[str, Artifact], ctx: Ctx) -> Artifact:
        """Write where the model is; its weights stay in the cache or the user's folder."""
        from luthier.engine.hub import is_hub_id, pinned
        from luthier.engine.models import architecture_of, base_identity, resolve
        from luthier.engine.packages import PACKAGES, is_converted
        from luthier.engine.quantized import identity

        if self.model in PACKAGES and not is_converted(self.model):
            ctx.log(f"converting {self.model} to {PACKAGES[self.model].megabytes} MB of safetensors, once")
        folder = resolve(self.model)
        bring_terms(folder, ctx.folder)
        note = PACKAGES[self.model].note if self.model in PACKAGES else ""
        named = self.model in PACKAGES or is_hub_id(self.model)
        name = self.model.partition("@")[0] if named else folder.name
        low = {} if self.quantize == "none" else {"quantize": self.quantize}
        note = ", ".join(filter(None, (note, "4 bits (NF4)" if low else "")))
        return seal("model", ctx.folder, identity=identity(base_identity(folder), self.quantize), name=name, note=note,
                    path=str(folder), architecture=architecture_of(folder), **low, **pinned(folder))

    def receipts(self, inputs: Mapping[str, Artifact], artifact: Artifact, ctx: Ctx) -> list[Finding]:
        """The weights are what their checksum says."""
        from luthier.core.files import read_json
        from luthier.core.identity import hash_folder

        record = Path(artifact.meta["path"]) / "checksum.json"
        if not record.exists():
            return []
        same = hash_folder(record.parent, frozenset({"checksum.json"})) == read_json(record)["sha256"]
        return [receipt("base/checksum", 1, int(same), unit="same bytes", detail="cached weights against their checksum")]


def bring_terms(folder: Path, target: Path) -> None:
    """Copy the licence files of a model folder to `target`/licenses, or a note that none was found."""
    if (folder / "licenses").exists():
        copy_licenses([folder], target)
        return
    patterns = ("LICENSE*", "NOTICE*", "*TERMS*", "USE_POLICY*", "README.md")
    texts = [p for pattern in patterns for p in folder.glob(pattern)]
    (target / "licenses").mkdir(exist_ok=True)
    for path in texts:
        (target / "licenses" / path.name).write_bytes(path.read_bytes())
    if not texts:
        note = f"No licence file was found beside the base '{folder.name}'. Find its terms before you share.\n"
        (target / "licenses" / "NOT-STATED.txt").write_text(note)

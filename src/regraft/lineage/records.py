"""What a lineage is: where each tensor of a saved model came from, kept with the weights.

It is JSON text under the key `regraft.lineage` of a file's metadata, which all writers keep.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from regraft import markup
from regraft.errors import FormatError
from regraft.operations import AnyOp
from regraft.plans import Spec

KEY = "regraft.lineage"


class Origin(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where one tensor of a saved model came from, and what training did to it.

    `state`: `loaded` (as it came), `frozen` or `tuned` where it is known how training treated
    it, `fresh` (no source), `counter` (no output depends on it), `changed` (the file holds other
    values than were saved with this lineage; only `checked` says so). `loaded_hash` is what was
    written, `hash` what was saved. `file` names the source where it is another than the lineage's.
    """

    state: Literal["loaded", "frozen", "tuned", "fresh", "counter", "changed"]
    hash: str
    sources: tuple[str, ...] = ()
    ops: tuple[AnyOp, ...] = ()
    kind: str = "fresh"
    loaded_hash: str = ""
    file: str = ""


class Lineage(msgspec.Struct, frozen=True):
    """Lineage of a saved model. `source` is a file's name, `source_hash` its sha256.

    `parent` is the lineage of the source itself as JSON, `""` where it had none. `training` holds
    settings, `versions` those of the libraries at work, `also` further sources by name with their
    sha256 (merged files, a head from another one).
    """

    source: str
    source_hash: str
    container: str
    tensors: dict[str, Origin]
    source_tensors: dict[str, Spec] = {}
    verified: bool = False
    training: dict[str, str] = {}
    versions: dict[str, str] = {}
    parent: str = ""
    schema_version: int = 1
    also: dict[str, str] = {}

    def counts(self) -> dict[str, int]:
        """Number of tensors by state."""
        states = [origin.state for origin in self.tensors.values()]
        return {state: states.count(state) for state in dict.fromkeys(states)}

    def to_json(self) -> dict[str, Any]:
        return msgspec.to_builtins(self)

    def __str__(self) -> str:
        proven = "outputs verified" if self.verified else "outputs not compared"
        told = ", ".join(f"{count} {state}" for state, count in self.counts().items())
        rows = [
            f"from {self.source} (sha256 {self.source_hash[:12] or 'unknown'}): {told}; {proven}"
        ]
        rows += [f"  {key}: {value}" for key, value in self.training.items()]
        width = max((len(name) for name in self.tensors), default=0)
        for name, origin in self.tensors.items():
            ops = "".join(f", {op}" for op in origin.ops)
            origins = " + ".join(origin.sources)
            rows.append(f"  {origin.state:<7} {name:<{width}}  {origins}{ops}".rstrip())
        return "\n".join(rows)

    def _repr_html_(self) -> str:
        rows = (
            (origin.state, name, " + ".join(origin.sources), ", ".join(map(str, origin.ops)))
            for name, origin in self.tensors.items()
        )
        caption = str(self).split("\n")[0]
        return markup.table(caption, ("state", "tensor", "from", "ops"), rows, len(self.tensors))


def encode(lineage: Lineage) -> dict[str, str]:
    """Metadata entries that hold a lineage."""
    return {KEY: msgspec.json.encode(lineage).decode()}


def decode(metadata: Mapping[str, str], label: str) -> Lineage:
    """The lineage in a file's metadata. **Raises** `FormatError` where there is none."""
    text = metadata.get(KEY)
    if text is None:
        raise FormatError(
            label,
            found="no lineage in the file",
            expected="a file that Regraft wrote of a model it had loaded: "
            "rg.save(model, path, receipt=receipt)",
            hint=f"compare it with its base, which takes no lineage: regraft diff BASE {label}",
        )
    try:
        return msgspec.json.decode(text, type=Lineage)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(label, found=f"a lineage that cannot be read: {error}") from error

"""Which file of a folder is the checkpoint, and what the files beside it say of it.

The rule, which is that of the Hugging Face hub's libraries where they have one:

1. A folder that is itself of a format (a SavedModel, a distributed checkpoint) is opened as such.
2. Weights are chosen by kind: safetensors before PyTorch's pickles, before all others (`KINDS`).
   Training state (`optimizer.pt`, `training_args.bin`) is passed over, and so are shards, for which
   their index stands.
3. Of several files of one kind the one with a known name (`NAMES`) is chosen: `model.safetensors`,
   not `consolidated.safetensors`. A file before an index of the same name.
4. Of several variants (`model.safetensors`, `model.fp16.safetensors`) the one without a variant's
   name is chosen; a single one is chosen whatever its name.
5. Where this leaves several, or where weights lie only in folders below (the components of a
   diffusion pipeline), nothing is chosen: the error names them all.

What was passed over is told in a note. `config.json` gives the model's `architectures` and
`model_type`; `adapter_config.json` beside an adapter's weights says what they change, and how. They
are read for a file of this machine that is opened by itself, too, where it is the one that this
rule would choose, or has a name that the hub's libraries give.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from regraft import locations, registry, shards
from regraft.containers import never
from regraft.errors import CorruptFile, FormatError
from regraft.formats._beside import regular

KINDS = (
    (".safetensors",),
    (".bin", ".pt", ".pth", ".ckpt"),
    (".weights.h5", ".keras", ".h5"),
    (".msgpack",),
    (".gguf",),
    (".npz",),
    (".onnx",),
)
# Names that the hub's libraries give, most wanted first.
NAMES = (
    "model", "pytorch_model", "diffusion_pytorch_model", "open_clip_model",
    "open_clip_pytorch_model", "tf_model", "flax_model", "diffusion_flax_model", "adapter_model",
)  # fmt: skip
_OTHER = ("training_args",)
_CONFIG, _ADAPTER = "config.json", "adapter_config.json"
_MAX_CONFIG = 4 << 20
_MAX_ENTRIES = 100_000
_SHOWN, _SEARCHED = 20, 32


class Found(NamedTuple):
    """What a path stands for: the file or the folder to open, and what lies beside it."""

    path: Path
    metadata: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()


class _Weights(NamedTuple):
    """One file of weights, or one index. `name` is without variant, kind and ending."""

    file: str
    kind: int
    name: str
    variant: str
    indexed: bool


def found(path: Path) -> Found:
    """The checkpoint at a path. **Raises** `FormatError` where a folder holds none, or several."""
    if not path.is_dir():
        prefixed = path.parent / f"{path.name}.index"  # TensorFlow's way to name a checkpoint
        if not path.exists() and prefixed.is_file():
            return Found(prefixed)
        return _with_configs(path) if locations.is_local(path) else Found(path)
    if registry.claiming(registry.sample_of(path)):
        return Found(path)
    files = {p.name: p for p, _ in zip(path.iterdir(), range(_MAX_ENTRIES), strict=False)}
    weights = _weights(files)
    chosen = _chosen(path, files, weights)
    passed = [w.file for w in weights if w != chosen]
    notes = [f"opened {chosen.file}; also there: {', '.join(passed[:_SHOWN])}"] if passed else []
    metadata: dict[str, str] = {}
    if chosen.name == "adapter_model" and _ADAPTER in files:
        metadata = _adapter(files[_ADAPTER])
        notes.append(_adapts(metadata))
    elif _CONFIG in files:
        metadata, remark = _config(files[_CONFIG])
        notes += remark
    return Found(files[chosen.file], metadata, tuple(notes))


def _with_configs(path: Path) -> Found:
    """A file, and what the configs of its folder say of it. Nothing beside it is an error."""
    folder = path.parent
    adapter, config = folder / _ADAPTER, folder / _CONFIG
    if not (adapter.is_file() or config.is_file()):
        return Found(path)
    files = {p.name: p for p, _ in zip(folder.iterdir(), range(_MAX_ENTRIES), strict=False)}
    weights = _weights(files)
    own = next((w for w in weights if w.file == path.name), None)
    try:
        its_own = own is not None and (own.name in NAMES or _chosen(folder, files, weights) == own)
    except FormatError:  # several, of which none is chosen
        its_own = False
    if not its_own:
        return Found(path)
    metadata: dict[str, str] = {}
    notes: list[str] = []
    if adapter.is_file():
        try:
            metadata |= _adapter(adapter)
        except CorruptFile as error:
            notes.append(f"{adapter.name} passed over: {error.found}")
    if config.is_file():
        told, remark = _config(config)
        metadata |= told
        notes += remark
    return Found(path, metadata, tuple(notes))


def _weights(names: Iterable[str]) -> list[_Weights]:
    """The weights among a folder's files, most wanted kind first."""
    listed: list[_Weights] = []
    for file in sorted(names):
        index = re.fullmatch(shards.INDEX, file)
        whole, variant = (index["file"], index["variant"] or "") if index else (file, "")
        for kind, endings in enumerate(KINDS):
            ending = next((e for e in endings if whole.lower().endswith(e)), "")
            if not ending:
                continue
            name = whole[: -len(ending)]
            shard = re.search(shards.NUMBERED, name)
            if never(name) or name in _OTHER or (shard and not _leads(shard, ending)):
                break
            before, dot, last = name.rpartition(".")
            if dot and before in NAMES:
                name, variant = before, last
            listed.append(_Weights(file, kind, name, variant, index is not None))
            break
    return sorted(listed, key=lambda w: (w.kind, w.file))


def _leads(shard: re.Match[str], ending: str) -> bool:
    """Whether a shard stands for all, having no index."""
    return ending == ".gguf" and int(shard[1]) == 1


def _chosen(folder: Path, files: Mapping[str, Path], weights: list[_Weights]) -> _Weights:
    left = [w for w in weights if w.kind == weights[0].kind]
    if len(left) > 1:
        parts = {
            part for w in left if w.indexed for part in shards.weight_map(files[w.file]).values()
        }
        left = [w for w in left if w.file not in parts]
        known = sorted((w.name for w in left if w.name in NAMES), key=NAMES.index)
        left = [w for w in left if not known or w.name == known[0]]
        left = [w for w in left if not w.variant] or left
        left = [w for w in left if not w.indexed] or left
    if len(left) == 1:
        return left[0]
    named = [w.file for w in left] or _below(folder)
    raise FormatError(
        str(folder),
        found=f"{len(named)} checkpoints in a folder: {', '.join(named[:_SHOWN])}"
        if named
        else "a folder without weights",
        expected="one file of weights, or one index of shards",
        hint=f"name the one that is meant, such as {folder / named[0]}"
        if named
        else "name the file itself",
    )


def _below(folder: Path) -> list[str]:
    """Folders right below that hold weights, such as a pipeline's components."""
    below = sorted(p for p, _ in zip(folder.iterdir(), range(_MAX_ENTRIES), strict=False))
    return [
        p.name for p in [p for p in below if p.is_dir()][:_SEARCHED]
        if _weights(inner.name for inner, _ in zip(p.iterdir(), range(_MAX_ENTRIES), strict=False))
    ]  # fmt: skip


def _object(path: Path) -> tuple[str, dict[str, Any]]:
    """The text of a file, and the JSON object that it is. **Raises** `CorruptFile`."""
    import json

    try:
        path = regular(path, path.name)
        if path.stat().st_size > _MAX_CONFIG:
            raise ValueError(f"{path.stat().st_size} bytes")
        text = path.read_bytes().decode()
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CorruptFile(str(path), found=str(error)[:200], expected="a JSON object") from error
    if not isinstance(content, dict):
        raise CorruptFile(str(path), found=type(content).__name__, expected="a JSON object")
    return text, content


def _config(path: Path) -> tuple[dict[str, str], list[str]]:
    """What a model's config says, and a remark where it cannot be read: the weights still can."""
    try:
        text, content = _object(path)
    except FormatError as error:
        return {}, [f"{path.name} passed over: {error.found}"]
    told = {"config": text}
    architectures = content.get("architectures")
    if isinstance(architectures, list):
        told["architectures"] = ", ".join(map(str, architectures[:_SHOWN]))
    if isinstance(content.get("model_type"), str):
        told["model_type"] = content["model_type"]
    return told, []


def _adapter(path: Path) -> dict[str, str]:
    """Each key of an adapter's config, as `adapter.r`; what is not text, as JSON."""
    import json

    _, content = _object(path)
    told = {key: value if isinstance(value, str) else json.dumps(value)
            for key, value in content.items() if value is not None}  # fmt: skip
    return {f"adapter.{key}": value for key, value in told.items()}


def _adapts(told: Mapping[str, str]) -> str:
    kind = told.get("adapter.peft_type", "unknown")
    base = told.get("adapter.base_model_name_or_path", "a model that it does not name")
    return f"an adapter ({kind}): its tensors change the weights of {base}, and are none themselves"

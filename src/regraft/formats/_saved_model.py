"""What a SavedModel says of its variables' layers: Keras' own metadata, as JSON in protobuf.

Keras 2 keeps it with the objects in `saved_model.pb`, from 2.5 on in `keras_metadata.pb`; the root
object's holds the config of the whole model. Keras 3 exports have none. Nothing else of the graph
is looked at.
See tensorflow/core/protobuf/saved_model.proto, saved_object_graph.proto, and
keras/protobuf/saved_metadata.proto.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from regraft.errors import CorruptFile
from regraft.formats._beside import regular
from regraft.formats._protobuf import LENGTH, Field, Message, opened

MODEL, KERAS_METADATA = "saved_model.pb", "keras_metadata.pb"
# Fields of SavedModel, MetaGraphDef and MetaInfoDef; of SavedObjectGraph, SavedObject and
# SavedUserObject; and of Keras' SavedMetadata and its SavedObject.
_META_GRAPH, _META_INFO, _OBJECTS, _TAG, _VERSION = 2, 1, 7, 4, 5
_NODE, _USER_OBJECT, _IDENTIFIER, _METADATA = 1, 4, 1, 3
_KERAS_IDENTIFIER, _KERAS_METADATA = 4, 5
_MAX_CONFIG = 4 << 20


def metadata_of(model: Path) -> dict[str, str]:
    """`tensorflow_version`, `tags`, and `model_config` where Keras left one.

    **Raises** `CorruptFile`.
    """
    message = opened(regular(model, model.name))
    found: dict[str, str] = {}
    tags: list[str] = []
    graphs = [field for field in message if field.number == _META_GRAPH]
    if not graphs:
        raise CorruptFile(message.label, found="no graph", expected="a SavedModel")
    config = ""
    for graph in graphs:
        for field in (inner := message.inner(graph)):
            if field.number == _META_INFO:
                for fact in (info := inner.inner(field)):
                    if fact.number == _TAG and fact.wire == LENGTH:
                        tags.append(info.text(fact))
                    elif fact.number == _VERSION:
                        found["tensorflow_version"] = info.text(fact)
            elif field.number == _OBJECTS and not config:
                config = _config(_objects(inner.inner(field)))
    found["tags"] = ", ".join(tags)
    if not config and (model.parent / KERAS_METADATA).exists():
        told = regular(model, KERAS_METADATA)
        config = _config(_keras_objects(opened(told)))
    if config:
        found["model_config"] = config
    return {key: value for key, value in found.items() if value}


def _objects(graph: Message) -> Iterator[tuple[str, str]]:
    """Identifier and metadata of the objects in a SavedObjectGraph."""
    for node in graph:
        if node.number == _NODE:
            for kind in (inner := graph.inner(node)):
                if kind.number == _USER_OBJECT:
                    yield _pair(inner.inner(kind), _IDENTIFIER, _METADATA)


def _keras_objects(message: Message) -> Iterator[tuple[str, str]]:
    for node in message:
        if node.number == 1:
            yield _pair(message.inner(node), _KERAS_IDENTIFIER, _KERAS_METADATA)


def _pair(message: Message, identifier: int, metadata: int) -> tuple[str, str]:
    found: dict[int, Field] = {}
    for field in message:
        if field.wire == LENGTH and field.size <= _MAX_CONFIG:
            found[field.number] = field
    name, told = (
        message.text(found[n], _MAX_CONFIG) if n in found else "" for n in (identifier, metadata)
    )
    return name, told


def _config(objects: Iterator[tuple[str, str]]) -> str:
    """The config of the first object that is a Keras model with layers; the root comes first."""
    for identifier, metadata in objects:
        if not identifier.startswith("_tf_keras_") or not metadata:
            continue
        try:
            told: Any = json.loads(metadata)
        except (ValueError, RecursionError):
            return ""
        whole = told.get("model_config") if isinstance(told, dict) else None
        if not isinstance(whole, dict):
            whole = {key: told.get(key) for key in ("class_name", "config")}
        layers = whole.get("config")
        return json.dumps(whole) if isinstance(layers, dict) and "layers" in layers else ""
    return ""

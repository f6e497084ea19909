"""Taps of an ONNX file: it is run by onnxruntime, with what every node makes as an output.

A node is called what the file calls it, and is the module of the stored tensors that go into it,
also by way of nodes that only see stored ones (a kernel that is transposed or dequantised first).
Nodes of one kind that take the same tensors are calls of one module. What only sees stored tensors
is the same for all inputs and is not observed, nor what lies within bodies of If, Loop and Scan.

The graph is run as it stands, without the runtime's own rewriting of it. Files of external data
are read from the file's folder, which opening the file as a checkpoint has checked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from regraft.calls import Call, Edit, Module, Watcher
from regraft.errors import MissingDependency, TargetError

if TYPE_CHECKING:
    from regraft.tensors import Array

# Operations that are mostly steps of a layer: an affine part of a norm, a bias, a scale.
_STEPS = frozenset(("Add", "Sub", "Mul", "Div"))
_SHOWN = 8


@dataclass(frozen=True)
class _Step:
    """A node that is observed; `inputs` are the values that flow into it, without stored ones."""

    path: str
    number: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


class OnnxTaps:
    """Taps on an ONNX file. It can be run and observed, and not changed.

    **Raises** `MissingDependency` without onnx and onnxruntime, `TargetError` for a graph that the
    runtime does not take.
    """

    framework = "onnx"

    def __init__(self, path: Path) -> None:
        onnx, runtime = _libraries(path)
        self._label, self.as_it_is = path.name, True
        model = onnx.load(str(path), load_external_data=False)
        self._owners: dict[str, str] = {}
        self._modules: dict[str, Module] = {}
        self._steps = list(self._read(model.graph, onnx.helper.get_attribute_value))
        children = tuple(self._modules)
        self._modules = {"": Module("", "Graph", {}, children), **self._modules}
        self._outputs = [output.name for output in model.graph.output]
        known = dict.fromkeys(self._outputs)
        made = [name for step in self._steps for name in step.outputs if name not in known]
        model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(made))
        self._session = self._opened(runtime, model, path)
        self._inputs = [given.name for given in self._session.get_inputs()]

    def _opened(self, runtime: Any, model: Any, path: Path) -> Any:
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.use_deterministic_compute = True
        options.log_severity_level = 4
        folder = str(path.resolve().parent)
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", folder
        )
        providers = ["CPUExecutionProvider"]
        try:
            return runtime.InferenceSession(model.SerializeToString(), options, providers)
        except Exception as error:  # the runtime has errors of its own, and protobuf a limit
            self._refused(error, "a graph that onnxruntime takes")

    def _read(self, graph: Any, value_of: Any) -> Iterator[_Step]:
        """The nodes that see what flows, in order, which ONNX says is that of their use."""
        stored: dict[str, frozenset[str]] = {
            t.name: frozenset((t.name,)) for t in graph.initializer
        }
        stored |= {t.values.name: frozenset((t.values.name,)) for t in graph.sparse_initializer}
        paths: dict[tuple[str, frozenset[str]], str] = {}
        calls: Counter[str] = Counter()
        for node in graph.node:
            taken = [name for name in node.input if name]
            outputs = tuple(name for name in node.output if name)
            whole = not any(a.HasField("g") or a.graphs for a in node.attribute)
            if whole and all(name in stored for name in taken):
                own = frozenset[str]().union(*(stored[name] for name in taken))
                stored |= {name: own or frozenset((name,)) for name in outputs}
                continue
            held = frozenset[str]().union(*(stored.get(name, ()) for name in taken))
            path = paths.get((node.op_type, held)) if held else None
            if path is None:
                path = self._named(node)
                settings = {a.name: _plain(value_of(a)) for a in node.attribute}
                settings = {k: v for k, v in settings.items() if v is not None}
                step = node.op_type in _STEPS
                self._modules[path] = Module(path, node.op_type, settings, step=step)
                paths[node.op_type, held] = path
            for name in held:
                self._owners.setdefault(name, path)
            flowing = tuple(name for name in taken if name not in stored)
            yield _Step(path, calls[path], flowing, outputs)
            calls[path] += 1

    def _named(self, node: Any) -> str:
        """The node's name; those that have none, or one that is taken, are called by what they
        make, which is unique."""
        name = node.name or f"{node.op_type}:{node.output[0]}"
        return name if name not in self._modules else f"{name}:{node.output[0]}"

    def modules(self) -> dict[str, Module]:
        return dict(self._modules)

    def owner(self, name: str) -> str:
        """The node that takes a stored tensor; the tensor's own name, which is no node's, where
        none that is observed does."""
        return self._owners.get(name, name)

    def run(
        self, inputs: Any, watcher: Watcher | None = None, edits: Sequence[Edit] = ()
    ) -> dict[str, Array]:
        """Runs the graph on the CPU; outputs by their names. **Raises** `TargetError` for inputs
        that it does not take."""
        if edits:
            self._unchangeable()
        given = self._given(inputs)
        made = [name for step in self._steps for name in step.outputs] if watcher else []
        wanted = list(dict.fromkeys((*self._outputs, *made)))
        try:
            results = self._session.run(wanted, given)
        except Exception as error:  # of the runtime's own kinds, for types, shapes and operations
            self._refused(error, "inputs that the graph takes")
        values = dict(zip(wanted, results, strict=True)) | given
        if watcher is not None:
            self._told(watcher, values)
        return {name: np.asarray(values[name]) for name in self._outputs}

    def _told(self, watcher: Watcher, values: dict[str, Any]) -> None:
        def arrays(names: Sequence[str]) -> list[Array]:
            found = (values.get(name) for name in names)
            return [value for value in found if isinstance(value, np.ndarray)]

        root = Call("", 0, ())
        watcher.enter(root, arrays(self._inputs))
        for step in self._steps:
            call = Call(step.path, step.number, ("",))
            watcher.enter(call, arrays(step.inputs))
            watcher.leave(call, arrays(step.outputs))
        watcher.leave(root, arrays(self._outputs))

    def _given(self, inputs: Any) -> dict[str, Array]:
        """Inputs by name: those of a tuple in the graph's order."""
        if isinstance(inputs, dict):
            given = {str(name): np.asarray(value) for name, value in inputs.items()}
        else:
            row = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
            given = dict(zip(self._inputs, map(np.asarray, row), strict=False))
            if len(given) < len(row):
                given |= {f"input {n}": np.asarray(row[n]) for n in range(len(given), len(row))}
        if set(given) != set(self._inputs):
            raise TargetError(
                self._label, found=f"inputs {', '.join(list(given)[:_SHOWN]) or 'none'}",
                expected=f"inputs {', '.join(self._inputs[:_SHOWN]) or 'none'}",
            )  # fmt: skip
        return given

    def again(self, frame: Any, watcher: Watcher, edits: Sequence[Edit] = ()) -> list[Array]:
        self._unchangeable()

    def fix(self, edit: Edit) -> str:
        return ""

    def _refused(self, error: Exception, expected: str) -> NoReturn:
        found = f"{type(error).__name__}: {error}".replace("\n", " ")[:400]
        raise TargetError(self._label, found=found, expected=expected) from error

    def _unchangeable(self) -> NoReturn:
        raise TargetError(self._label, found="an ONNX file", expected="a model that can be changed")


def _plain(value: Any) -> Any:
    """An attribute as a setting; None for what is none. Floats are single precision in files."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace") if len(value) < 256 else None
    if isinstance(value, float):
        return float(str(np.float32(value)))
    if isinstance(value, (list, tuple)):
        plain = len(value) < 9 and all(isinstance(part, (int, float)) for part in value)
        return tuple(map(_plain, value)) if plain else None
    return value if isinstance(value, int) else None


def _libraries(path: Path) -> tuple[Any, Any]:
    for name in ("onnx", "onnxruntime"):
        try:
            __import__(name)
        except ImportError as error:
            raise MissingDependency(name, extra="onnx", purpose=f"running {path.name}") from error
    import onnx
    import onnxruntime

    return onnx, onnxruntime

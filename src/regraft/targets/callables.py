"""Models built from `module:callable`, as the command line names them."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.util
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from regraft import targets
from regraft.errors import TargetError


def parse_settings(settings: Iterable[str]) -> dict[str, object]:
    """`["depth=20", "name=x"]` as keyword arguments: Python literals, and text where it is none.

    **Raises** `TargetError` for a setting without `=`.
    """
    result: dict[str, object] = {}
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign or not key.isidentifier():
            raise TargetError(f"--set {setting}", expected="--set key=value")
        try:
            result[key] = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            result[key] = text
    return result


def build(
    spec: str,
    arguments: Mapping[str, object] | None = None,
    *,
    meta: bool = False,
    seed: int | None = None,
) -> tuple[object, list[str]]:
    """The model that `package.module:callable` or `path/to/file.py:callable` makes, and notes.

    **Arguments:**

    - `spec`: what to import and call; an attribute that is a model already is taken as it is.
    - `meta`: build PyTorch models without memory for weights where they allow it.
    - `seed`: of the generators that initial values are drawn from, set after the import.

    **Raises** `TargetError`, saying which step failed.
    """
    made: Any = named(spec)
    notes: list[str] = []
    if not _is_model(made):
        if not callable(made):
            raise TargetError(
                spec, found=f"{type(made).__name__}, which cannot be called", expected="a function"
            )
        if seed is not None:
            _seed(seed)
        made = _called(made, dict(arguments or {}), spec, meta, notes)
    targets.find(made)
    return made, notes


def _seed(seed: int) -> None:
    """Sets the generators of the frameworks that are imported, and Python's and numpy's."""
    import random

    import numpy as np

    random.seed(seed)
    np.random.seed(seed)
    if (torch := sys.modules.get("torch")) is not None:
        torch.manual_seed(seed)
    for name in ("keras", "tf_keras"):
        if (keras := sys.modules.get(name)) is not None:
            keras.utils.set_random_seed(seed)


def named(spec: str) -> Any:
    """What `package.module:name` or `path/to/file.py:name` names, such as a function, as it is.

    **Raises** `TargetError`, saying which step failed.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise TargetError(spec, expected="module:callable or file.py:callable")
    return _attribute(_module(where, spec), name, spec)


def _is_model(value: object) -> bool:
    return not isinstance(value, type) and any(targets.load(n).owns(value) for n in targets.names())


def _module(where: str, spec: str) -> Any:
    """Imports with the current folder first, as `python -m` does."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        if where.endswith(".py"):
            return _from_file(Path(where))
        return importlib.import_module(where)
    except Exception as error:  # the imported module's own code may raise anything
        raise TargetError(
            spec,
            found=f"{type(error).__name__}: {error}",
            expected=f"{where} to be imported",
            hint="check the name, and that what it needs is installed",
        ) from error
    finally:
        sys.path.remove(folder)


def _from_file(path: Path) -> Any:
    name = f"_regraft_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    if found is None or found.loader is None or not path.is_file():
        raise FileNotFoundError(path)
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module
    found.loader.exec_module(module)
    return module


def _attribute(module: Any, name: str, spec: str) -> Any:
    found = module
    for part in name.split("."):
        if not hasattr(found, part):
            close = difflib.get_close_matches(part, dir(found), 3)
            raise TargetError(
                spec,
                found=f"no {part!r}",
                hint=f"did you mean {' or '.join(close)}?" if close else "",
            )
        found = getattr(found, part)
    return found


def _called(
    make: Any, arguments: dict[str, object], spec: str, meta: bool, notes: list[str]
) -> object:
    torch = sys.modules.get("torch")
    if meta and torch is not None:
        try:
            with torch.device("meta"):
                made = make(**arguments)
            if targets.find(made).__name__.endswith(".torch"):
                return made
        except Exception as error:  # some models read values while they are built
            notes.append(f"built with weights: not on the meta device ({type(error).__name__})")
    try:
        return make(**arguments)
    except Exception as error:
        raise TargetError(
            spec,
            found=f"{type(error).__name__}: {error}",
            expected="a model",
            hint="give its arguments with --set key=value",
        ) from error

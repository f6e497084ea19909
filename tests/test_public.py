"""The public face: what is named, documented, and what importing it costs."""

from __future__ import annotations

import ast
import inspect
import json
import subprocess
import sys
from pathlib import Path

import pytest

import regraft as rg

DOCS = Path(__file__).parents[1] / "docs" / "reference.md"
HEAVY = ("numpy", "torch", "tensorflow", "keras", "jax", "flax", "scipy", "rich", "h5py")


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys, json; print('\\n' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_importing_imports_nothing_heavy() -> None:
    assert not modules_after("import regraft") & set(HEAVY)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_inspecting_imports_nothing_heavy(suffix: str, tmp_path: Path) -> None:
    import numpy as np

    from regraft import checkpoints

    info = rg.TensorInfo("a", (2,), "float32")
    path = tmp_path / f"x{suffix}"
    checkpoints.write(path, [(info, lambda: np.zeros(2, np.float32))], {})
    code = (
        f"import sys; sys.argv = ['regraft', 'inspect', {str(path)!r}]\n"
        "from regraft.cli import cli\ncli(standalone_mode=False)"
    )
    assert not modules_after(code) & set(HEAVY)


def test_what_type_checkers_see_is_what_is_there() -> None:
    tree = ast.parse(Path(rg.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert sorted(seen) == rg.__all__ == dir(rg)
    with pytest.raises(AttributeError):
        rg.no_such_name  # noqa: B018


@pytest.mark.parametrize("name", rg.__all__)
def test_every_public_name_is_documented(name: str) -> None:
    thing = getattr(rg, name)
    assert inspect.getdoc(thing), name
    assert f"`{name}`" in DOCS.read_text() or f"`{name}(" in DOCS.read_text(), name
    if inspect.isclass(thing):
        for method, value in vars(thing).items():
            if inspect.isfunction(value) and not method.startswith("_"):
                inherited = inspect.getdoc(getattr(thing, method))
                assert inherited or method in ("to_json", "counts", "items"), f"{name}.{method}"


def test_errors_have_exit_codes_and_four_facts() -> None:
    codes = {
        "FormatError": 3, "UnknownFormat": 3, "CorruptFile": 3, "UnsafeFile": 3, "MissingShard": 3,
        "TargetError": 4, "PlanError": 5, "ShapeMismatch": 5, "RuleMatchedNothing": 5,
        "StalePlan": 5, "IncompletePlan": 1, "AmbiguousMatch": 1, "TransferError": 6,
        "VerificationFailed": 1, "MissingDependency": 8,
    }  # fmt: skip
    for name, code in codes.items():
        kind = getattr(rg, name)
        assert issubclass(kind, rg.RegraftError)
        assert kind.exit_code == code, name
    told = str(rg.ShapeMismatch("here", found="a", expected="b", hint="c", problems=["d"]))
    assert told.split() == ["here", "found", "a", "expected", "b", "try", "c", "-", "d"]

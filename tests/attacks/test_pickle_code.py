"""Pickles that would run code, by every opcode and under every name.

Python's own pickle machine would make the marker; `test_the_payloads_are_live` shows that it does.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attacks.building import (
    Part,
    archive,
    called,
    get,
    group,
    legacy_file,
    mapping,
    named,
    number,
    persistent,
    put,
    raw,
    stacked,
    tensor,
    text,
    torch_file,
    torch_parts,
    whole,
)
from attacks.harness import Attack, check, written
from regraft.errors import CorruptFile, UnsafeFile

Payload = Callable[[Path], bytes]


def mkdir(marker: Path) -> bytes:
    return called(named("os", "mkdir"), text(str(marker)))


def _string(marker: Path) -> bytes:
    """Protocol 0's."""
    return f"S'{marker}'\n".encode()


# The payload makes the marker, whatever it leaves on the stack; each by another opcode.
OPCODES: dict[str, Payload] = {
    "GLOBAL and REDUCE": lambda m: mkdir(m),
    "STACK_GLOBAL": lambda m: called(stacked("os", "mkdir"), text(str(m))),
    "STACK_GLOBAL with names from the memo": lambda m: (
        text("mkdir") + put(1) + b"0" + text("os") + put(2) + b"0"
        + get(2) + get(1) + b"\x93" + group(text(str(m))) + b"R"),
    "STACK_GLOBAL with names as short strings": lambda m: (
        b"\x8c\x02os\x8c\x05mkdir\x93" + group(text(str(m))) + b"R"),
    "STACK_GLOBAL with long strings": lambda m: (
        b"\x8d\x02\0\0\0\0\0\0\0os\x8d\x05\0\0\0\0\0\0\0mkdir\x93" + group(text(str(m))) + b"R"),
    "INST": lambda m: b"(" + _string(m) + b"ios\nmkdir\n",
    "OBJ": lambda m: b"(" + named("os", "mkdir") + text(str(m)) + b"o",
    "protocol 0 throughout": lambda m: b"cos\nmkdir\np0\n(" + _string(m) + b"tp1\nRp2\n",
    "UNICODE as an argument": lambda m: b"cos\nmkdir\n(V" + str(m).encode() + b"\ntR",
    "memo, short": lambda m: named("os", "mkdir") + b"q\x01" + b"0h\x01" + group(text(str(m))) + b"R",
    "memo, long": lambda m: named("os", "mkdir") + put(70_000) + b"0" + get(70_000)
    + group(text(str(m))) + b"R",
    "memo, as text": lambda m: named("os", "mkdir") + b"p7\n0g7\n" + group(text(str(m))) + b"R",
    "MEMOIZE": lambda m: named("os", "mkdir") + b"\x940h\x00" + group(text(str(m))) + b"R",
    "memo written over": lambda m: named("builtins", "list") + b"q\x01" + named("os", "mkdir")
    + b"q\x0100h\x01" + group(text(str(m))) + b"R",
    "DUP": lambda m: named("os", "mkdir") + b"2" + group(text(str(m))) + b"R0" ,
    "run, then popped away": lambda m: mkdir(m) + b"0" + mapping((text("w"), number(1))),
    "run, then popped to the mark": lambda m: b"(" + mkdir(m) + b"1" + mapping(),
    "run inside a list": lambda m: b"](" + number(1) + mkdir(m) + b"e",
    "run inside a tuple": lambda m: mkdir(m) + b"\x85\x85",
    "run inside a frozenset": lambda m: b"(" + mkdir(m) + b"\x91",
    "run as a key": lambda m: mapping((mkdir(m), number(1))),
    "run as an argument": lambda m: called(named("builtins", "list"), group(mkdir(m))),
    "run as the state of an object": lambda m: (
        called(named("argparse", "Namespace")) + mapping((text("a"), mkdir(m))) + b"b"),
    "run as a slot of an object": lambda m: (
        called(named("argparse", "Namespace"))
        + group(b"N", mapping((text("a"), mkdir(m)))) + b"b"),
    "BUILD that makes a partial of it": lambda m: (
        called(named("functools", "partial"), named("builtins", "list"))
        + group(named("os", "mkdir"), group(text(str(m))), b"}", b"N") + b"b)R"),
    "BUILD that makes a reducer of it": lambda m: (
        called(named("collections", "defaultdict"), named("builtins", "list"))
        + called(named("functools", "partial"), named("os", "mkdir"), text(str(m))) + b")R0"),
    "SETITEMS on an object that it makes": lambda m: (
        called(named("collections", "OrderedDict"), group(group(text("k"), mkdir(m))))),
    "a partial, called": lambda m: (
        called(named("functools", "partial"), named("os", "mkdir"), text(str(m))) + b")R"),
    "a partial of a partial": lambda m: called(
        called(named("functools", "partial"), named("functools", "partial"), named("os", "mkdir")),
        text(str(m))) + b")R",
    "after a frame": lambda m: b"\x95" + len(mkdir(m)).to_bytes(8, "little") + mkdir(m),
    "after PROTO twice": lambda m: b"\x80\x05\x80\x02" + mkdir(m),
    "nested in bytes": lambda m: called(named("pickle", "loads"), raw(whole(mkdir(m)))),
    "nested in bytes, twice": lambda m: called(
        named("_pickle", "loads"), raw(whole(called(named("pickle", "loads"), raw(whole(mkdir(m))))))),
    "through __newobj__": lambda m: called(
        named("copyreg", "__newobj__"), named("subprocess", "Popen"),
        group(text("mkdir"), text(str(m)))) + mkdir(m) + b"\x86",
    "through getattr": lambda m: called(
        called(named("builtins", "getattr"), called(named("importlib", "import_module"), text("os")),
               text("mkdir")), text(str(m))),
    "through __builtin__ of Python 2": lambda m: b"\x80\x02" + called(
        named("__builtin__", "eval"), text(f"__import__('os').mkdir({str(m)!r})")),
    "through attrgetter": lambda m: called(
        called(called(named("operator", "attrgetter"), text("mkdir")), called(
            named("importlib", "import_module"), text("os"))), text(str(m))),
    "through methodcaller": lambda m: called(
        called(named("operator", "methodcaller"), text("mkdir")),
        called(named("pathlib", "Path"), text(str(m)))),
    "through a map": lambda m: called(named("builtins", "list"), called(
        named("builtins", "map"), named("os", "mkdir"), b"](" + text(str(m)) + b"e")),
}  # fmt: skip

# Cannot be run by Python's machine without more (a registry, a persistent loader, another system).
UNUSABLE: dict[str, bytes] = {
    "EXT1": b"\x82\x01)R",
    "EXT2": b"\x83\x01\x00)R",
    "EXT4": b"\x84\x01\x00\x00\x00)R",
    "EXT1 of code zero": b"\x82\x00",
    "PERSID": b"Pos.system\n",
    "BINPERSID of a call": persistent(called(named("os", "system"), text("true"))),
    "NEWOBJ of a function": named("os", "system") + group(text("true")) + b"\x81",
    "NEWOBJ_EX of a function": named("os", "system") + group(text("true")) + b"}\x92",
    "NEWOBJ_EX with keywords": named("subprocess", "Popen") + b")"
    + mapping((text("args"), text("true"))) + b"\x92",
    "NEXT_BUFFER": b"\x97",
    "a global that is no text": number(1) + number(2) + b"\x93",
    "a global of bytes": b"C\x02osC\x06system\x93",
    "a global of another system": called(named("nt", "system"), text("true")),
    "a call of a string": called(text("os.system"), text("true")),
    "a call with a list": named("builtins", "list") + b"]R",
    "a bare reference": named("os", "system"),
    "a reference in a dict": mapping((text("w"), named("subprocess", "Popen"))),
    "a name with a line break": stacked("os\nsystem", "x\nos"),
    "a name that is empty": stacked("", ""),
    "a name behind dots": stacked("os.", ".system"),
    "a name with spaces": called(stacked(" os", "system "), text("true")),
    "a name in wide letters": called(stacked("ｏｓ", "system"), text("true")),
}  # fmt: skip


def _touching(module: str, name: str, *args: bytes, dotted: bool = True) -> Payload:
    return lambda m: called(stacked(module, name), *(a or text(str(m)) for a in args))


_M = b""  # stands for the marker's path
# Callables that make a file or run a program, or could; refused whatever they are called.
ALIASES: dict[str, tuple[bytes, ...]] = {
    "os.makedirs": (_M,),
    "posix.mkdir": (_M,),
    "posix.system": (text("true"),),
    "os.popen": (text("true"),),
    "os.execv": (text("/bin/true"), b"]" + text("true") + b"a"),
    "os.path.os.mkdir": (_M,),
    "posixpath.os.mkdir": (_M,),
    "genericpath.os.mkdir": (_M,),
    "builtins.open": (_M, text("w")),
    "builtins.exec": (text("pass"),),
    "builtins.compile": (text("1"), text("x"), text("eval")),
    "builtins.__import__": (text("antigravity"),),
    "builtins.eval": (text("1"),),
    "__builtin__.execfile": (_M,),
    "__builtin__.file": (_M, text("w")),
    "__builtin__.apply": (named("builtins", "list"),),
    "__builtin__.getattr": (named("builtins", "list"), text("x")),
    "io.open": (_M, text("w")),
    "io.FileIO": (_M, text("w")),
    "_io.FileIO": (_M, text("w")),
    "codecs.open": (_M, text("w")),
    "pathlib.Path.touch": (called(named("pathlib", "Path"), _M),),
    "pathlib.Path.mkdir": (called(named("pathlib", "Path"), _M),),
    "logging.FileHandler": (_M,),
    "logging.config.fileConfig": (_M,),
    "zipfile.ZipFile": (_M, text("w")),
    "gzip.open": (_M, text("w")),
    "tarfile.open": (_M, text("w")),
    "sqlite3.connect": (_M,),
    "shelve.open": (_M,),
    "dbm.dumb.open": (_M,),
    "tempfile.mkdtemp": (b"N", b"N", _M),
    "shutil.rmtree": (_M,),
    "subprocess.check_output": (text("true"),),
    "_posixsubprocess.fork_exec": (),
    "pty.spawn": (text("true"),),
    "runpy.run_path": (_M,),
    "timeit.timeit": (text("pass"),),
    "cProfile.run": (text("pass"),),
    "profile.Profile.run": (text("pass"),),
    "bdb.Bdb.run": (text("pass"),),
    "pdb.run": (text("pass"),),
    "code.InteractiveInterpreter.runcode": (text("pass"),),
    "doctest.debug_script": (text("pass"),),
    "trace.Trace.run": (text("pass"),),
    "pkgutil.resolve_name": (text("os:system"),),
    "pydoc.locate": (text("os.system"),),
    "importlib.import_module": (text("antigravity"),),
    "imp.load_source": (text("x"), _M),
    "ctypes.CDLL": (text("libc.so.6"),),
    "marshal.loads": (raw(b"N"),),
    "types.FunctionType": (),
    "types.CodeType": (),
    "webbrowser.open": (text("about:blank"),),
    "commands.getoutput": (text("true"),),
    "popen2.popen3": (text("true"),),
    "distutils.dir_util.mkpath": (_M,),
    "uuid._get_command_stdout": (text("true"),),
    "ensurepip._run_pip": (),
    "lib2to3.pgen2.grammar.Grammar.loadGrammar": (_M,),
    "idlelib.run.Executive.runcode": (),
    "asyncio.create_subprocess_shell": (text("true"),),
    "multiprocessing.util.spawnv_passfds": (),
    "socket.create_connection": (),
    "urllib.request.urlopen": (text("file:///dev/null"),),
    "http.server.test": (),
    "smtplib.SMTP": (),
    "functools.reduce": (named("builtins", "list"), b"]"),
    "itertools.starmap": (named("builtins", "list"), b"]"),
    "weakref.finalize": (),
    "atexit.register": (named("builtins", "list"),),
    "signal.signal": (),
    "gc.get_objects": (),
    "sys.settrace": (),
    "threading.Thread": (),
    "concurrent.futures.ProcessPoolExecutor": (),
    "pip._internal.cli.main.main": (),
    "setuptools.sandbox.run_setup": (_M,),
    "_pytest.config.main": (),
    "cloudpickle.loads": (raw(b"N."),),
    "dill.loads": (raw(b"N."),),
    "joblib.load": (_M,),
    "pandas.read_pickle": (_M,),
    "h5py.File": (_M, text("w")),
    "PIL.Image.open": (_M,),
    "numpy.load": (_M,),
    "numpy.save": (_M, b"]"),
    "numpy.memmap": (_M,),
    "numpy.fromfile": (_M,),
    "numpy.ndarray.tofile": (),
    "numpy.testing._private.utils.runstring": (text("pass"), b"}"),
    "numpy.f2py.crackfortran.getlincoef": (text("1"), b"}"),
    "numpy.core._ufunc_reconstruct": (text("os"), text("system")),
    "numpy._core._ufunc_reconstruct": (text("os"), text("system")),
    "numpy.core.multiarray.fromfile": (_M,),
    "numpy._core.multiarray.fromfile": (_M,),
    "torch.load": (_M,),
    "torch.save": (b"]", _M),
    "torch.hub.load": (text("x"), text("y")),
    "torch.serialization.load": (_M,),
    "torch.serialization.os.mkdir": (_M,),
    "torch.storage._load_from_bytes": (raw(whole(named("os", "system"))),),
    "torch.jit.load": (_M,),
    "torch.jit._pickle.torch.save": (b"]", _M),
    "torch.PyTorchFileWriter": (_M,),
    "torch._C.PyTorchFileWriter": (_M,),
    "torch.distributed.FileStore": (_M,),
    "torch.utils.tensorboard.SummaryWriter": (_M,),
    "torch.utils.collect_env.run": (text("true"),),
    "torch.utils.bottleneck.__main__.run_cprofile": (),
    "torch.utils._config_module.ConfigModule.load_config": (),
    "torch.utils.cpp_extension.load": (),
    "torch.utils.data.datapipes.utils.decoder.basichandlers": (text("pkl"), raw(b"N.")),
    "torch._inductor.codecache.compile_file": (),
    "torch._dynamo.guards.GuardBuilder.get": (),
    "torch.fx.graph_module.reduce_graph_module": (b"}", text("pass")),
    "torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression": (),
    "torch.package.PackageImporter": (_M,),
    "torch.ops.load_library": (_M,),
    "torch.nn.init.torch.load": (_M,),
    "torch.cuda.nvtx.os.system": (text("true"),),
    "keras.models.load_model": (_M,),
    "keras.src.legacy.saving.saving_utils.os.mkdir": (_M,),
    "tensorflow.io.write_file": (_M, text("")),
    "safetensors.torch.save_file": (b"}", _M),
    "jax.numpy.save": (_M, b"]"),
    "__main__.run": (_M,),
    "anything.at.all": (_M,),
}  # fmt: skip


def _alias(path: str) -> Payload:
    """A call of it; the module ends before the first part that begins with a capital letter or
    reaches through another module."""
    args = ALIASES[path]
    parts = path.split(".")
    cut = len(parts) - 1
    for index, part in enumerate(parts[:-1]):
        if index and (part[0].isupper() or part in ("os", "torch")) and parts[index - 1] != "os":
            cut = min(cut, index)
    module, name = ".".join(parts[:cut]), ".".join(parts[cut:])

    def payload(marker: Path) -> bytes:
        return called(
            stacked(module, name),
            *(a.replace(text(""), b"") and a if a else text(str(marker)) for a in args),
        )

    return payload


def _boxed(pickled: bytes) -> bytes:
    """The .npy file of an object array, its pickle replaced."""
    stream = io.BytesIO()
    np.save(stream, np.array(None, object), allow_pickle=True)
    content = stream.getvalue()
    return content[: content.index(b"\n") + 1] + pickled


def _zipped(name: str, data: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as packed:
        packed.writestr(name, data)
    return stream.getvalue()


# Every container that holds a pickle: ending, and file from a pickle.
HOLDERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "pickle": (".pkl", lambda p: p),
    "torch zip": (".pth", torch_file),
    "torch legacy": (".pt", lambda p: legacy_file(p, keys=whole(b"]"), storages=b"")),
    "npy": (".npy", _boxed),
    "npz": (".npz", lambda p: _zipped("a.npy", _boxed(p))),
}
_IN_TORCH_SCRIPT = [
    Part(b"x/constants.pkl", b""),
    Part(b"x/code/__torch__.py", b"class M(Module): pass"),
]


def _held(holder: str, payload: Payload) -> Attack:
    ending, make = HOLDERS[holder]
    return Attack(
        written(f"x{ending}", lambda m: make(whole(payload(m)))), UnsafeFile, r"offset \d+"
    )


def _attacks() -> dict[str, Attack]:
    holders = list(HOLDERS)
    found = {f"{name} in {holders[i % 5]}": _held(holders[i % 5], payload)
             for i, (name, payload) in enumerate(OPCODES.items())}  # fmt: skip
    found |= {f"os.mkdir in {holder}": _held(holder, mkdir) for holder in holders}
    found |= {f"{name} in {holders[i % 5]}": _held(holders[i % 5], _alias(name))
              for i, name in enumerate(ALIASES)}  # fmt: skip
    found |= {
        name: Attack(written("x.pkl", whole(opcodes)), (UnsafeFile, CorruptFile), r"offset \d+")
        for name, opcodes in UNUSABLE.items()
    }
    weights = mapping((text("w"), tensor()))
    for part in ("magic", "protocol", "system", "keys"):
        found[f"legacy torch's pickle {part}"] = Attack(
            written("x.pt", lambda m, part=part: legacy_file(**{part: whole(mkdir(m))})),
            UnsafeFile, r"offset \d+",
        )  # fmt: skip
    found["beside a tensor in torch zip"] = Attack(
        written("x.pth", lambda m: torch_file(
            whole(mapping((text("w"), tensor()), (text("x"), mkdir(m)))))), UnsafeFile, r"offset",
    )  # fmt: skip
    found["as a tensor's hook"] = Attack(
        written("x.pth", lambda m: torch_file(whole(mapping((text("w"), called(
            named("torch._utils", "_rebuild_tensor_v2"), mkdir(m))))))), UnsafeFile, r"offset",
    )  # fmt: skip
    found["as a storage's key"] = Attack(
        written("x.pth", lambda m: torch_file(whole(mapping((text("w"), tensor(of=persistent(
            text("storage"), named("torch", "FloatStorage"), mkdir(m), text("cpu"),
            number(4)))))))), UnsafeFile, r"offset",
    )  # fmt: skip
    found["as a storage's type"] = Attack(
        written("x.pth", lambda m: torch_file(whole(mapping((text("w"), tensor(of=persistent(
            text("storage"), mkdir(m), text("0"), text("cpu"), number(4)))))))), UnsafeFile,
        r"offset",
    )  # fmt: skip
    # A second pickle in the archive is nothing that PyTorch would read.
    found["in a member that nobody reads"] = Attack(
        written("x.pth", lambda m: archive(
            [*torch_parts(whole(weights)), Part(b"x/extra/evil.bin", whole(mkdir(m)))])),
        {"w": (4,)},
    )  # fmt: skip
    found["in an array inside an object"] = Attack(
        written("x.npy", lambda m: _boxed(whole(called(
            named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"),
            group(number(0)), raw(b"b")) + group(number(1), group(number(1)), called(
                named("numpy", "dtype"), text("O8"), b"\x89", b"\x88"), b"\x89",
                b"](" + mkdir(m) + b"e") + b"b"))), UnsafeFile, r"offset",
    )  # fmt: skip
    return found


ATTACKS = _attacks()


def test_code_in_pickles(attack: str, outcomes: dict[str, dict[str, Any]]) -> None:
    check(ATTACKS[attack], outcomes[attack])


def test_the_payloads_are_live(tmp_path: Path) -> None:
    """Without a reader of our own the markers appear: each payload would have run."""
    files = []
    for number_, payload in enumerate(OPCODES.values()):
        folder = tmp_path / str(number_)
        folder.mkdir()
        (folder / "x.pkl").write_bytes(whole(payload(folder / "marker")))
        files.append(str(folder / "x.pkl"))
    script = (
        "import json, pickle, sys\n"
        "for path in json.load(sys.stdin):\n"
        "    try: pickle.load(open(path, 'rb'))\n"
        "    except Exception as error: print(path, error)\n"
    )
    run = subprocess.run([sys.executable, "-W", "ignore", "-c", script], input=json.dumps(files),
                         text=True, capture_output=True, check=True)  # fmt: skip
    names = list(OPCODES)
    dead = [names[i] for i, path in enumerate(files) if not (Path(path).parent / "marker").exists()]
    assert not dead, (dead, run.stdout)

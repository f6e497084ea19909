"""Which names a pickle may mention, and which of them it may call.

Not the wall: the wall is that the pickle machine never imports and never calls. This is what makes
an attack an error instead of a curiosity, and it has to be a closed table, since a list of what is
dangerous always lacks something:

- Of Python's own library, only the types and constructors that are written out here may even be
  named, for naming a module imports it. Of PyTorch and NumPy, any class or function may be named
  (an activation, a dtype), few may be called.
- Of other packages, classes may be called and named, since whole models are pickled by their
  classes; functions only where their names say that they rebuild an object.
- A name with dots must lead through classes: `serialization.os.system` walks through modules.
"""

from __future__ import annotations

import sys

# Python 2's names of modules.
MOVED = {
    "__builtin__": "builtins", "copy_reg": "copyreg", "cPickle": "pickle", "exceptions": "builtins",
}  # fmt: skip

_STANDARD = {
    "builtins": "bool bytearray bytes complex dict float frozenset int list long object range set "
    "slice str tuple type unicode xrange Ellipsis NotImplemented Exception ArithmeticError "
    "AssertionError AttributeError KeyError IndexError LookupError NotImplementedError OSError "
    "RuntimeError StopIteration TypeError ValueError getattr",  # of classes, see `_pickle`
    "collections": "ChainMap Counter OrderedDict UserDict UserList UserString defaultdict deque",
    "copyreg": "__newobj__ __newobj_ex__ _reconstructor",
    "_codecs": "encode",
    "datetime": "date datetime time timedelta timezone",
    "decimal": "Decimal",
    "fractions": "Fraction",
    "uuid": "UUID SafeUUID",
    "pathlib": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "pathlib._local": "Path PosixPath PurePath PurePosixPath PureWindowsPath WindowsPath",
    "functools": "partial",
    "argparse": "Namespace",
    "types": "SimpleNamespace NoneType EllipsisType",
    "enum": "Enum Flag IntEnum IntFlag StrEnum",
    "re": "_compile RegexFlag",
    "random": "Random",
    "array": "array _array_reconstructor",
    "itertools": "chain count cycle islice repeat",
    "logging": "Logger getLogger",
    "typing": "Any Callable ClassVar Dict Generic Iterable Iterator List Literal Mapping Optional "
    "Sequence Set Tuple Type TypeVar Union",
    "dataclasses": "_MISSING_TYPE",
    "inspect": "_empty _ParameterKind",
    "abc": "ABC ABCMeta",
    "io": "BytesIO StringIO",
    "_io": "BytesIO StringIO",
    "time": "struct_time",
    "weakref": "WeakKeyDictionary WeakSet WeakValueDictionary",
    "_weakrefset": "WeakSet",
}
_LIBRARY = sys.stdlib_module_names | frozenset(
    """
    commands popen2 urllib2 httplib asynchat asyncore imp smtpd distutils lib2to3 pipes crypt
    telnetlib StringIO cStringIO UserDict UserList dl new sets nt posix test
    """.split()  # noqa: SIM905  (gone from today's Python, known to another)
)
# Packages, modules and names that nothing in a checkpoint needs, and that run code or open files.
_REFUSED = frozenset(
    """
    pip setuptools pkg_resources distlib _distutils_hack wheel pytest _pytest py pluggy IPython
    ipykernel jupyter nbconvert cloudpickle dill joblib loky pexpect paramiko fabric invoke sh
    plumbum psutil cffi pycparser numba llvmlite cython pyximport h5py PIL cv2 requests aiohttp
    httpx urllib3 fsspec s3fs boto3 botocore gdown torch.hub torch.package torch._inductor
    torch._dynamo torch.utils.cpp_extension torch.utils.tensorboard torch.utils.bottleneck
    torch.utils.collect_env torch.utils._config_module torch.utils.data.datapipes
    torch.fx.graph_module torch.fx.experimental torch.load torch.save torch.compile torch.ops
    torch.classes torch.library torch.serialization.load torch.serialization.save
    torch.storage._load_from_bytes torch.jit.load torch.jit.save torch.testing torch.multiprocessing
    torch.distributed.rpc torch.distributed.run torch.distributed.launcher
    torch.distributed.elastic numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.load
    numpy.save numpy.savez numpy.savetxt numpy.loadtxt numpy.genfromtxt numpy.fromfile numpy.memmap
    numpy.DataSource numpy.lib numpy.core.multiarray.fromfile numpy._core.multiarray.fromfile
    numpy.core._ufunc_reconstruct numpy._core._ufunc_reconstruct
    """.split()  # noqa: SIM905  (a list of 80 literals would be harder to read)
)
# Of what is refused, what checkpoints do name: marks on a jagged tensor's axes.
_NAMED = frozenset({"torch._dynamo.decorators._DimRange"})
# Calls: a name; or a prefix, which ends with a dot or an underscore: of a module's classes, or of
# functions.
_CALLED = {
    "torch": """
    torch.Size torch.Tensor torch.device torch.storage.TypedStorage torch.storage.UntypedStorage
    torch.serialization._get_layout torch._utils._rebuild_ torch._tensor._rebuild_from_type
    torch._tensor._rebuild_from_type_v2 torch.tensor._rebuild_from_type
    torch.tensor._rebuild_from_type_v2
    torch.nn. torch.optim. torch.ao. torch.quantization. torch.amp. torch.cuda.amp.
    torch.distributions. torch.utils.hooks. torch.nested. torch.distributed.tensor.
    torch.distributed._tensor. torch.distributed._shard. torch.distributed.device_mesh.
    torch.distributed.fsdp. torch.distributed.checkpoint.metadata.
    torch.distributed.checkpoint.planner. torch.distributed.checkpoint.filesystem._StorageInfo
    torch.fx.immutable_collections. torch.jit._pickle.build_ torch.jit._pickle.restore_type_tag
    torch.sparse.
    """,
    "numpy": """
    numpy.dtype numpy.ndarray numpy.matrix numpy.recarray numpy.record numpy.dtypes. numpy.ma.core.
    numpy.ma.core._mareconstruct numpy.rec. numpy.random._pickle.__ numpy.random.__
    numpy.core.multiarray._reconstruct numpy._core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy._core.multiarray.scalar numpy.core.numeric._frombuffer
    numpy._core.numeric._frombuffer numpy.core._internal._convert_to_stringdtype_kwargs
    numpy._core._internal._convert_to_stringdtype_kwargs numpy.core._DType_reconstruct
    numpy._core._DType_reconstruct
    """,
}
_ALLOWED = {root: frozenset(names.split()) for root, names in _CALLED.items()}
_REBUILDING = ("construct", "rebuild", "unpickle", "restore", "_new")


def may_be_named(module: str, name: str) -> bool:
    """Whether a pickle of weights may mention `module.name`."""
    module = MOVED.get(module, module)
    if not (module.isprintable() and all(module.split("."))):
        return False
    *through, last = name.split(".")
    if not last.isidentifier() or not all(_class(part) for part in through):
        return False
    if module.partition(".")[0] in _LIBRARY:
        return name in _STANDARD.get(module, "").split()
    path = f"{module}.{name}"
    parts = path.split(".")
    return path in _NAMED or not any(
        ".".join(parts[:n]) in _REFUSED for n in range(1, len(parts) + 1)
    )


def may_be_called(module: str, name: str) -> bool:
    """Whether a name that may be mentioned is one of a constructor."""
    module = MOVED.get(module, module)
    root = module.partition(".")[0]
    if root in _LIBRARY:
        return True
    path = f"{module}.{name}"
    if root not in _ALLOWED:
        return _class(path.rpartition(".")[2]) or any(part in name for part in _REBUILDING)
    allowed = _ALLOWED[root]
    if path in allowed or any(path.startswith(a) for a in allowed if a.endswith("_")):
        return True
    if root == "torch" and module in ("torch", "torch.cuda") and name.endswith("Storage"):
        return True
    # Classes of the modules that are listed, but no class' method.
    return _class(name) and any(f"{module}.".startswith(a) for a in allowed if a.endswith("."))


def _class(name: str) -> bool:
    """Whether a name is written as classes are."""
    return name.isidentifier() and name.lstrip("_")[:1].isupper()

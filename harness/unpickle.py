"""Read a pickle without running anything that is in it.

A pickle is a program: it names functions, and calls them. Here a name may be what rebuilds tensors,
a plain container, or something of the packages that training scripts leave behind in checkpoints;
the latter become stubs that take any state and do nothing. Any other name is refused. Of a tensor
only a note is made, of which bytes it lies in: the pickle never touches torch itself.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import struct
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from typing import Any, Final, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import torch

INERT: Final = frozenset(
    ("argparse", "avion", "collections", "dateutil", "datetime", "decimal", "easydict", "fvcore",
     "iopath", "lavila", "ml_collections", "numpy", "omegaconf", "pandas", "pathlib", "pyarrow",
     "pytz", "slowfast", "timm", "uuid", "yacs", "zoneinfo")
)  # fmt: skip
"""packages whose names become stubs"""
INERT_NAMES: Final = frozenset(
    ("builtins.bytearray", "builtins.bytes", "builtins.object", "builtins.range", "builtins.slice",
     "torch.Tensor", "torch.device", "types.SimpleNamespace")
)  # fmt: skip
NAMESPACES: Final = ("argparse.Namespace", "types.SimpleNamespace")
STORAGES: Final = {
    "BFloat16Storage": torch.bfloat16,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
    "ShortStorage": torch.int16,
    "UntypedStorage": torch.uint8,
}
NUMBERS: Final = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "b1": "?"}
"""numpy's type codes -> those of `struct`"""


class Refused(Exception):
    """A file asks for a name that is not needed to rebuild tensors."""


class Stub:
    """Stands in for an object of another package: takes any construction and state, does nothing.

    Every name gets a class of its own, for pickles make objects of classes.
    """

    origin = ""
    """the dotted name it stands for"""

    def __new__(cls, *args: Any, **kwargs: Any) -> Stub:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.args: tuple[Any, ...]
        self.state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Left out, as are the others below: what pickles call to fill a mapping, list or set."""

    def append(self, item: Any) -> None: ...

    def extend(self, items: Any) -> None: ...

    def add(self, item: Any) -> None: ...


class Storage(NamedTuple):
    """A note of bytes in the file."""

    key: str
    dtype: torch.dtype
    start: int
    """first byte"""


class Note(NamedTuple):
    """A note of a tensor."""

    storage: Storage
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class Unpickler(pickle.Unpickler):
    """Reads a pickle into plain containers, stubs and notes; raises Refused at any other name."""

    def __init__(self, file: Any) -> None:
        super().__init__(file, encoding="utf-8")
        self.file = file
        self.itemsizes: dict[str, int] = {}
        """storage -> bytes of one of its values"""
        self.known = _rebuilders()

    def load(self) -> Any:
        """The pickled value; ValueError if an object is numbered far beyond those before it, for
        which all the memory there is would be set aside."""
        start = self.file.tell()
        for count, (opcode, argument, _) in enumerate(pickletools.genops(self.file)):
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and cast(int, argument) > count:
                raise ValueError(f"object {argument} after {count} steps")
        self.file.seek(start)
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        """What a name in the pickle means here."""
        module, name = NAME_MAPPING.get((module, name), (module, name))  # those of Python 2
        module = IMPORT_MAPPING.get(module, module)
        origin = f"{module}.{name}"
        if origin in self.known:
            return self.known[origin]
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        if module.split(".")[0] in INERT or origin in INERT_NAMES:
            return self.known.setdefault(origin, type("stub", (Stub,), {"origin": origin}))
        if module == "torch._utils" and name.startswith("_rebuild"):
            raise Refused(f"{origin} (of dense tensors only the plain kind is read)")
        raise Refused(origin)

    def persistent_load(self, pid: Any) -> Storage:
        """A storage, named by its type, key, device and size; before 1.6 it may be part of one."""
        match pid:
            case ("storage", torch.dtype() as dtype, str(key), _, int()) | (
                "storage", torch.dtype() as dtype, str(key), _, int(), None,
            ):  # fmt: skip
                start = 0
            case ("storage", torch.dtype() as dtype, str(key), _, int(), (_, int(first), int())):
                start = first * dtype.itemsize
            case _:
                raise ValueError(f"{str(pid)[:60]!r} is not a storage")
        self.itemsizes.setdefault(key, dtype.itemsize)
        return Storage(key, dtype, start)


def array_of(stub: Stub) -> npt.NDArray[Any]:
    """The numpy array that a stub stands for, made from its bytes; Refused if it is none.

    An array of objects holds what the pickle does: text, numbers and further stubs.
    """
    name = stub.origin.rpartition(".")[2]
    if name == "_reconstruct" and isinstance(stub.state, tuple) and len(stub.state) == 5:
        _, shape, kind, fortran, data = stub.state
    elif name == "_frombuffer" and len(stub.args) == 4:
        data, kind, shape, order = stub.args
        fortran = order == "F"
    else:
        raise Refused(f"{stub.origin or 'an object'} (only tensors and numpy's arrays are read)")
    if isinstance(data, list):
        objects = np.empty(len(data), object)
        objects[:] = data
        return objects.reshape(shape)
    code, byte_order = str(kind.args[0]), str(kind.state[1])
    if not re.fullmatch(r"[biufU]\d+", code):
        raise Refused(f"numpy's type {code}")
    flat = np.frombuffer(data, np.dtype(byte_order.replace("|", "") + code))
    return flat.reshape(shape, order="F" if fortran else "C")


def _rebuilders() -> dict[str, Any]:
    """What makes notes of tensors, and containers; made anew for each file, for a pickle can set
    attributes of whatever it is given."""

    class Ordered(dict):
        def __setstate__(self, state: Any) -> None:
            """Attributes, such as the `_metadata` of a state dict, are left out."""

    def tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> Note:
        if rest[2:] and rest[2]:
            raise Refused("torch._utils._rebuild_tensor_v2 with conjugate or negative bits")
        return Note(storage, storage.dtype, offset, shape, stride)

    def tensor_v3(
        storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any,
        *rest: Any,
    ) -> Note:  # fmt: skip
        return tensor(storage, offset, shape, stride, grad, hooks, *rest)._replace(dtype=dtype)

    def parameter(data: Any, *rest: Any) -> Any:
        return data

    def from_type(rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
        return rebuild(*args)

    def reconstructor(cls: Any, base: Any, state: Any) -> Any:
        return cls() if isinstance(cls, type) and issubclass(cls, Stub) else Stub()

    def encode(text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")

    def scalar(kind: Any, raw: Any = b"") -> Any:
        """numpy's number, where it is a common one of this byte order."""
        name = kind.args[0] if isinstance(kind, Stub) and kind.args else ""
        if re.fullmatch(r"U\d+", str(name)) and isinstance(raw, bytes):
            return raw.decode("utf-32-le").rstrip("\0")
        code = NUMBERS.get(name)
        usual = code and isinstance(raw, bytes) and len(raw) == struct.calcsize(code)
        order = kind.state[1] if usual and isinstance(kind.state, tuple) else ">"
        return struct.unpack("<" + code, raw)[0] if code and order in "<|" else Stub()

    plain: dict[str, Any] = {
        f"builtins.{kind.__name__}": kind for kind in (set, frozenset, list, dict, tuple, complex)
    }
    return plain | {
        "_codecs.encode": encode,
        "collections.OrderedDict": Ordered,
        "copyreg._reconstructor": reconstructor,
        "numpy._core.multiarray.scalar": scalar,
        "numpy.core.multiarray.scalar": scalar,
        "torch.Size": tuple,
        "torch._tensor._rebuild_from_type_v2": from_type,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_parameter_with_state": parameter,
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": tensor_v3,
    }

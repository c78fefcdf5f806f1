"""Read published checkpoints, safely: nothing that is in a file is run.

The pickle of a torch file is read into notes of which bytes make which tensor (`harness.unpickle`);
only the tensors of the state dict are then made, each checked to lie inside its bytes. Files of
results, whose arrays may also be numpy's in a plain pickle, are read in the same way.
"""

from __future__ import annotations

import contextlib
import io
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from harness.config import ConfigError, is_file, near_files
from harness.unpickle import NAMESPACES, Note, Refused, Stub, Unpickler, array_of

WRAPPINGS: Final = ("model_state", "state_dict", "model")
"""keys under which published files hold the state dict: ORViT and Motionformer; AVION and LaViLa"""

LEGACY: Final = (0x1950A86A20F9469CFC6C, 1001)
"""the two numbers a torch file from before 1.6 begins with"""


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, its wrapping taken off."""

    tensors: dict[str, Tensor]
    """on the CPU, without a leading `module.` before their names"""
    facts: dict[str, str | int | float]
    """the other simple values, e.g. `epoch`; those in `args` as `args.model`"""
    format: str
    """`torch zip`, `torch legacy` or `safetensors`"""


def read_checkpoint(path: Path) -> Checkpoint:
    """The tensors and simple values in a file; ConfigError if it is none, damaged or not safe."""
    instead = (
        "its state dict alone, e.g. by safetensors.torch.save_file, where the code that wrote it "
        "is at hand"
    )
    with _telling(path, "checkpoint", instead), open(path, "rb") as file:
        return _read(path, file, path.stat().st_size)


def read_values(path: Path) -> Any:
    """The object in a torch file or a plain pickle; its tensors and numpy arrays are numpy arrays.

    ConfigError as of `read_checkpoint`.
    """
    with _telling(path, "pickle", "its arrays alone, as a dictionary"), open(path, "rb") as file:
        if _head(file).startswith(b"PK\x03\x04"):
            with zipfile.ZipFile(file) as archive:
                return _values(*_open_zip(archive))
        first = Unpickler(file).load()
        if first != LEGACY[0]:
            return _values(first, lambda key: bytearray())
        file.seek(0)
        return _values(*_open_legacy(file, path.stat().st_size))


def _values(whole: Any, fetch: Callable[[str], bytearray]) -> Any:
    """Notes of tensors and stubs of arrays, at any depth, turned into arrays."""
    storages: dict[str, torch.UntypedStorage] = {}
    made: dict[int, Any] = {}

    def make(value: Any) -> Any:
        if id(value) not in made:  # what is named often is made once
            made[id(value)] = convert(value)
        return made[id(value)]

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: make(each) for key, each in value.items()}
        if isinstance(value, list | tuple) and not isinstance(value, Note):
            return [make(each) for each in value]
        if isinstance(value, Note):
            tensor = _tensor("tensor", value, storages, fetch)
            return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        array = array_of(value) if isinstance(value, Stub) else value
        if isinstance(array, np.ndarray) and array.dtype == object:
            array.flat[:] = [make(each) for each in array.flat]
        return array

    return make(whole)


@contextlib.contextmanager
def _telling(path: Path, kind: str, instead: str) -> Iterator[None]:
    """Turns whatever goes wrong with the file into one ConfigError."""
    if not is_file(path):
        raise ConfigError(f"{path}: no such file{near_files(path)}")
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Refused as error:
        raise ConfigError(
            f"{path}: asks for {error}, with which no tensor here is rebuilt; the file was refused "
            f"and nothing of it was run. If you trust it, save {instead}"
        ) from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from error
    except Exception as error:
        raise ConfigError(
            f"{path}: damaged, cut short or not a {kind} ({type(error).__name__}: {error})"
        ) from error


def _head(file: BinaryIO) -> bytes:
    """The first bytes; ConfigError if they are those of something that is often taken for it."""
    head = file.read(512)
    file.seek(0)
    if not head:
        raise ConfigError("is empty")
    if head.startswith(b"version https://git-lfs"):
        raise ConfigError(
            "is a pointer of Git LFS, not the file itself; fetch it with git lfs pull"
        )
    if head.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
        raise ConfigError("is a web page, not a checkpoint; download the file behind it")
    if head[257:262] == b"ustar":
        raise ConfigError("is a tar archive; unpack it, or save anew what the first torch wrote")
    return head


def _read(path: Path, file: BinaryIO, size: int) -> Checkpoint:
    head = _head(file)
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - 8:
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(file) as archive:
            whole, fetch = _open_zip(archive)
            return _checkpoint(whole, fetch, "torch zip")
    whole, fetch = _open_legacy(file, size)
    return _checkpoint(whole, fetch, "torch legacy")


def _read_safetensors(path: Path) -> Checkpoint:
    with safe_open(path, framework="pt", device="cpu") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        facts: dict[str, str | int | float] = dict(file.metadata() or {})
    if not tensors:
        raise ConfigError("holds no tensors")
    return Checkpoint(_bare(tensors), facts, "safetensors")


def _open_zip(archive: zipfile.ZipFile) -> tuple[Any, Callable[[str], bytearray]]:
    """(the pickled object with notes for tensors, what fetches the bytes of a storage)."""
    names = archive.namelist()
    if any(name.endswith("/constants.pkl") for name in names):
        raise ConfigError("is a TorchScript archive, a program; save its state dict alone")
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise ConfigError("is a zip file, but not one of torch's: it holds no data.pkl")
    (root,) = roots
    if root + "byteorder" in names and archive.read(root + "byteorder") != b"little":
        raise ConfigError("was saved on a big-endian machine; save it anew as safetensors")

    def fetch(key: str) -> bytearray:
        return bytearray(archive.read(f"{root}data/{key}"))

    return Unpickler(io.BytesIO(archive.read(root + "data.pkl"))).load(), fetch


def _open_legacy(file: BinaryIO, size: int) -> tuple[Any, Callable[[str], bytearray]]:
    """As `_open_zip`, for files from before torch 1.6: pickles, then the storages one by one."""
    if any(Unpickler(file).load() != number for number in LEGACY):
        raise ConfigError("is a pickle, but not a checkpoint of torch")
    if not Unpickler(file).load().get("little_endian", True):
        raise ConfigError("was saved on a big-endian machine; save it anew as safetensors")
    unpickler = Unpickler(file)
    whole = unpickler.load()
    places: dict[str, tuple[int, int]] = {}
    for key in Unpickler(file).load():
        (count,) = struct.unpack("<q", file.read(8))
        length = count * unpickler.itemsizes[key]
        places[key] = (file.tell(), length)
        if count < 0 or file.tell() + length > size:
            raise ValueError(f"storage {key} of {length} bytes is cut short")
        file.seek(length, io.SEEK_CUR)

    def fetch(key: str) -> bytearray:
        start, length = places[key]
        file.seek(start)
        return bytearray(file.read(length))

    return whole, fetch


def _checkpoint(whole: Any, fetch: Callable[[str], bytearray], form: str) -> Checkpoint:
    """Take the wrapping off and make the tensors."""
    if not isinstance(whole, dict):
        kind = "a tensor" if isinstance(whole, Note) else f"a {type(whole).__name__}"
        raise ConfigError(f"holds {kind}, not a state dict")
    insides = [whole.get(key) for key in WRAPPINGS] + [whole]
    notes = next((found for inside in insides if (found := _notes(inside))), None)
    if notes is None:
        names = ", ".join(str(name) for name in list(whole)[:8]) or "nothing"
        raise ConfigError(
            f"holds no tensors, neither at its top nor under {', '.join(WRAPPINGS)}; it has {names}"
        )
    storages: dict[str, torch.UntypedStorage] = {}
    tensors = {name: _tensor(name, note, storages, fetch) for name, note in notes.items()}
    return Checkpoint(_bare(tensors), _facts(whole), form)


def _notes(inside: Any) -> dict[str, Note]:
    items = inside.items() if isinstance(inside, dict) else ()
    return {name: v for name, v in items if isinstance(name, str) and isinstance(v, Note)}


def _tensor(
    name: str,
    note: Note,
    storages: dict[str, torch.UntypedStorage],
    fetch: Callable[[str], bytearray],
) -> Tensor:
    """The tensor of a note; those that share a storage in the file share it here."""
    key, _, start = note.storage
    if key not in storages:
        content = fetch(key)
        storages[key] = (
            torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
            if content
            else torch.UntypedStorage(0, device="cpu")
        )
    storage, size = storages[key], note.dtype.itemsize
    offset, shape, stride = start // size + note.offset, tuple(note.shape), tuple(note.stride)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True))
    inside = min(start, offset, *shape, *stride) >= 0 and start % size == 0
    if not inside or (0 not in shape and (last + 1) * size > storage.nbytes()):
        raise ValueError(f"the tensor {name!r} lies outside its storage")
    return torch.empty(0, dtype=note.dtype, device="cpu").set_(storage, offset, shape, stride)


def _bare(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Names without the `module.` that DistributedDataParallel puts before them."""
    bare = {name.removeprefix("module."): value for name, value in tensors.items()}
    if len(bare) != len(tensors):
        raise ConfigError("holds the same names with and without 'module.' before them")
    return bare


def _facts(whole: dict[Any, Any]) -> dict[str, str | int | float]:
    """The simple values of a checkpoint, and of its `args`."""
    args = whole.get("args")
    if isinstance(args, Stub) and args.origin in NAMESPACES:
        args = args.state
    inner = args.items() if isinstance(args, dict) else ()
    both = [*whole.items(), *((f"args.{key}", value) for key, value in inner)]
    return {k: v for k, v in both if isinstance(k, str) and type(v) in (str, int, float, bool)}

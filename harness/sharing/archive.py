"""The file in which a sweep travels: a .tar.gz whose manifest knows every other member.

    manifest.json          format, sweep, preset; size and SHA-256 of all that follows
    runs/<run id>/         spec.json of every run; of a run that is done also env.json, result.json,
                           metrics.jsonl, predictions.npz and, of some, weights.safetensors
    sweep.json             the record of the sweep, and when its claims were made

The same content gives the same bytes. What is read was written by others: a member that the
manifest does not know, or knows otherwise, ends the reading.

Source: none, ours.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, Field, ValidationError

from harness import __version__
from harness.config import Config, ConfigError, dotted, near_files
from harness.evaluate import Predictions, scores
from harness.files import write_atomic

FORMAT = 1
MANIFEST, RECORD = "manifest.json", "sweep.json"
SPEC, ENV, METRICS = "spec.json", "env.json", "metrics.jsonl"
PREDICTIONS, RESULT, WEIGHTS = "predictions.npz", "result.json", "weights.safetensors"
LEVEL = 6
"""of compression; weights hardly get smaller by more"""
TOLERANCE = 1e-9

Part = Literal[
    "env.json", "metrics.jsonl", "predictions.npz", "result.json", "spec.json",
    "weights.safetensors",
]  # fmt: skip
RunId = Annotated[str, Field(pattern=r"^[0-9a-f]{12}$")]
Name = Annotated[str, Field(pattern=r"^[^/\\.\x00-\x1f][^/\\\x00-\x1f]*$", max_length=200)]
"""of a sweep: files are called after it"""
Preset = Annotated[str, Field(pattern=r"^([^/\\.\x00-\x1f][^/\\\x00-\x1f]*)?$", max_length=200)]
M = TypeVar("M", bound=BaseModel)


class Sum(Config):
    bytes: int = Field(ge=0)
    sha256: str


class Manifest(Config):
    """What an archive holds."""

    format: Literal[1]
    harness: str
    """version that wrote it"""
    sweep: Name
    preset: Preset
    record: Sum
    runs: dict[RunId, dict[Part, Sum]]

    def members(self) -> dict[str, Sum]:
        """Name -> sum of every member but the manifest, in order."""
        named = {
            f"runs/{i}/{part}": told for i, run in self.runs.items() for part, told in run.items()
        }
        return dict(sorted({**named, RECORD: self.record}.items()))


def json_bytes(value: Any) -> bytes:
    """As all JSON of the store is written."""
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def write_archive(file: Path, sweep: str, preset: str, members: Mapping[str, bytes | Path]) -> None:
    """Write `file`, as a whole or not at all; `members` are contents, or files that hold them."""
    sums = {name: _sum(content) for name, content in members.items()}
    runs: dict[str, dict[str, Any]] = {}
    for name, told in sums.items():
        if name != RECORD:
            _, run_id, part = name.split("/")
            runs.setdefault(run_id, {})[part] = told
    about = {"format": FORMAT, "harness": __version__, "sweep": sweep, "preset": preset}
    manifest = json_bytes({**about, "record": sums[RECORD], "runs": runs})

    def write(out: BinaryIO) -> None:
        with (
            gzip.GzipFile("", "wb", LEVEL, out, mtime=0) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            _add(tar, MANIFEST, manifest)
            for name, content in sorted(members.items()):
                data = _bytes(content)
                if _sum(data) != sums[name]:
                    raise ConfigError(f"{name}: was changed meanwhile; export again")
                _add(tar, name, data)

    write_atomic(file, write)


def _bytes(content: bytes | Path) -> bytes:
    return content if isinstance(content, bytes) else content.read_bytes()


def _sum(content: bytes | Path) -> dict[str, Any]:
    data = _bytes(content)
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)  # no owner, time 0
    member.size, member.mode = len(data), 0o644
    tar.addfile(member, io.BytesIO(data))


def read_members(file: Path) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each member, the manifest first, all of them as it says.

    Raises ConfigError at the first thing that is not so, at the latest behind the last member.
    """
    if not file.is_file():
        raise ConfigError(f"{file}: no such file{near_files(file)}")
    try:
        with gzip.open(file) as packed, tarfile.open(fileobj=packed, mode="r:") as tar:
            first = tar.next()
            if first is None or first.name != MANIFEST or not first.isreg():
                raise ConfigError(f"{file}: not an archive of `harness export`: no {MANIFEST}")
            data = _read(tar, first)
            yield MANIFEST, data
            for name, told in manifest_of(data, file).members().items():
                member = tar.next()
                _check_header(file, member, name, told)
                assert member is not None
                content = _read(tar, member)
                if _sum(content) != told.model_dump():
                    raise ConfigError(f"{file}: damaged: {name} is not what the manifest says")
                yield name, content
            if (more := tar.next()) is not None:
                raise ConfigError(f"{file}: holds {more.name!r}, which its manifest does not know")
            while rest := packed.read(1 << 20):  # to its end, where gzip's own checksum stands
                if rest.strip(b"\0"):
                    raise ConfigError(f"{file}: something is hidden behind its end")
    except (OSError, EOFError, zlib.error, tarfile.TarError, UnicodeError) as error:
        raise ConfigError(f"{file}: damaged, or no archive ({error})") from None


def _check_header(file: Path, member: tarfile.TarInfo | None, name: str, told: Sum) -> None:
    if member is None:
        raise ConfigError(f"{file}: damaged: {name} is missing")
    if member.name != name:
        raise ConfigError(f"{file}: holds {member.name!r} where {name} should be")
    if not member.isreg() or member.issparse():
        raise ConfigError(f"{file}: {name} is not an ordinary file")
    if member.size != told.bytes:
        raise ConfigError(f"{file}: {name} has {member.size} bytes, {told.bytes} are announced")


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = tar.extractfile(member)
    assert content is not None  # it is an ordinary file
    return content.read()


def manifest_of(data: bytes, file: Path) -> Manifest:
    """Raises ConfigError if it is not of this format."""
    told = json_of(data, f"{file}: {MANIFEST}")
    if told.get("format") != FORMAT:
        raise ConfigError(
            f"{file}: has format {told.get('format')!r}, this version reads {FORMAT}; "
            f"it was written by harness {told.get('harness')!r}, this is {__version__}"
        )
    return fitting(Manifest, told, f"{file}: {MANIFEST}")


def json_of(data: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `data`."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: no JSON ({error})") from None
    if not isinstance(told, dict):
        raise ConfigError(f"{where}: not an object of JSON")
    return told


def fitting(model: type[M], value: Any, where: str) -> M:
    """`value` as a `model`; ConfigError with the first thing that is wrong."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(f"{where}: {dotted(first['loc'])}: {first['msg']}") from None


def score_problem(metrics: Mapping[str, float], said: Predictions | None) -> str:
    """How the test metrics of a result differ from what its predictions give; empty if not at all.

    Without this a number of a table could be changed by editing a result.
    """
    tested = {name[5:]: value for name, value in metrics.items() if name.startswith("test/")}
    if said is None:
        return "has scores on test, but no predictions" if tested else ""
    try:
        if len({len(said.ids), len(said.groups), len(said.subsets)}) > 1:
            raise ValueError("names, groups and subsets are not equally many")
        found = scores(said)
    except (ValueError, LookupError, TypeError) as error:
        return f"its predictions cannot be scored ({error})"
    for name in sorted({*tested, *found}):
        if name not in tested or name not in found:
            where = "its predictions" if name in found else "its result"
            return f"test/{name} is known to {where} alone"
        if not abs(tested[name] - found[name]) <= TOLERANCE:
            return f"test/{name} is {tested[name]}, its predictions give {found[name]}"
    return ""


def run_of(member: str) -> str:
    """`runs/0123456789ab/spec.json` -> `0123456789ab`; empty for what belongs to no run."""
    found = re.match(r"runs/(\w+)/", member)
    return found[1] if found else ""

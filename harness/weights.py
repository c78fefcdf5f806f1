"""What a checkpoint is, which encoder it fits, and putting it into one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from harness.checkpoint import Checkpoint, read_checkpoint
from harness.config import Config
from harness.contracts import Converted, Encoder, Stream
from harness.registry import ENCODERS, load_plugins

PUBLISHED: Final = {
    "fc3b7f": "AVION, ViT-B pre-trained on Ego4D",
    "91a90b": "AVION, ViT-B pre-trained on Ego4D with LaViLa's narrations",
    "f377f6": "AVION, ViT-L pre-trained on Ego4D with LaViLa's narrations",
    "b40f3e": "AVION, ViT-B fine-tuned on EK100 from the baseline: 67.9 / 57.6 / 47.3",
    "6c3c5e": "AVION, ViT-B fine-tuned on EK100: 70.0 / 59.4 / 49.5",
    "1871f4": "AVION, ViT-L fine-tuned on EK100: 73.0 / 65.4 / 54.4",
    "d73a9c": "LaViLa, TSF-B pre-trained on Ego4D",
    "c89337": "LaViLa, TSF-L pre-trained on Ego4D",
    "e8aa0c": "LaViLa, TSF-B fine-tuned on EK100, one classifier: 67.7 / 56.7 / 46.2",
    "4e3575": "LaViLa, TSF-B fine-tuned on EK100, three classifiers: 69.0 / 58.4 / 46.9",
    "4a2509": "LaViLa, TSF-L fine-tuned on EK100, three classifiers: 72.0 / 62.9 / 51.0",
}
"""first six digits of the MD5 that a repository prints beside its file -> the file, and what it
reports: verb / noun / action top-1, %"""

TELLING: Final = re.compile(
    r".*acc\w*|epoch|(args\.)?(model|arch|dataset|clip_length|clip_stride|num_classes|norm_style)"
)
"""names of facts that say what a file is"""


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint match those of an encoder."""

    loaded: tuple[str, ...]
    """names in the encoder that it has"""
    missing: tuple[str, ...]
    """names in the encoder that it lacks"""
    unexpected: tuple[str, ...]
    """names in it that the encoder lacks"""
    resized: tuple[str, ...]
    """what was changed in shape to fit"""


def fit(encoder: Encoder, state: Mapping[str, Tensor]) -> tuple[Converted, Fit]:
    """`state` in the encoder's terms, and how it matches; ValueError if shapes differ."""
    found = encoder.convert(state)
    own = encoder.state_dict()
    wrong = [
        f"{name} is {tuple(value.shape)}, needed is {tuple(own[name].shape)}"
        for name, value in found.tensors.items()
        if name in own and own[name].shape != value.shape
    ]
    if wrong:
        raise ValueError("; ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" * (len(wrong) > 3)))
    return found, Fit(
        loaded=tuple(name for name in own if name in found.tensors),
        missing=tuple(name for name in own if name not in found.tensors),
        unexpected=(*found.unexpected, *(name for name in found.tensors if name not in own)),
        resized=tuple(found.resized),
    )


def load_into(encoder: Encoder, state: Mapping[str, Tensor], where: str, kind: str) -> Fit:
    """Copy a checkpoint into an encoder; `where` is the file that messages name.

    `kind` is `pretrained`, then what the encoder's `may_start_fresh` allows may be missing, or
    `finetuned` or `run`, then nothing may be missing, nor be there that the encoder has no place
    for. Raises ValueError where that is not so, or shapes differ. On the meta device it only
    checks.
    """
    name = type(encoder).__name__
    try:
        found, told = fit(encoder, state)
    except ValueError as error:
        raise ValueError(f"{where}: does not fit {name}: {error}") from None
    if told.missing and not told.loaded:
        raise ValueError(
            f"{where}: holds nothing of {name}: it has {_few(list(state))}; "
            f"needed are {_few(told.missing)}"
        )
    fresh = [n for n in told.missing if re.fullmatch(encoder.may_start_fresh, n)]
    lacking = [n for n in told.missing if not (kind == "pretrained" and n in fresh)]
    if lacking:
        hint = ". `init: pretrained:` lets these start anew" if lacking == fresh else ""
        raise ValueError(f"{where}: lacks {_few(lacking)} of {name}{hint}")
    left = [n for n in told.unexpected if not re.fullmatch(encoder.may_be_left_out, n)]
    if left and kind != "pretrained":
        raise ValueError(f"{where}: has {_few(left)}, for which {name} has no place")
    if not any(value.is_meta for value in encoder.state_dict().values()):
        encoder.load_state_dict({n: found.tensors[n] for n in told.loaded}, strict=False)
    return told


def describe(path: Path) -> str:
    """What `harness weights FILE` prints."""
    load_plugins()
    checkpoint = read_checkpoint(path)
    blocks = ["\n".join(_head(path, checkpoint))]
    for stream, state in _parts(checkpoint.tensors):
        fits = [
            "\n".join(_fitting(name, ENCODERS[name], facts, state, path, stream))
            for name in ENCODERS
            if (facts := _recognised(ENCODERS[name], state)) is not None
        ]
        blocks += fits or ["\n".join(_unknown(state, stream))]
    return "\n\n".join(blocks)


def _recognised(cls: type[Encoder], state: Mapping[str, Tensor]) -> dict[str, Any] | None:
    try:
        return cls.recognise(state)
    except (ValueError, TypeError, IndexError, ZeroDivisionError):
        return None  # its names, but not its shapes


def _head(path: Path, checkpoint: Checkpoint) -> Iterator[str]:
    with open(path, "rb") as file:
        md5 = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    values = sum(value.numel() for value in checkpoint.tensors.values())
    kinds = sorted({str(v.dtype).removeprefix("torch.") for v in checkpoint.tensors.values()})
    facts = [f"{k} {v}" for k, v in checkpoint.facts.items() if TELLING.fullmatch(k)]
    yield str(path)
    yield f"  size      {path.stat().st_size / 1e6:,.1f} MB"
    yield f"  md5       {md5[:6]} ({md5})"
    if md5[:6] in PUBLISHED:
        yield f"            as {PUBLISHED[md5[:6]]}"
    yield f"  format    {checkpoint.format}"
    if facts:
        yield f"  facts     {', '.join(facts)}"
    yield f"  tensors   {len(checkpoint.tensors)}, {values:,} values, {', '.join(kinds)}"


def _parts(tensors: Mapping[str, Tensor]) -> list[tuple[str, dict[str, Tensor]]]:
    """(stream, state dict of its encoder) of a file that a run saved; ("", all) of any other."""
    inside: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("encoders.") and name.count(".") > 1:
            _, stream, rest = name.split(".", 2)
            inside.setdefault(stream, {})[rest] = value
    return list(inside.items()) or [("", dict(tensors))]


def _fitting(
    name: str,
    cls: type[Encoder],
    facts: Mapping[str, Any],
    state: Mapping[str, Tensor],
    path: Path,
    stream: str,
) -> Iterator[str]:
    """An encoder that recognises the file: facts, how the tensors match, what to write."""
    options = {key: value for key, value in facts.items() if key in cls.Config.model_fields}
    others = [
        f"{key} {_said(value)}" for key, value in facts.items() if key not in {*options, "name"}
    ]
    yield f"fits the encoder {name}" + (f" (stream {stream})" if stream else "")
    yield f"  options   {', '.join(f'{key} {value}' for key, value in options.items()) or 'none'}"
    if others:
        yield f"  facts     {', '.join(others)}"
    raw = _raw(cls, facts)
    try:
        config: Config = cls.Config.model_validate(options)
        with torch.device("meta"):
            encoder = cls.build(config, raw, path)
        found, told = fit(encoder, state)
    except ValueError as error:
        yield f"  but not   {error}"
        return
    yield f"  built     for {raw.kind} of {' x '.join(map(str, raw.shape))}"
    yield f"  loaded    {len(told.loaded)} of {len(encoder.state_dict())} tensors of the encoder"
    for title in ("missing", "unexpected", "resized"):
        if names := getattr(told, title):
            yield f"  {title:<9} {_few(names)}"
    heads = [f"{head} {tuple(value.shape)}" for head, value in found.heads.items()]
    yield f"  heads     {', '.join(heads) or 'none'}"
    lacking = [n for n in told.missing if not re.fullmatch(cls.may_start_fresh, n)]
    if lacking:
        yield f"  but not   it lacks {_few(lacking)}, which cannot start anew"
        return
    kind = "finetuned" if found.heads and not told.missing else "pretrained"
    written = f"name: {name}, options: {_flow(options)}" if options else f"name: {name}"
    init = json.dumps(f"{kind}:{path.resolve()}", ensure_ascii=False)
    yield f"  write     encoders.{stream or raw.kind}: {{{written}, init: {init}}}"
    if kind == "finetuned":
        head = "pre_logits" if any(n.startswith("pre_logits") for n in found.heads) else "linear"
        yield "  to score it as it is, with option `tokens: cls` and"
        yield f"            head: {head}, train.method: evaluate,"
        yield "            fusion: {name: single, options: {project: false}}"


def _raw(cls: type[Encoder], facts: Mapping[str, Any]) -> Stream:
    """A stream that the encoder can be built for; the facts say how large."""
    kind = cls.kinds[0] if cls.kinds else "video"
    frames, image = int(facts.get("frames") or 16), int(facts.get("image") or 224)
    shapes = {"video": (frames, image, image, 3), "text": (64,)}
    return Stream(kind, shapes.get(kind, (128, 3)))


def _unknown(state: Mapping[str, Tensor], stream: str) -> Iterator[str]:
    if stream:
        yield f"weights that a run saved, of the stream {stream}: {len(state)} tensors"
        yield "  they fit the encoder and options that run was made with"
        return
    yield "no encoder recognises it as a published checkpoint; it begins with"
    yield from (f"  {name} {tuple(value.shape)}" for name, value in list(state.items())[:10])
    if len(state) > 10:
        yield f"  and {len(state) - 10} more"
    known = [name for name in ENCODERS if "recognise" in _overridden(ENCODERS[name])]
    yield f"encoders that recognise published checkpoints: {', '.join(known) or 'none'}"
    yield f"encoders that take their own state dict: {', '.join(ENCODERS)}"


def _overridden(cls: type[Encoder]) -> set[str]:
    """Names that a class or a base of it below Encoder defines."""
    own = cls.__mro__[: cls.__mro__.index(Encoder)]
    return {name for part in own for name in vars(part)}


def _flow(options: Mapping[str, Any]) -> str:
    """Options as a YAML flow mapping."""
    plain = {k: v if re.fullmatch(r"[A-Za-z_]\w*", str(v)) else None for k, v in options.items()}
    inner = [f"{k}: {plain[k] or json.dumps(v)}" for k, v in options.items()]
    return f"{{{', '.join(inner)}}}"


def _said(value: Any) -> str:
    """A fact in words: `verb 97, noun 300` of a mapping."""
    if isinstance(value, Mapping):
        return " and ".join(f"{key} {inner}" for key, inner in value.items()) or "none"
    return str(value)


def _few(names: Sequence[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - 4} more" if len(names) > 4 else ""
    return ", ".join(names[:4]) + more


def in_words(told: Mapping[str, Any]) -> str:
    """`pretrained: 253 loaded, 24 missing (network.blocks.1.box_categories, ...)`."""
    words = [f"{told['loaded']} loaded"] if "loaded" in told else []
    for what in ("missing", "unexpected", "resized", "heads", "heads_left"):
        names = list(told.get(what, ()))
        if names:
            words.append(
                f"{len(names)} {what.replace('_', ' ')} ({names[0]}{', ...' if names[1:] else ''})"
            )
    return f"{told['from']}: {', '.join(words) or 'loaded'}"

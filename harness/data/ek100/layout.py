"""Where the footage of each video lies, in every layout that EPIC-Kitchens-100 users have.

Source: the download script, the EPIC-KITCHENS-55 and 100 data sets at data.bris.ac.uk, and the
loaders of AVION, LaViLa, ORViT and InAViT. In any letter case, with or without `EPIC-KITCHENS/`:

    videos   {pid}/videos/{vid}.MP4   {pid}/{vid}.MP4   {vid}.MP4
             videos/{train,test}/{pid}/{vid}.MP4   and all of these as .avi
    chunks   {pid}/{vid}.MP4/{second}.MP4   {vid}.MP4/{second}.MP4
    frames   {pid}/rgb_frames/{vid}/frame_{frame:010d}.jpg
             frames_rgb_flow/rgb/{train,test}/{pid}/{vid}/...   {pid}/{vid}/...   {vid}/...
    tars     the same, with {vid}.tar in place of the folder

Each video is taken from the first place in this order that has it: whole videos before chunks (they
have the camera's own time stamps), images last, and unpacked ones before tars.
"""

from __future__ import annotations

import os
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from harness.config import ConfigError
from harness.data.ek100.footage import BadFootage, Footage
from harness.data.ek100.staging import Stage

Kind = Literal["videos", "chunks", "frames", "tars"]

WHOLE = (
    "{pid}/videos/{vid}",
    "{pid}/{vid}",
    "{vid}",
    "videos/train/{pid}/{vid}",
    "videos/test/{pid}/{vid}",
)
IMAGES = (
    "{pid}/rgb_frames/{vid}",
    "frames_rgb_flow/rgb/train/{pid}/{vid}",
    "frames_rgb_flow/rgb/test/{pid}/{vid}",
    "{pid}/{vid}",
    "{vid}",
)
KNOWN = (
    *(f"{place}.{suffix}" for suffix in ("MP4", "avi") for place in WHOLE),
    *("{pid}/{vid}.MP4/{second}.MP4", "{vid}.MP4/{second}.MP4"),
    *(place + "/frame_{frame:010d}.jpg" for place in IMAGES),
    *(f"{place}.tar" for place in IMAGES),
)
TOPS = ("", "EPIC-KITCHENS/")
SUFFIXES = (".jpg", ".jpeg")
FIELDS = ("pid", "vid", "frame", "second")
SEEN_SUFFIXES = (".mp4", ".avi", ".mkv", ".mov", ".webm", ".tar", *SUFFIXES)
LOOKED_AT = 20_000
"""names that are read to say what lies there instead"""


class Place(NamedTuple):
    """Where the footage of one video lies."""

    kind: Kind
    path: Path
    """the file; of chunks and frames, the folder"""
    name: str = ""
    """of frames: pattern of a file's name, with `{frame}`"""
    first: int = 1
    """of frames: number of the first one"""
    files: tuple[tuple[int, str], ...] = ()
    """of chunks: (second, name), in order"""


@dataclass(frozen=True)
class Layout:
    """Where each of the asked videos lies; it can be sent to another process."""

    root: Path
    places: Mapping[str, Place]
    """video -> place, of those that were found"""
    missing: tuple[str, ...]
    """videos that were not found, in the order asked for"""
    cache: Path | None = None
    """folder that keeps indices of tars"""
    stage: Stage | None = None
    """what copies videos, chunks and tars to a fast folder as they are opened"""

    @property
    def kind(self) -> str:
        """`videos`, `chunks`, `frames` or `tars`; several are joined by ` + `."""
        return " + ".join(sorted({place.kind for place in self.places.values()}))

    def open(self, video: str) -> Footage:
        """The footage of a video. Raises BadFootage if it was not found."""
        place = self.places.get(video)
        if place is None:
            raise BadFootage.at(video, self.root, None, "no footage of it was found")
        if place.kind in ("videos", "chunks"):
            from harness.data.ek100.video import Chunks, Video

            if place.kind == "videos":
                return Video(video, self._staged(place.path))
            return Chunks(video, place.path, place.files, self.stage)
        from harness.data.ek100.images import Frames, TarFrames

        if place.kind == "frames":
            return Frames(video, place.path, place.name, place.first)
        return TarFrames(video, self._staged(place.path), self.cache)

    def _staged(self, path: Path) -> Path:
        return path if self.stage is None else self.stage.file(path)

    def digest_parts(self, videos: Sequence[str]) -> list[str]:
        """One line per video: its kind, and sizes in bytes that change where its content does.

        Of frames, it is their number and the size of the first. Nothing is decoded, no path named.
        """
        return [f"{video} {self._facts(video)}" for video in videos]

    def _facts(self, video: str) -> str:
        place = self.places.get(video)
        if place is None:
            return "missing"
        try:
            if place.kind == "chunks":
                sizes = [(s, (place.path / name).stat().st_size) for s, name in place.files]
                return "chunks " + " ".join(f"{second}:{size}" for second, size in sizes)
            if place.kind == "frames":
                from harness.data.ek100.images import Frames

                frames = Frames(video, place.path, place.name, place.first)
                return f"frames {frames.count} {frames.file(place.first).stat().st_size}"
            return f"{place.kind} {place.path.stat().st_size}"
        except OSError as error:
            raise BadFootage.at(video, place.path, None, str(error.strerror)) from None


def find_layout(
    root: Path, template: str | None, videos: Sequence[str], cache: Path | None = None
) -> Layout:
    """Where under `root` each of `videos` lies; the module says where is looked, in which order.

    `template` replaces those places by one, e.g. `{pid}/small/{vid}.mp4`: `{frame}` or
    `{frame:06d}` stands for an image's number, `{second}` for the begin of a chunk. `cache` is a
    folder that may keep indices of tars. Raises ConfigError for a template that cannot be used, and
    ValueError if there is no footage of any of the videos.
    """
    templates = _tops(KNOWN) if template is None else (template,)
    patterns = [Pattern.of(one) for one in templates]
    shelf = Shelf(root)
    places = {}
    for video in videos:
        found = next(filter(None, (shelf.find(pattern, video) for pattern in patterns)), None)
        if found is not None:
            places[video] = found
    if not places:
        raise ValueError(_nothing(root, template, videos))
    missing = tuple(video for video in videos if video not in places)
    return Layout(root, places, missing, cache)


def _tops(templates: Sequence[str]) -> tuple[str, ...]:
    return tuple(top + template for template in templates for top in TOPS)


class Pattern(NamedTuple):
    """A template that was looked through."""

    kind: Kind
    folders: tuple[str, ...]
    name: str
    """its last part"""

    @classmethod
    def of(cls, template: str) -> Pattern:
        """Raises ConfigError for a template that cannot be used."""
        where = f"template {template!r}"
        try:
            fields = [
                part[1:] for part in string.Formatter().parse(template) if part[1] is not None
            ]
        except ValueError as error:
            raise ConfigError(f"{where}: {error}") from None
        for name, form, conversion in fields:
            if name not in FIELDS:
                known = ", ".join(f"{{{known}}}" for known in FIELDS)
                raise ConfigError(f"{where}: unknown field {{{name}}}. Known: {known}")
            if conversion or (form and not (name == "frame" and re.fullmatch(r"0?\d*d", form))):
                raise ConfigError(f"{where}: {{{name}}} cannot be written so; {{frame:06d}} can")
        names = {name for name, _, _ in fields}
        *folders, last = template.split("/")
        if "vid" not in names:
            raise ConfigError(f"{where}: it has no {{vid}}, so all videos would be one")
        if {"frame", "second"} <= names or any("{frame" in f or "{second" in f for f in folders):
            raise ConfigError(f"{where}: {{frame}} or {{second}} may stand in the file's name only")
        if not all(part not in ("", ".", "..") for part in (*folders, last)):
            raise ConfigError(
                f"{where}: write it as folders below the root, e.g. {{pid}}/{{vid}}.mp4"
            )
        kind: Kind = "tars" if last.lower().endswith(".tar") else "videos"
        if "frame" in names and not last.lower().endswith(SUFFIXES):
            raise ConfigError(f"{where}: frames are JPEG files; end it in .jpg")
        kind = "frames" if "frame" in names else "chunks" if "second" in names else kind
        return cls(kind, tuple(folders), last)


@dataclass
class Shelf:
    """Looks for files in any letter case, and reads each folder once."""

    root: Path
    listed: dict[Path, dict[str, os.DirEntry[str]]] = field(default_factory=dict)

    def names(self, folder: Path) -> dict[str, os.DirEntry[str]]:
        """Lower-case name -> entry; nothing if there is no such folder."""
        if folder not in self.listed:
            try:
                with os.scandir(folder) as entries:
                    known = sorted(entries, key=lambda entry: entry.name)
            except (FileNotFoundError, NotADirectoryError):
                known = []
            except OSError as error:
                raise ValueError(f"{folder}: cannot be listed: {error.strerror}") from None
            self.listed[folder] = {entry.name.lower(): entry for entry in known}
        return self.listed[folder]

    def find(self, pattern: Pattern, video: str) -> Place | None:
        """The place of a video in one layout."""
        keys = {"pid": video.split("_")[0], "vid": video}
        folder = self.root
        for part in pattern.folders:
            entry = self.names(folder).get(part.format(**keys).lower())
            if entry is None or not entry.is_dir():
                return None
            folder = folder / entry.name
        if pattern.kind == "frames":
            return _frames(folder, pattern.name, keys)
        if pattern.kind == "chunks":
            files = self._chunks(folder, pattern.name, keys)
            return Place("chunks", folder, files=files) if files else None
        entry = self.names(folder).get(pattern.name.format(**keys).lower())
        if entry is None or not entry.is_file():
            return None
        return Place(pattern.kind, folder / entry.name)

    def _chunks(
        self, folder: Path, name: str, keys: Mapping[str, str]
    ) -> tuple[tuple[int, str], ...]:
        escaped = re.escape(name.format(**keys, second="\0"))
        wanted = re.compile(escaped.replace(re.escape("\0"), r"(\d+)"), re.IGNORECASE)
        found = {
            int(match[1]): entry.name
            for entry in self.names(folder).values()
            if (match := wanted.fullmatch(entry.name)) and entry.is_file()
        }
        return tuple(sorted(found.items()))


def _frames(folder: Path, name: str, keys: Mapping[str, str]) -> Place | None:
    """Frames in a folder, which is not listed: it may hold a hundred thousand."""
    stem, _, suffix = name.rpartition(".")
    endings = dict.fromkeys(("." + suffix, *SUFFIXES, *(one.upper() for one in SUFFIXES)))
    for ending in endings:
        for first in (0, 1):
            one = stem + ending
            if os.path.exists(folder / one.format(**keys, frame=first)):
                pattern = one.replace("{vid}", keys["vid"]).replace("{pid}", keys["pid"])
                return Place("frames", folder, pattern, first)
    return None


def _nothing(root: Path, template: str | None, videos: Sequence[str]) -> str:
    """Where was looked in vain, and what is there instead."""
    asked = ", ".join(videos[:3]) + (", ..." if len(videos) > 3 else "")
    looked = "\n".join(f"    {one}" for one in (KNOWN if template is None else (template,)))
    also = "" if template else "also below EPIC-KITCHENS/, "
    return (
        f"{root}: no footage of any of {len(videos)} videos ({asked}) was found; "
        f"{_instead(root, videos)}. Looked, {also}in any letter case, for\n{looked}\n"
        f"A `template` such as {{pid}}/small/{{vid}}.mp4 tells where else to look."
    )


def _instead(root: Path, videos: Sequence[str]) -> str:
    if not root.is_dir():
        return "it is not a folder" if root.exists() else "there is no such folder"
    wanted = re.compile("|".join(map(re.escape, videos)), re.IGNORECASE)
    likely = ""
    for number, path in enumerate(_walk(root)):
        if videos and wanted.search(path.name):
            return f"the nearest thing is {path.relative_to(root)}"
        if not likely and path.suffix.lower() in SEEN_SUFFIXES:
            likely = f"the nearest thing is {path.relative_to(root)}"
        if number == LOOKED_AT:
            break
    there = sorted(entry.name for entry in os.scandir(root))
    return likely or (
        f"the folder holds {', '.join(there[:5])}" if there else "the folder is empty"
    )


def _walk(root: Path) -> Iterator[Path]:
    """Everything below `root`, in order; folders are not left before they are read."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in (*folders, *sorted(files)):
            yield Path(folder, name)

"""What is right and wrong with the files of EPIC-Kitchens-100 on a machine.

Source: none, ours; the counts are those of the annotation repository.

Every check is one `Look`; a later one is left out where an earlier one found nothing to work on.
Nothing is copied to `scratch`: footage that was copied before is read there, all else in place.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from harness.data.ek100 import Ek100, Ek100Places, sampling
from harness.data.ek100.annotations import (
    ACTIONS,
    VIDEO_INFO,
    WHERE_FROM,
    Annotations,
    rows,
    word,
)
from harness.data.ek100.footage import OVERRUN_SECONDS, BadFootage, check
from harness.data.ek100.layout import Layout, find_layout
from harness.data.ek100.trial import POLICIES, clips, speed
from harness.finding import NAMED, Finding, Look, looked, some

COUNTS = {"train": 67_217, "validation": 9_668, "actions": ACTIONS}
"""as the annotation repository has them"""
LOOKING = 8
"""files that are looked at side by side: most of the time goes into waiting for a disk"""
SITE_LINES = """write harness.site.yaml (docs/ek100.md says more):
    data:
      ek100:
        annotations: /data/epic-kitchens-100-annotations  # {annotations}
        footage: /data/EPIC-KITCHENS                      # {footage}
        boxes: /data/EPIC-KITCHENS                        # {boxes}
        questions: /data/questions.jsonl                  # not needed by `questions: constant`
        scratch: /local/ek100                             # if there is a faster disk"""
DOWNLOADER = "python epic_downloader.py --output-path /data"


class Facts(NamedTuple):
    """What the header of a video says."""

    duration: float
    rate_problem: str
    """empty if there is none"""


def examine(dataset: Ek100, workers: int, seconds: float) -> Iterator[Look]:
    """All looks, in order."""
    yield (site := _site(dataset.places or Ek100Places()))
    if site.finding.state == "fail":
        return
    try:
        found = dataset.annotations
    except (ValueError, OSError) as error:
        yield Look("annotations", Finding("fail", str(error), f"`{WHERE_FROM}`"))
        return
    visit = Visit(dataset, found)
    yield visit.counted()
    try:
        layout = visit.layout
    except (ValueError, OSError) as error:
        yield Look("footage", Finding("fail", str(error), f"`{DOWNLOADER} --videos`"))
        return
    yield visit.footage()
    yield from visit.lengths()
    yield visit.early()
    yield visit.scratch()
    yield visit.boxes()
    yield visit.questions()
    dataset.layout, dataset.used = layout, frozenset(("video",))
    yield clips(dataset)
    yield speed(dataset, workers, seconds)


def _site(own: Ek100Places) -> Look:
    """Whether the site file says where the files are."""
    lacking = [name for name in ("annotations", "footage") if getattr(own, name) is None]
    if lacking:
        what = f"no data.ek100 with {' and '.join(lacking)} in harness.site.yaml"
        lines = SITE_LINES.format(
            annotations=WHERE_FROM,
            footage=f"{DOWNLOADER} --videos",
            boxes="for ORViT: P01/hand-objects/P01_01.pkl",
        )
        return Look("site file", Finding("fail", what, lines))
    given = {name: place for name, place in own if isinstance(place, Path) and name != "scratch"}
    gone = [f"{name}: {place} is not there" for name, place in given.items() if not place.exists()]
    if gone:
        fix = "correct data.ek100 in harness.site.yaml; its paths are relative to that file"
        return Look("site file", Finding("fail", "; ".join(gone), fix))
    return Look("site file", Finding("ok", ", ".join(f"{k} {v}" for k, v in given.items())))


class Visit:
    """The dataset with annotations that could be read."""

    def __init__(self, dataset: Ek100, found: Annotations) -> None:
        self.dataset, self.found = dataset, found
        self.places = dataset.places or Ek100Places()
        self.segments = (*found.train, *found.validation)
        self.videos = sorted({segment.video for segment in self.segments})

    def counted(self) -> Look:
        """Segments and actions, against the published ones."""
        found = {
            "train": len(self.found.train),
            "validation": len(self.found.validation),
            "actions": len(self.found.actions),
        }
        told = ", ".join(f"{count:,} {name}" for name, count in found.items())
        other = [f"{COUNTS[k]:,} {k}" for k, n in found.items() if n != COUNTS[k]]
        try:
            told += f", {len(self.info)} videos in {VIDEO_INFO}" if self.info else ""
        except ValueError as error:
            self.info = {}
            return Look("annotations", Finding("warn", f"{told}; {error}", f"`{WHERE_FROM}`"))
        if not other:
            return Look("annotations", Finding("ok", told))
        fix = f"EPIC-Kitchens-100 has {', '.join(other)}: is this a part of it?"
        return Look("annotations", Finding("warn", told, fix))

    @cached_property
    def layout(self) -> Layout:
        """Where the videos lie that are there. Raises ValueError if none is."""
        assert self.places.footage is not None
        own = self.places
        layout = find_layout(self.places.footage, own.template, self.videos, own.scratch)
        return self.dataset.staged(layout, copies=False)

    def footage(self) -> Look:
        """How many of the videos are there, in which layout."""
        layout, missing = self.layout, self.layout.missing
        told = f"{len(layout.places)} of {len(self.videos)} videos, {layout.kind}"
        if self.info:
            own = self.places
            whole = find_layout(layout.root, own.template, sorted(self.info), own.scratch)
            told += f"; {len(whole.places)} of the {len(self.info)} of {VIDEO_INFO}"
        if not missing:
            return Look("footage", Finding("ok", told))
        gone = set(missing)
        lost = [one.narration_id for one in self.segments if one.video in gone]
        told += f"; missing: {some(missing)}, {len(lost):,} segments with them"
        fix = f"`{DOWNLOADER} --videos --specific-videos {','.join(missing[:NAMED])}`; see --list"
        return Look("footage", Finding("fail", told, fix), (*missing, *lost))

    @cached_property
    def info(self) -> dict[str, float]:
        """Video -> its rate, if the list of videos is there and can be read."""
        file = Path(self.places.annotations or ".", VIDEO_INFO)
        if not file.is_file():
            return {}
        listed = rows(file, {"video_id": word, "fps": float})
        return {str(video): float(fps) for video, fps in listed}  # type: ignore[arg-type]

    def lengths(self) -> Iterator[Look]:
        """Rates and lengths of the videos, and which segments do not fit into them."""
        names = sorted(self.layout.places)
        with ThreadPoolExecutor(LOOKING) as pool:
            seen = dict(zip(names, pool.map(self._facts, names), strict=True))
        broken = tuple(str(facts) for facts in seen.values() if isinstance(facts, BadFootage))
        known = {name: facts for name, facts in seen.items() if isinstance(facts, Facts)}
        odd = tuple(facts.rate_problem for facts in known.values() if facts.rate_problem)
        fix = f"get them again: {DOWNLOADER} --videos --specific-videos ...; or {POLICIES}"
        yield looked("headers", f"{len(known)} of {len(seen)} can be opened", broken, fix, "fail")
        what = "as annotated" if self.info else f"not compared, there is no {VIDEO_INFO} to be read"
        fix = "a copy at another rate is read by its own time stamps: see that none is cut"
        yield looked("rates", f"{len(known) - len(odd)} {what}", odd, fix, "warn")
        late = tuple(
            f"{s.narration_id}: ends at {s.stop:.2f} s, {s.video} at {known[s.video].duration:.2f}"
            for s in self.segments
            if s.video in known and s.stop > known[s.video].duration + OVERRUN_SECONDS
        )
        fix = f"is the video cut? {POLICIES}"
        yield looked("segments", "all end within their videos", late, fix, "warn")
        empty = tuple(one.narration_id for one in self.segments if one.stop <= one.start)
        yield looked("zero length", "no segment", empty, POLICIES, "warn")

    def _facts(self, video: str) -> Facts | BadFootage:
        try:
            footage = self.layout.open(video)
            expected = self.info.get(video)
            problem = check(footage, expected) if expected else ""
            return Facts(footage.duration, problem)
        except BadFootage as error:
            return error
        except ValueError as error:  # a name from which no rate follows
            return BadFootage.at(video, self.layout.root, None, str(error))

    def early(self) -> Look:
        """Segments before which nothing can be observed."""
        own = self.dataset.config
        train, test = (
            tuple(
                one.narration_id
                for one in part
                if sampling.anticipation(one, own.frames, own.ahead) is None
            )
            for part in (self.found.train, self.found.validation)
        )
        told = (
            f"begin within the first {own.ahead:g} s: {len(test)} of validation, scored as "
            f"`unobserved`; {len(train)} of train, left out"
        )
        return Look("anticipation", Finding("ok", told), (*test, *train))

    def scratch(self) -> Look:
        """Whether footage is copied, and how much of it will fit."""
        folder = self.places.scratch
        if folder is None:
            return Look("scratch", Finding("skipped", "no scratch: footage is read where it lies"))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free / 1e9
        except OSError as error:
            fix = "correct data.ek100.scratch; footage is read where it lies until then"
            return Look("scratch", Finding("warn", f"{folder}: {error.strerror}", fix))
        if set(self.layout.kind.split(" + ")) == {"frames"}:
            return Look("scratch", Finding("ok", f"{folder}: images are read where they lie"))
        size = sum(map(_bytes, _files(self.layout))) / 1e9
        there = sum(map(_bytes, _files(self.layout, copies=True))) / 1e9
        told = f"{folder}: {there:.1f} of {size:.1f} GB are copied, {free:.1f} GB are free"
        if free + there > size:
            return Look("scratch", Finding("ok", told))
        return Look("scratch", Finding("warn", told, "what does not fit is read where it lies"))

    def boxes(self) -> Look:
        """For how many videos there are boxes."""
        from harness.data.ek100.boxes import Boxes

        if self.places.boxes is None:
            told = "no boxes: all are absent, which orvit and the object rows are not made for"
            return Look("boxes", Finding("skipped", told))
        try:
            there = Boxes.open(self.places.boxes, self.places.scratch).videos()
        except (ValueError, OSError) as error:
            return Look("boxes", Finding("fail", str(error), f"`{DOWNLOADER} --masks`"))
        lacking = tuple(video for video in self.videos if video not in there)
        told = f"of {len(self.videos) - len(lacking)} of {len(self.videos)} videos"
        fix = "theirs are taken as absent"
        return looked("boxes", told, lacking, fix, "warn")

    def questions(self) -> Look:
        """How many segments have questions."""
        from harness.data.ek100.questions import asked_in

        named = {name: getattr(self.places, name) for name in ("questions", "predicted_questions")}
        files = {name: file for name, file in named.items() if file is not None}
        if not files:
            none = "none: only rows without text, or with `questions: constant`, can be run"
            return Look("questions", Finding("skipped", none))
        told: list[str] = []
        lacking: list[str] = []
        for name, file in files.items():
            try:
                known = asked_in(file).texts
            except (ValueError, OSError) as error:
                return Look("questions", Finding("fail", f"{name}: {error}", "write it anew"))
            gone = [one.narration_id for one in self.segments if one.narration_id not in known]
            told.append(f"{name}: {len(self.segments) - len(gone):,} of {len(self.segments):,}")
            lacking += [f"{name} {narration_id}" for narration_id in gone]
        fix = "complete the file: a run that asks for them is not planned"
        return looked("questions", ", ".join(told), lacking, fix, "fail")


def _files(layout: Layout, copies: bool = False) -> Iterator[Path]:
    """The files that are copied when they are opened, or their copies."""
    for place in layout.places.values():
        names = [name for _, name in place.files] if place.kind == "chunks" else [""]
        for name in names if place.kind != "frames" else []:
            file = place.path / name
            if copies and layout.stage is not None:
                file = layout.stage.folder / file.relative_to(layout.root)
            yield file


def _bytes(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0

"""Clips per second of EPIC-Kitchens-100 footage in every layout, against a bare loop of PyAV.

Run: python benchmarks/data.py

Clips of 16 frames spread over 2 s, cropped at random and resized to 224 x 224 uint8. Ours: a torch
DataLoader with 2 workers. Bare: 2 processes that open the file, seek, decode with one thread, crop
and resize through a filter graph (images: Pillow), and keep nothing. Rounds of both are interleaved
over the same clips; the best round of each counts. Then memory: resident size of the workers over
2,000 clips, and its slope over the second half.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from ek100_footage import write_video

from harness.data.ek100.crop import Crop
from harness.data.ek100.layout import Layout, find_layout

WIDTH, HEIGHT, SECONDS, WORKERS, FRAMES, SIDE = 640, 360, 30, 2, 16, 224
KINDS = ("videos", "chunks", "frames", "tars")
VIDEOS = ("P01_01", "P01_02", "P01_03", "P01_04")
Request = tuple[str, np.ndarray, Crop]


def pictures(seed: int, fps: Fraction, begin: float, seconds: float) -> Any:
    """(number, image): a slow pan over a smooth scene with a little noise."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (18, 32, 3), np.uint8))
    scene = np.asarray(small.resize((2 * WIDTH, 2 * HEIGHT), Image.Resampling.BICUBIC))
    grain = rng.integers(-4, 5, (2 * HEIGHT, 2 * WIDTH, 1))
    scene = (scene.astype(int) + grain).clip(0, 255).astype(np.uint8)
    for number in range(round(seconds * fps)):
        now = begin + number / float(fps)
        x, y = int(WIDTH * (0.5 + 0.4 * np.sin(now))), int(HEIGHT * (0.5 + 0.4 * np.cos(now)))
        yield number, np.ascontiguousarray(scene[y : y + HEIGHT, x : x + WIDTH])


def write(root: Path, kind: str) -> Layout:
    for seed, video in enumerate(VIDEOS):
        if kind == "videos":
            fps = Fraction(60000, 1001)
            write_video(root / f"{video}.MP4", fps, pictures(seed, fps, 0, SECONDS), gop=60)
        elif kind == "chunks":
            for begin in range(0, SECONDS, 15):
                part = pictures(seed, Fraction(30), begin, 15)
                write_video(root / f"{video}.MP4/{begin}.MP4", Fraction(30), part, gop=250)
        else:
            folder = root / video
            folder.mkdir(parents=True)
            for number, image in pictures(seed, Fraction(60), 0, SECONDS):
                name = folder / f"frame_{number + 1:010d}.jpg"
                Image.fromarray(image).save(name, quality=90)
            if kind == "tars":
                shutil.make_archive(str(folder), "tar", folder)
                shutil.rmtree(folder)
    return find_layout(root, None, VIDEOS)


def requests(number: int, seed: int) -> list[Request]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(number):
        side = int(rng.integers(180, HEIGHT + 1))
        x, y = int(rng.integers(0, WIDTH - side + 1)), int(rng.integers(0, HEIGHT - side + 1))
        start = rng.uniform(0, SECONDS - 2.1)
        instants = start + np.linspace(0, 2, FRAMES)
        made.append((VIDEOS[rng.integers(len(VIDEOS))], instants, Crop(x, y, side, side)))
    return made


class Clips(torch.utils.data.Dataset):
    def __init__(self, layout: Layout, asked: list[Request]) -> None:
        self.layout = layout
        self.asked = asked

    def __len__(self) -> int:
        return len(self.asked)

    def __getitem__(self, index: int) -> torch.Tensor:
        video, instants, crop = self.asked[index]
        clip = self.layout.open(video).clip(instants, crop, (SIDE, SIDE))
        return torch.from_numpy(clip)


def loader(layout: Layout, asked: list[Request]) -> Any:
    return torch.utils.data.DataLoader(
        Clips(layout, asked), batch_size=None, num_workers=WORKERS, persistent_workers=True
    )


def bare_video(path: Path, instants: np.ndarray, crop: Crop, out: np.ndarray) -> None:
    """The last frame at or before each instant, as a plain script would do it."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        graph = av.filter.Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add_buffer(template=stream, time_base=stream.time_base),
            graph.add("crop", f"{crop.width}:{crop.height}:{crop.x}:{crop.y}:exact=1"),
            graph.add("scale", f"{SIDE}:{SIDE}:flags=bilinear+full_chroma_int"),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ).configure()
        container.seek(int(instants[0] / stream.time_base), stream=stream)
        row, step = 0, 1 / stream.average_rate
        for frame in container.decode(stream):
            while row < len(instants) and instants[row] < frame.pts * stream.time_base + step:
                graph.vpush(frame)
                out[row] = graph.vpull().to_ndarray()
                row += 1
            if row == len(instants):
                return


def bare_image(data: bytes, crop: Crop, out: np.ndarray) -> None:
    with Image.open(io.BytesIO(data)) as image:
        box = (crop.x, crop.y, crop.x + crop.width, crop.y + crop.height)
        out[:] = image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box)


def bare(layout: Layout, asked: list[Request]) -> None:
    """What one process of the bare loop does with its share."""
    out = np.empty((FRAMES, SIDE, SIDE, 3), np.uint8)
    index = {}
    for video, instants, crop in asked:
        place = layout.places[video]
        numbers = np.round(instants * 60).astype(int) + 1
        if place.kind == "videos":
            bare_video(place.path, instants, crop, out)
        elif place.kind == "chunks":
            for begin in range(0, SECONDS, 15):
                inside = (instants >= begin) & (instants < begin + 15)
                if inside.any():
                    part = np.empty((inside.sum(), SIDE, SIDE, 3), np.uint8)
                    bare_video(place.path / f"{begin}.MP4", instants[inside] - begin, crop, part)
                    out[inside] = part
        elif place.kind == "frames":
            for row, number in enumerate(numbers):
                file = place.path / f"frame_{number:010d}.jpg"
                bare_image(file.read_bytes(), crop, out[row])
        else:
            if video not in index:
                index[video] = tarfile.open(place.path)  # noqa: SIM115 - open to the end
                index[video].getmembers()
            for row, number in enumerate(numbers):
                member = index[video].extractfile(f"./frame_{number:010d}.jpg")
                bare_image(member.read(), crop, out[row])


def serve(layout: Layout, pipe: Any) -> None:
    """A process of the bare loop: does the shares it is sent."""
    while (asked := pipe.recv()) is not None:
        bare(layout, asked)
        pipe.send(True)


def measure(layout: Layout, number: int, rounds: int) -> tuple[float, float]:
    """Clips per second, (ours, bare): the best round of each."""
    asked = requests(number, 0)
    ours = loader(layout, asked)
    pipes = [multiprocessing.Pipe() for _ in range(WORKERS)]
    others = [
        multiprocessing.Process(target=serve, args=(layout, far), daemon=True) for _, far in pipes
    ]
    for other in others:
        other.start()

    def load() -> None:
        for _ in ours:
            pass

    def loop() -> None:
        for rank, (near, _) in enumerate(pipes):
            near.send(asked[rank::WORKERS])
        for near, _ in pipes:
            near.recv()

    load()  # starts the workers and warms the file cache
    loop()
    times = np.array([[seconds(load), seconds(loop)] for _ in range(rounds)])
    for near, _ in pipes:
        near.send(None)
    loading, looping = times.min(axis=0)
    return number / loading, number / looping


def seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def memory(layout: Layout, clips: int) -> tuple[float, float]:
    """(MB of the workers at the end, MB per 1,000 clips over the second half)."""
    asked = requests(clips, 1)
    samples = []
    iterator = iter(loader(layout, asked))
    workers = [worker.pid for worker in iterator._workers]
    page = os.sysconf("SC_PAGE_SIZE")
    for number in range(clips - 2 * WORKERS):
        next(iterator)
        if number % 50 == 0:
            sizes = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in workers]
            samples.append((number, sum(sizes) * page / 1e6))
    half = np.array(samples[len(samples) // 2 :])
    return half[-1, 1], np.polyfit(half[:, 0], half[:, 1], 1)[0] * 1000


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=int, default=60, help="clips per round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory-clips", type=int, default=2000, help="0: no memory")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{WIDTH} x {HEIGHT}, {FRAMES} frames of {SIDE} x {SIDE} over 2 s, {WORKERS} processes")
    with tempfile.TemporaryDirectory() as scratch:
        for kind in given.kinds:
            layout = write(Path(scratch) / kind, kind)
            ours, other = measure(layout, given.clips, given.rounds)
            text = f"{kind:<8} {ours:7.1f} clips/s, bare {other:7.1f}, ratio {ours / other:5.2f}"
            if given.memory_clips:
                held, slope = memory(layout, given.memory_clips)
                text += f"; workers {held:6.0f} MB, {slope:+6.2f} MB per 1,000 clips"
            print(text, flush=True)

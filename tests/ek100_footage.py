"""Footage that tells the time: every frame carries its time stamp as black and white squares.

The squares fill the centred square of a frame, so a stamp survives compression, resizing down to a
height of 32 pixels and a crop of the centre. One clock writes every layout.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

RATES = {
    "59.94": Fraction(60000, 1001),
    "50": Fraction(50),
    "29.97": Fraction(30000, 1001),
    "47.95": Fraction(48000, 1001),
}
"""of the videos of EPIC-Kitchens-100"""
CELLS = 5
BITS = CELLS * CELLS - 1
TICKS = 10_000
"""per second: stamps are exact to 0.1 ms"""


def stamp(seconds: float, size: tuple[int, int]) -> np.ndarray:
    """A frame (height, width, 3) that carries `seconds`; `size` is (width, height)."""
    width, height = size
    ticks = round(seconds * TICKS)
    assert 0 <= ticks < 2**BITS
    bits = [ticks >> bit & 1 for bit in range(BITS)]
    cells = np.array([*bits, 1 - sum(bits) % 2], bool).reshape(CELLS, CELLS)
    side = min(width, height)
    row = np.arange(side) * CELLS // side
    square = np.where(cells[row][:, row], 235, 20).astype(np.uint8)
    frame = np.full((height, width, 3), 128, np.uint8)
    top, left = (height - side) // 2, (width - side) // 2
    frame[top : top + side, left : left + side] = square[..., None]
    return frame


def read_stamp(frame: np.ndarray) -> float:
    """The seconds that a frame (height, width, 3), or the centred square of one, carries."""
    height, width = frame.shape[:2]
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    centre = ((np.arange(CELLS) + 0.5) * side / CELLS).astype(int)
    near = np.add.outer(centre, np.arange(-1, 2)).ravel()
    grey = frame[top : top + side, left : left + side].mean(axis=2)[near][:, near]
    level = grey.reshape(CELLS, 3, CELLS, 3).mean(axis=(1, 3)).ravel()
    if (np.abs(level - 128) < 40).any():
        raise ValueError(f"no stamp can be read: {level.round()}")
    bits = (level > 128).astype(int)
    if bits.sum() % 2 != 1:
        raise ValueError("a stamp was read wrongly")
    return sum(int(bit) << place for place, bit in enumerate(bits[:BITS])) / TICKS


def write_video(path: Path, fps: Fraction, frames, gop: int = 12, first_pts: int = 0) -> Path:
    """H.264 (MPEG-4 in an AVI) with B frames, of (number, image) pairs; a number is frames of time
    from the first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    avi = path.suffix.lower() == ".avi"
    with av.open(str(path), "w", format="avi" if avi else "mp4") as container:
        stream = container.add_stream("mpeg4" if avi else "libx264", rate=fps)
        stream.pix_fmt = "yuv420p"
        stream.gop_size = gop
        stream.codec_context.thread_count = 1
        if avi:
            stream.bit_rate = 2_000_000
        else:
            stream.options = {"preset": "ultrafast", "bf": "2", "crf": "18", "sc_threshold": "0"}
        for number, image in frames:
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            if not stream.codec_context.is_open:
                stream.height, stream.width = image.shape[:2]
            frame.time_base = 1 / fps
            frame.pts = first_pts + number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_video(
    path: Path,
    fps: Fraction,
    seconds: float,
    size: tuple[int, int] = (96, 64),
    gop: int = 12,
    first_pts: int = 0,
    without: Collection[int] = (),
    begins: float = 0.0,
) -> Path:
    """A stamped video. `without` are frames left out, so that the rate varies; `begins` is the
    clock's time at the first frame."""
    numbers = (n for n in range(round(seconds * fps)) if n not in without)
    frames = ((n, stamp(begins + n / float(fps), size)) for n in numbers)
    return write_video(path, fps, frames, gop, first_pts)


def make_chunks(
    folder: Path, seconds: float, size: tuple[int, int] = (96, 64), length: int = 15, fps: int = 30
) -> Path:
    """The video in chunks of `length` seconds, as AVION wants them: `0.MP4`, `15.MP4`, ..."""
    for begins in range(0, int(np.ceil(seconds)), length):
        part = min(length, seconds - begins)
        make_video(folder / f"{begins}.MP4", Fraction(fps), part, size, 60, begins=begins)
    return folder


def images(seconds: float, fps: int, size: tuple[int, int]):
    """(name, JPEG) of every image of a video."""
    for number in range(round(seconds * fps)):
        file = io.BytesIO()
        Image.fromarray(stamp(number / fps, size)).save(file, "JPEG", quality=90)
        yield f"frame_{number + 1:010d}.jpg", file.getvalue()


def make_jpegs(folder: Path, seconds: float, fps: int, size: tuple[int, int] = (96, 64)) -> Path:
    """The video as unpacked images at its nominal rate, 60 or 50."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in images(seconds, fps, size):
        (folder / name).write_bytes(data)
    return folder


def make_tar(path: Path, seconds: float, fps: int, size: tuple[int, int] = (96, 64)) -> Path:
    """The video as published: a tar of images."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("./")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in images(seconds, fps, size):
            member = tarfile.TarInfo(f"./{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path

"""Crop, resize and colour conversion of decoded frames, in one pass of libswscale.

Source: none, ours. `tests/test_ek100_footage.py` compares it with Pillow's antialiased resize.
"""

from __future__ import annotations

from typing import Any

import av
import numpy as np

from harness.data.ek100.crop import Crop
from harness.data.ek100.footage import Pixels

av.logging.set_level(None)  # errors are raised; what FFmpeg prints would fill a run's log

CENTRE = 128
"""where a sample of colour lies that is shared by two pixels, in 1/256 of a pixel"""


class Resizer:
    """Gives the frames of one clip their crop and size."""

    def __init__(self, video: str, crop: Crop | None, size: tuple[int, int]) -> None:
        """`crop` in pixels of the source, None for the whole frame; `size` is (height, width)."""
        self.video = video
        self.crop = crop
        self.size = size
        self.graph = av.filter.Graph()
        self.made_for: tuple[Any, ...] = ()

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """(height, width, 3), RGB. Raises ValueError if the crop reaches beyond the frame."""
        kind = (frame.width, frame.height, frame.format.name)
        if kind != self.made_for:
            self.graph = self._graph(frame)
            self.made_for = kind
        self.graph.vpush(frame)
        plane = self.graph.vpull().planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(plane.height, plane.line_size)
        return rows[:, : plane.width * 3].reshape(plane.height, plane.width, 3)

    def _graph(self, frame: av.VideoFrame) -> av.filter.Graph:
        x, y, width, height = inside(self.crop, frame.width, frame.height, self.video)
        scale = f"{self.size[1]}:{self.size[0]}:flags=bilinear+full_chroma_int"
        # a crop that begins between two pixels that share their colour begins half a sample late
        if x % 2 and frame.format.chroma_width(frame.width) < frame.width:
            scale += f":in_h_chr_pos={CENTRE - 256}"
        if y % 2 and frame.format.chroma_height(frame.height) < frame.height:
            scale += f":in_v_chr_pos={CENTRE - 256}"
        graph = av.filter.Graph()
        graph.threads = 1
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
        )
        steps = [
            graph.add("crop", f"{width}:{height}:{x}:{y}:exact=1"),
            graph.add("scale", scale),
            graph.add("format", "rgb24"),
            graph.add("buffersink"),
        ]
        graph.link_nodes(source, *steps).configure()
        return graph


def inside(crop: Crop | None, width: int, height: int, video: str) -> Crop:
    """`crop`, or the whole frame of `width` x `height`. Raises ValueError if it reaches beyond."""
    if crop is None:
        return Crop(0, 0, width, height)
    begins = crop.x >= 0 and crop.y >= 0 and crop.width > 0 and crop.height > 0
    if not begins or crop.x + crop.width > width or crop.y + crop.height > height:
        raise ValueError(f"{video}: {crop} is not inside its frames of {width} x {height}")
    return crop

"""Which boxes of successive frames are one object: SORT.

Source: Bewley et al. 2016, "Simple Online and Realtime Tracking", sec. 3: a Kalman filter of
constant velocity per object on (centre x, centre y, area, aspect ratio), where the ratio has no
velocity; boxes are assigned to the predicted ones by the Hungarian algorithm on their overlap.
The noises are not in the paper; they are those of its published program.

    hands    the best right one has the id 0, the best left one 1; they are not tracked
    objects  ids from 3, in the order in which their tracks begin

A track is told of only once it was found in four successive frames (`MIN_HITS` after the first), or
in the first three of the video; after one frame without it, it keeps its id but must be found three
times again; after two it ends. What is told is the filter's estimate, not the box that was found.

No noise couples two coordinates, so the filter falls apart into one small filter for each: five
numbers, updated for all tracks and coordinates at once.

Departs from the program that made the published `epickitchens.h5`: it skipped frames in which no
object was found, so that their hands were lost and the tracks did not age there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.data.ek100.detections import Detections

Floats = NDArray[np.float64]

SMALLEST_SIDE = 0.01
"""objects no wider or no higher than this share of the frame are not linked"""
MAX_AGE = 1
"""frames without the object that a track outlives"""
MIN_HITS = 3
MIN_OVERLAP = 0.3
"""intersection over union of a box and the predicted one"""
FIRST_ID = 3

MEASURED = np.array([1.0, 1.0, 10.0, 10.0])
"""variance of a measurement"""
STEP = np.array([1.0, 1.0, 1.0, 1.0])
STEP_VELOCITY = np.array([1e-2, 1e-2, 1e-4, 0.0])
"""variance that a frame adds"""
BEGIN = np.array([10.0, 10.0, 10.0, 10.0])
BEGIN_VELOCITY = np.array([1e4, 1e4, 1e4, 0.0])
"""variance of a new track"""
VALUE, VELOCITY, VARIANCE, COVARIANCE, VELOCITY_VARIANCE = range(5)
"""rows of a filter's state: what is estimated, how fast it changes, and how sure both are"""

TRACK = np.dtype([("frame", "<i4"), ("id", "<i4"), ("box", "<f4", (4,))])
"""a linked box: of which frame, whose, and where: x0, y0, x1, y1 as shares of the frame"""


class Sort:
    """Links the boxes of one video, frame after frame."""

    def __init__(self) -> None:
        self.frames = 0
        self.next_id = FIRST_ID
        self.state = np.empty((0, 5, 4))
        """(n, 5, 4): of each track, `VALUE` ... of the four coordinates"""
        self.ids = np.empty(0, np.int64)
        self.misses = np.empty(0, np.int64)
        """frames since the track was last found"""
        self.streak = np.empty(0, np.int64)
        """successive frames in which it was found, without its first"""

    def step(self, boxes: Floats) -> tuple[NDArray[np.int64], Floats]:
        """Boxes (n, 4) of the next frame -> ids (m,) and boxes (m, 4) that are told of, those of
        the newest track first."""
        self.frames += 1
        self._predict()
        found, track = match(boxes, corners(self.state[:, VALUE]))
        values = measured(boxes)
        self._update(track, values[found])
        new = np.ones(len(boxes), np.bool_)
        new[found] = False
        self._begin(values[new])
        told = (self.misses == 0) & ((self.streak >= MIN_HITS) | (self.frames <= MIN_HITS))
        answer = self.ids[told][::-1], corners(self.state[told, VALUE])[::-1]
        self._keep(self.misses <= MAX_AGE)
        return answer

    def _predict(self) -> None:
        x = self.state
        shrinks = x[:, VALUE, 2] + x[:, VELOCITY, 2] <= 0
        x[shrinks, VELOCITY, 2] = 0  # an area stays positive
        x[:, VALUE] += x[:, VELOCITY]
        x[:, VARIANCE] += 2 * x[:, COVARIANCE] + x[:, VELOCITY_VARIANCE] + STEP
        x[:, COVARIANCE] += x[:, VELOCITY_VARIANCE]
        x[:, VELOCITY_VARIANCE] += STEP_VELOCITY
        self.streak[self.misses > 0] = 0
        self.misses += 1
        self._keep(x[:, VALUE, 2:].min(axis=1) > 0)

    def _update(self, track: NDArray[np.int64], values: Floats) -> None:
        x = self.state[track]
        total = x[:, VARIANCE] + MEASURED
        gain, velocity_gain = x[:, VARIANCE] / total, x[:, COVARIANCE] / total
        surprise = values - x[:, VALUE]
        x[:, VALUE] += gain * surprise
        x[:, VELOCITY] += velocity_gain * surprise
        x[:, VELOCITY_VARIANCE] -= velocity_gain * x[:, COVARIANCE]
        x[:, COVARIANCE] *= 1 - gain
        x[:, VARIANCE] *= 1 - gain
        self.state[track] = x
        self.misses[track] = 0
        self.streak[track] += 1

    def _begin(self, values: Floats) -> None:
        count = len(values)
        if not count:
            return
        new = np.zeros((count, 5, 4))
        new[:, VALUE] = values
        new[:, VARIANCE] = BEGIN
        new[:, VELOCITY_VARIANCE] = BEGIN_VELOCITY
        none = np.zeros(count, np.int64)
        self.state = np.concatenate([self.state, new])
        self.ids = np.concatenate([self.ids, self.next_id + np.arange(count)])
        self.misses = np.concatenate([self.misses, none])
        self.streak = np.concatenate([self.streak, none])
        self.next_id += count

    def _keep(self, which: NDArray[np.bool_]) -> None:
        if not which.all():
            self.state, self.ids = self.state[which], self.ids[which]
            self.misses, self.streak = self.misses[which], self.streak[which]


def match(boxes: Floats, predicted: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pairs of a box and a predicted box (n, 4) each: their places in both, k each."""
    overlap = overlaps(boxes, predicted)
    good = overlap > MIN_OVERLAP
    if (good.sum(axis=0) <= 1).all() and (good.sum(axis=1) <= 1).all():
        rows, columns = np.nonzero(good)  # nothing to choose, the usual case
        return rows, columns
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(overlap, maximize=True)
    kept = overlap[rows, columns] >= MIN_OVERLAP
    return rows[kept], columns[kept]


def overlaps(first: Floats, second: Floats) -> Floats:
    """Intersection over union of boxes (n, 4) and (m, 4): (n, m)."""
    near = np.maximum(first[:, None, :2], second[:, :2])
    far = np.minimum(first[:, None, 2:], second[:, 2:])
    sides = np.maximum(far - near, 0)
    common: Floats = sides[..., 0] * sides[..., 1]
    a, b = first[:, 2:] - first[:, :2], second[:, 2:] - second[:, :2]
    either = (a[:, 0] * a[:, 1])[:, None] + b[:, 0] * b[:, 1] - common
    return common / either


def measured(boxes: Floats) -> Floats:
    """Corners (n, 4) -> centre x, centre y, area, width / height."""
    values = np.empty_like(boxes)
    sides = boxes[:, 2:] - boxes[:, :2]
    values[:, :2] = boxes[:, :2] + sides / 2
    values[:, 2] = sides[:, 0] * sides[:, 1]
    values[:, 3] = sides[:, 0] / sides[:, 1]
    return values


def corners(values: Floats) -> Floats:
    """The inverse of `measured`."""
    boxes = np.empty_like(values)
    width = np.sqrt(values[:, 2] * values[:, 3])
    height = values[:, 2] / width
    boxes[:, 0] = values[:, 0] - width / 2
    boxes[:, 1] = values[:, 1] - height / 2
    boxes[:, 2] = boxes[:, 0] + width
    boxes[:, 3] = boxes[:, 1] + height
    return boxes


def link(found: Detections) -> NDArray[Any]:
    """Every hand and linked object of a video: (n,) of `TRACK`, rising in frames."""
    sort = Sort()
    frames, ids, boxes = [], [], []
    begin, before = 0, int(found.frames[0]) - 1
    for frame, hands, end in zip(found.frames.tolist(), found.hands, found.ends, strict=True):
        for _ in range(min(frame - before - 1, MAX_AGE + 1)):  # by then every track has ended
            sort.step(np.empty((0, 4)))
        objects = found.objects[begin:end]
        objects = objects[(objects[:, 2:] - objects[:, :2] > SMALLEST_SIDE).all(axis=1)]
        object_ids, linked = sort.step(objects)
        there = np.flatnonzero((hands[:, 2:] > hands[:, :2]).all(axis=1))
        ids += [there, object_ids]
        boxes += [hands[there], linked]
        frames += [frame] * (len(there) + len(object_ids))
        begin, before = end, frame
    tracks = np.empty(len(frames), TRACK)
    tracks["frame"], tracks["id"], tracks["box"] = (
        frames,
        np.concatenate(ids),
        np.concatenate(boxes),
    )
    return tracks

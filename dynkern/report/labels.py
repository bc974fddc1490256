"""Where names of points may stand so that they cover nothing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from dynkern.report.drawing import FONT, GLYPH

# x, y of the left upper and right lower corner
Box = tuple[float, float, float, float]
Place = tuple[float, float]

# beyond that labels would cover the points
MOST = 40
_OFFSETS = tuple(
    (right * x, up * y)
    for x, y in ((0, 14), (11, 9), (13, 0), (10, 18), (0, 25), (22, 10), (20, 24), (0, 36))
    for up in (-1, 1)
    for right in ((1, -1) if x else (1,))
)


def place_labels(
    names: Sequence[str],
    points: Sequence[Place],
    lines: Sequence[Sequence[Place]],
    bars: Sequence[Box],
    inside: Box,
) -> list[Place]:
    """The middle of each name, near its point: off other points, names, error bars and lines as far
    as that can be, and inside of the panel.
    """
    taken = [((x - 7, y - 7, x + 7, y + 7), 6.0) for x, y in points]
    taken += [((x0 - 3, y0, x1 + 3, y1), 0.6) for x0, y0, x1, y1 in bars]
    taken += [(box, 0.3) for joined in lines for box in _along(joined)]
    found: list[Place] = []
    for name, (x, y) in zip(names, points, strict=True):
        half = len(name) * FONT * GLYPH / 2
        best, least = (x, y), math.inf
        for dx, dy in _OFFSETS:
            middle = (x + dx + half * ((dx > 0) - (dx < 0)), y + dy)
            box = _box(middle, half)
            cost = 0.001 * math.hypot(dx, dy)
            cost += sum(weight * _overlap(box, other) for other, weight in taken)
            if not _within(box, inside):
                cost += 100.0
            if cost < least:
                best, least = middle, cost
        found.append(best)
        taken.append((_box(best, half), 8.0))
    return found


def _box(middle: Place, half: float) -> Box:
    return (
        middle[0] - half,
        middle[1] - FONT * 0.55,
        middle[0] + half,
        middle[1] + FONT * 0.55,
    )


def _within(box: Box, outer: Box) -> bool:
    return outer[0] <= box[0] and outer[1] <= box[1] and box[2] <= outer[2] and box[3] <= outer[3]


def _along(points: Sequence[Place]) -> list[Box]:
    """Small boxes strung along lines."""
    boxes = []
    for (x0, y0), (x1, y1) in pairwise(points):
        count = max(2, int(math.hypot(x1 - x0, y1 - y0) / 8))
        for step in range(count + 1):
            x, y = x0 + (x1 - x0) * step / count, y0 + (y1 - y0) * step / count
            boxes.append((x - 3, y - 3, x + 3, y + 3))
    return boxes


def _overlap(box: Box, other: Box) -> float:
    """Shared area as a share of the smaller one."""
    width = min(box[2], other[2]) - max(box[0], other[0])
    height = min(box[3], other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in (box, other)]
    return width * height / max(min(areas), 1.0)

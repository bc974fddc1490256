"""curve.png: ROUGE-L against wall-clock seconds and against layers run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Run = Mapping[str, Any]

# beyond that labels would cover the points
MAX_LABELS = 40

# colours that readers with any colour vision tell apart (Okabe and Ito), doubled by markers
_STYLES = tuple(
    zip(
        ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#B8A800"),
        "osD^vP<X",
        strict=True,
    )
)
_LABEL_OFFSETS = tuple(
    (right * x, up * y)
    for x, y in ((0, 9), (8, 6), (10, 0), (8, 14), (0, 19), (16, 10), (16, 22), (0, 30))
    for up in (1, -1)
    for right in ((1, -1) if x else (1,))
)


def draw_curve(runs: Sequence[Run], title: str | None = None) -> Figure:
    """ROUGE-L with its 95 % interval against seconds and against layers run.

    Policies of a family (what stands before ":") are joined in order of their layers. The panel
    of seconds is left out where no run was timed; a run without a value is left out of that panel.
    ValueError without runs.
    """
    if not runs:
        raise ValueError("runs: got none, expected at least one")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [("mean_layers", "layers run per routed token (mean)")]
    if any(_finite(run.get("seconds")) for run in runs):
        loaded = " (some under load)" if any(run.get("loaded") for run in runs) else ""
        panels.insert(0, ("seconds", f"wall-clock, end to end [s]{loaded}"))
    figure = Figure(figsize=(5.6 * len(panels) + 0.6, 4.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for panel, (key, label) in zip(axes, panels, strict=True):
        _draw_panel(panel, runs, key)
        panel.set_xlabel(label)
        panel.grid(alpha=0.25)
    axes[0].set_ylabel("ROUGE-L F1 (bars: 95 % interval)")
    if title:
        figure.suptitle(title)
    handles = {
        name: handle
        for panel in axes
        for handle, name in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=5)
    figure.draw_without_rendering()
    for panel, (key, _) in zip(axes, panels, strict=True):
        _label_points(panel, runs, key)
    return figure


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _family(run: Run) -> tuple[str, str]:
    """What joins points to a line, and what tells them apart: "uniform:6" -> ("uniform", "6"),
    "confidence:margin=0.2" -> ("confidence:margin", "0.2").
    """
    head, _, option = str(run["policy"]).partition(":")
    rule = re.match(r"([A-Za-z_]+)=(.*)", option)
    if rule:
        return f"{head}:{rule[1]}", rule[2]
    return head, option or head


def _drawable(runs: Sequence[Run], key: str) -> list[Run]:
    return [run for run in runs if _finite(run.get(key)) and _finite(run.get("rougeL"))]


def _styles(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each family, in order of first appearance after full."""
    families = dict.fromkeys(_family(run)[0] for run in runs)
    families.pop("full", None)
    return {"full": ("black", "*")} | {
        name: _STYLES[place % len(_STYLES)] for place, name in enumerate(families)
    }


def _lines(runs: Sequence[Run], key: str) -> dict[str, list[Run]]:
    """The drawable runs of each family in the order in which they are joined."""
    lines: dict[str, list[Run]] = {name: [] for name in _styles(runs)}
    for run in _drawable(runs, key):
        lines[_family(run)[0]].append(run)
    for members in lines.values():
        members.sort(key=lambda run: (run.get("mean_layers") or 0.0, run[key]))
    return {name: members for name, members in lines.items() if members}


def _draw_panel(panel: Axes, runs: Sequence[Run], key: str) -> None:
    styles, lines = _styles(runs), _lines(runs, key)
    if not lines:
        panel.text(0.5, 0.5, "nothing measured", ha="center", transform=panel.transAxes)
        panel.set(xticks=[], yticks=[])
    if "full" in lines:
        panel.axhline(lines["full"][0]["rougeL"], color="0.5", linewidth=0.8, linestyle=":")
    for name, members in lines.items():
        colour, marker = styles[name]
        _, _, bars = panel.errorbar(
            [run[key] for run in members],
            [run["rougeL"] for run in members],
            yerr=[[_reach(run, side) for run in members] for side in (0, 1)],
            label=name,
            color=colour,
            marker=marker,
            markersize=13 if name == "full" else 6,
            linewidth=1.4,
            elinewidth=0.8,
            capsize=2,
            zorder=3,
        )
        for bar in bars:
            bar.set_alpha(0.5)
    panel.margins(x=0.1, y=0.12)


def _reach(run: Run, side: int) -> float:
    """Length of an error bar below (side 0) or above (1) the point."""
    limits = run.get("rougeL_ci")
    if not limits or not _finite(limits[side]):
        return 0.0
    return max(0.0, limits[side] - run["rougeL"] if side else run["rougeL"] - limits[side])


def _label_points(panel: Axes, runs: Sequence[Run], key: str) -> None:
    """Write what tells each point from its family where it covers the least."""
    from matplotlib.patheffects import withStroke

    styles, lines = _styles(runs), _lines(runs, key)
    shown = [run for members in lines.values() for run in members]
    if len(shown) > MAX_LABELS:
        return
    taken = [(box, weight) for run in shown for box, weight in _point_boxes(panel, run, key)]
    for members in lines.values():
        taken += [(box, 0.2) for box in _line_boxes(panel, members, key)]
    frame = panel.get_window_extent()
    for run in sorted(shown, key=lambda run: (run[key], run["rougeL"])):
        name, text = _family(run)
        label = panel.annotate(
            text if len(text) <= 24 else text[:23] + "…",
            (run[key], run["rougeL"]),
            xytext=(0, 0),
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=8,
            parse_math=False,
            color=styles[name][0],
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
            zorder=4,
        )
        # the text is centred: its own half width comes on top of a sideways step
        half = label.get_window_extent().width / 2 * 72 / panel.figure.dpi
        best = None
        for x, y in _LABEL_OFFSETS:
            label.set_position((x + half * ((x > 0) - (x < 0)), y))
            box = label.get_window_extent()
            inside = frame.x0 <= box.x0 and box.x1 <= frame.x1
            inside = inside and frame.y0 <= box.y0 and box.y1 <= frame.y1
            cost = 0.0 if inside else 100.0
            cost += sum(weight * _overlap(box, other) for other, weight in taken)
            if best is None or cost < best[0]:
                best = (cost, label.get_position(), box)
        label.set_position(best[1])
        taken.append((best[2], 5.0))


def _point_boxes(panel: Axes, run: Run, key: str) -> list[tuple[Any, float]]:
    """Window extents of a marker and of its error bar, and how bad it is to cover them."""
    from matplotlib.transforms import Bbox

    middle = run["rougeL"]
    ends = [middle - _reach(run, 0), middle, middle + _reach(run, 1)]
    (x, low), (_, y), (_, high) = panel.transData.transform([(run[key], end) for end in ends])
    radius = 5 * panel.figure.dpi / 72
    marker = Bbox([[x - radius, y - radius], [x + radius, y + radius]])
    return [(marker, 5.0), (Bbox([[x - 4, low - 2], [x + 4, high + 2]]), 0.5)]


def _line_boxes(panel: Axes, members: Sequence[Run], key: str) -> list[Any]:
    """Small boxes strung along the line that joins a family."""
    from matplotlib.transforms import Bbox

    points = panel.transData.transform([(run[key], run["rougeL"]) for run in members])
    boxes = []
    for start, end in pairwise(points):
        count = max(2, int(math.dist(start, end) / 8))
        for step in range(count + 1):
            x, y = start + (end - start) * step / count
            boxes.append(Bbox([[x - 4, y - 4], [x + 4, y + 4]]))
    return boxes


def _overlap(box: Any, other: Any) -> float:
    """Shared area as a fraction of the smaller one."""
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    if width <= 0 or height <= 0:
        return 0.0
    return width * height / max(min(box.width * box.height, other.width * other.height), 1.0)

"""Pictures of an allocation: quality against layers, the budgets given, and who gets them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from dynkern.allocation.groups import Group

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# colours that readers with any colour vision tell apart (Okabe and Ito)
_COLOURS = {
    "oracle": "#0072B2",
    "held_out": "#56B4E9",
    "predictor": "#009E73",
    "histogram": "#E69F00",
    "one_route": "#D55E00",
    "full": "black",
}
LABELS = {
    "oracle": "oracle (upper bound)",
    "held_out": "oracle, held out",
    "predictor": "predictor (sees the prompt)",
    "histogram": "same budgets at random",
    "one_route": "one route for all",
    "full": "full depth",
}
_AXES = {
    "prompt_tokens": "prompt length [tokens]",
    "output_tokens": "output length at full depth [tokens]",
    "source": "source",
}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def draw_allocation(
    curves: Mapping[str, Mapping[str, Any]],
    full: tuple[float, float, float],
    layers: Sequence[int],
    shares: Mapping[str, Sequence[float]],
    title: str,
) -> Figure:
    """Quality against mean layers with intervals, beside the budgets that sequences get.

    curves: for each way "mean_layers", "quality" [G] and "ci" [2, G]. full: quality at full depth,
    and its interval. layers: of each budget, [R]; shares: for each way, the share of sequences
    [R].
    """
    figure = _figure(11.8, 4.8)
    left, right = figure.subplots(1, 2, width_ratios=(1.5, 1))
    left.axhspan(full[1], full[2], color="0.93", zorder=0)
    left.axhline(full[0], color="0.4", linewidth=0.9, linestyle=":", label=LABELS["full"])
    for name, curve in curves.items():
        x = np.asarray(curve["mean_layers"])
        low, high = np.asarray(curve["ci"])
        left.plot(x, curve["quality"], color=_COLOURS[name], linewidth=1.6, label=LABELS[name])
        left.fill_between(x, low, high, color=_COLOURS[name], alpha=0.13, linewidth=0)
    left.set_xlabel("mean layers per sequence")
    left.set_ylabel("ROUGE-L F1 (bands: 95 % interval over sequences)")
    left.legend(fontsize=8, loc="lower right")
    left.grid(alpha=0.25)
    kinds = sorted(set(layers))
    width = 0.8 / len(shares)
    for place, (name, share) in enumerate(shares.items()):
        # routes of a file may run equally many layers
        heights = [sum(s for s, n in zip(share, layers, strict=True) if n == k) for k in kinds]
        middle = (place - (len(shares) - 1) / 2) * width
        right.bar(
            np.arange(len(kinds)) + middle,
            heights,
            width,
            color=_COLOURS[name],
            label=LABELS[name],
        )
    right.set_xticks(range(len(kinds)), kinds, fontsize=8)
    right.set_xlabel("layers given")
    right.set_ylabel("share of sequences")
    right.legend(fontsize=8)
    right.grid(alpha=0.25, axis="y")
    figure.suptitle(title)
    return figure


def draw_groups(groups: Sequence[Group], title: str) -> Figure:
    """Quality (above) and layers (below) of every group, one column for each way to cut."""
    cuts = list(dict.fromkeys(group.by for group in groups))
    figure = _figure(4.2 * len(cuts) + 0.4, 6.4)
    axes = figure.subplots(2, len(cuts), squeeze=False, sharey="row")
    for column, by in enumerate(cuts):
        members = [group for group in groups if group.by == by]
        ways = list(members[0].quality)
        for row, what in enumerate(("quality", "layers")):
            panel = axes[row][column]
            for place, way in enumerate(ways):
                values = np.array([getattr(group, what)[way] for group in members])
                x = np.arange(len(members)) + (place - (len(ways) - 1) / 2) * 0.16
                reach = np.maximum(np.abs(values[:, [1, 2]] - values[:, [0]]).T, 0.0)
                panel.errorbar(
                    x,
                    values[:, 0],
                    yerr=reach,
                    fmt="o",
                    markersize=4.5,
                    capsize=2,
                    color=_COLOURS[way],
                    label=LABELS[way],
                )
            names = [f"{group.name}\nn = {len(group.members)}" for group in members]
            # names of sources are long
            slant = {"rotation": 35, "ha": "right"} if by == "source" else {}
            panel.set_xticks(range(len(members)), names, fontsize=7, **slant)
            panel.tick_params(labelbottom=row == 1)
            panel.grid(alpha=0.25, axis="y")
        axes[1][column].set_xlabel(_AXES[by])
    axes[0][0].set_ylabel("ROUGE-L F1 (bars: 95 % interval)")
    axes[1][0].set_ylabel("mean layers (bars: 95 % interval)")
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(names), fontsize=8)
    figure.suptitle(title)
    return figure

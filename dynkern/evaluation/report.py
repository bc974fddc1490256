"""What an evaluation leaves behind: a table, results.json and curve.png."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.console import Console
    from rich.table import Table

Run = Mapping[str, Any]

# what every run of results.json holds, null where it was not measured
RUN_KEYS = (
    "policy",
    "batch_size",
    "rouge1",
    "rouge2",
    "rougeL",
    "rougeL_ci",
    "agreement_with_full",
    "mean_layers",
    "new_tokens",
    "seconds",
    "seconds_prefill",
    "seconds_decode",
    "tokens_per_second",
    "speedup",
    "speedup_decode",
    "speedup_spread",
    "predicted_speedup",
    "realisation",
    "saved_fraction",
    "roofline_efficiency",
    "peak_memory_bytes",
)

NOT_AVAILABLE = "n/a"
MAX_LABELS = 40


def write_results(path: str | Path, meta: Mapping[str, Any], runs: Sequence[Run]) -> None:
    """Write {"meta": ..., "runs": [...]} whole or not at all.

    Each run gets every key of RUN_KEYS, null where it has none, and keeps its further keys. A
    number that is not finite becomes null, since JSON has no word for it. ValueError for a run
    without policy; TypeError for a value that JSON cannot hold.
    """
    for place, run in enumerate(runs):
        if not run.get("policy"):
            raise ValueError(f"runs: got no policy in run {place}, expected one in each")
    rows = [{**dict.fromkeys(RUN_KEYS), **run} for run in runs]
    content = json.dumps(_plain({"meta": meta, "runs": rows}), indent=2, allow_nan=False) + "\n"
    _write_atomically(Path(path), lambda part: part.write_text(content, encoding="utf-8"))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):  # numpy and torch, scalars and arrays
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(part)
        with open(part, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with suppress(OSError):
            part.unlink()
        raise


def print_table(
    console: Console, runs: Sequence[Run], meta: Mapping[str, Any] | None = None
) -> None:
    """Print the runs side by side and what a reader must know of their timing.

    One table where it fits or where nobody's screen limits it (a pipe, a file), else two, quality
    and time. meta: that of results.json; its "timing" stamp tells whether the load was metered.
    """
    from rich.measure import Measurement

    whole = _table(runs, _QUALITY + _TIME)
    need = Measurement.get(console, console.options.update(max_width=1000), whole).maximum
    if need <= console.width or not console.is_terminal:
        console.print(whole, width=max(need, 1), crop=False)
    else:
        console.print(_table(runs, _QUALITY))
        console.print(_table(runs, _TIME))
    for note in timing_notes(runs, meta or {}):
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)


def timing_notes(runs: Sequence[Run], meta: Mapping[str, Any]) -> list[str]:
    """One line for each reason to doubt the times: none taken, under load, load unseen."""
    timed = [run for run in runs if run.get("seconds") is not None]
    if not timed:
        return ["no time was measured"]
    notes = []
    if len(timed) < len(runs):
        others = [run["policy"] for run in runs if run.get("seconds") is None]
        notes.append(f"no time was measured for {', '.join(others)}")
    loaded = [run["policy"] for run in timed if run.get("loaded")]
    if loaded:
        names = "all policies" if len(loaded) == len(timed) else ", ".join(loaded)
        notes.append(f"timed while other processes kept the machine busy: {names}")
    stamps = [stamp for stamp in (meta.get("timing") or {}).values() if isinstance(stamp, Mapping)]
    if any(stamp.get("load", "metered") != "metered" for stamp in stamps):
        notes.append("the load of this machine could not be metered while timing")
    return notes


def _number(value: Any, pattern: str) -> str:
    if value is None or not math.isfinite(value):
        return NOT_AVAILABLE
    return pattern.format(value)


def _with_range(value: Any, limits: Any, pattern: str) -> str:
    text = _number(value, pattern)
    if text == NOT_AVAILABLE or not limits or any(limit is None for limit in limits):
        return text
    return f"{text} ({pattern.format(limits[0])}-{pattern.format(limits[1])})"


def _seconds(run: Run) -> str:
    value = run.get("seconds")
    places = 1 if value is None or value >= 100 else 2 if value >= 1 else 4
    return _number(value, f"{{:.{places}f}}")


Column = tuple[str, Callable[[Run], str]]


def _column(title: str, key: str, pattern: str, limits: str | None = None) -> Column:
    if limits is None:
        return title, lambda run: _number(run.get(key), pattern)
    return title, lambda run: _with_range(run.get(key), run.get(limits), pattern)


_QUALITY: tuple[Column, ...] = (
    _column("ROUGE-L\n(95 % interval)", "rougeL", "{:.3f}", "rougeL_ci"),
    _column("tokens\nas full", "agreement_with_full", "{:.0%}"),
    _column("mean\nlayers", "mean_layers", "{:.2f}"),
)
_TIME: tuple[Column, ...] = (
    ("seconds", _seconds),
    _column("speed-up\nend to end", "speedup", "{:.2f}", "speedup_spread"),
    _column("speed-up\ndecode", "speedup_decode", "{:.2f}", "speedup_decode_spread"),
    _column("pre-\ndicted", "predicted_speedup", "{:.2f}"),
    _column("real-\nised", "realisation", "{:.2f}"),
    _column("saved", "saved_fraction", "{:.2f}"),
    _column("roof-\nline", "roofline_efficiency", "{:.2f}"),
)


def _table(runs: Sequence[Run], columns: Iterable[Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = tuple(columns)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("\npolicy", overflow="fold", min_width=8)
    for title, _ in columns:
        table.add_column(title if "\n" in title else f"\n{title}", justify="right", no_wrap=True)
    for run in runs:
        # Text, not str: rich would read [brackets] in a policy's name as markup
        table.add_row(Text(str(run["policy"])), *(Text(show(run)) for _, show in columns))
    return table


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


def plot_curve(runs: Sequence[Run], path: str | Path, title: str | None = None) -> None:
    """Draw ROUGE-L with its 95 % interval against seconds and against layers run, as a PNG.

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
    _write_atomically(Path(path), lambda part: figure.savefig(part, format="png"))


def _finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _family(run: Run) -> str:
    return str(run["policy"]).split(":", 1)[0]


def _drawable(runs: Sequence[Run], key: str) -> list[Run]:
    return [run for run in runs if _finite(run.get(key)) and _finite(run.get("rougeL"))]


def _draw_panel(panel: Axes, runs: Sequence[Run], key: str) -> None:
    families = list(dict.fromkeys(_family(run) for run in runs if _family(run) != "full"))
    styles = {name: _STYLES[i % len(_STYLES)] for i, name in enumerate(families)}
    shown = _drawable(runs, key)
    if not shown:
        panel.text(0.5, 0.5, "nothing measured", ha="center", transform=panel.transAxes)
    for name in ["full", *families]:
        members = [run for run in shown if _family(run) == name]
        if not members:
            continue
        members.sort(key=lambda run: (run.get("mean_layers") or 0.0, run[key]))
        colour, marker = styles.get(name, ("black", "*"))
        panel.errorbar(
            [run[key] for run in members],
            [run["rougeL"] for run in members],
            yerr=[_reach(run, 0) for run in members], label=name, color=colour, marker=marker,
        )
    panel.margins(x=0.08, y=0.12)


def _reach(run: Run, side: int) -> float:
    limits = run.get("rougeL_ci")
    if not limits or not _finite(limits[side]):
        return 0.0
    return max(0.0, (limits[side] - run["rougeL"]) * (1 if side else -1))

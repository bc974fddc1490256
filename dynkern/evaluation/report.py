"""What an evaluation leaves behind: a table, results.json and curve.png."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynkern.files import write_atomically

if TYPE_CHECKING:
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
    write_atomically(Path(path), lambda part: part.write_text(content, encoding="utf-8"))


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


def plot_curve(runs: Sequence[Run], path: str | Path, title: str | None = None) -> None:
    """Draw ROUGE-L against seconds and against layers (`curve.draw_curve`) into a PNG, whole or
    not at all. ValueError without runs.
    """
    from dynkern.evaluation.curve import draw_curve

    figure = draw_curve(runs, title)
    write_atomically(Path(path), lambda part: figure.savefig(part, format="png"))


def print_table(
    console: Console, runs: Sequence[Run], meta: Mapping[str, Any] | None = None
) -> None:
    """Print the runs side by side and what a reader must know of their timing.

    One table where it fits or where nobody's screen limits it (a pipe, a file), else two, quality
    and time. meta: that of results.json; its "timing" stamp tells whether the load was metered.
    """
    from rich.measure import Measurement

    whole = _table(runs, _QUALITY + _TIME)
    screen = console.width
    need = Measurement.get(console, console.options.update(max_width=1000), whole).maximum
    if need <= screen:
        console.print(whole)
    elif console.is_terminal:
        console.print(_table(runs, _QUALITY, narrow=True))
        console.print(_table(runs, _TIME, narrow=True))
    else:
        # rich takes 80 columns where nothing states a width, and would cut numbers to fit
        console.width = need
        console.print(whole)
        console.width = screen
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


def _table(runs: Sequence[Run], columns: Iterable[Column], narrow: bool = False) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = tuple(columns)
    padding = 0 if narrow else (0, 1, 0, 0)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=padding)
    table.add_column("\npolicy", overflow="fold", min_width=8)
    for title, _ in columns:
        table.add_column(title if "\n" in title else f"\n{title}", justify="right", no_wrap=True)
    for run in runs:
        # Text, not str: rich would read [brackets] in a policy's name as markup
        cells = [show(run) for _, show in columns]
        if narrow:
            cells = [cell.replace(" (", "\n(") for cell in cells]
        table.add_row(Text(str(run["policy"])), *map(Text, cells))
    return table

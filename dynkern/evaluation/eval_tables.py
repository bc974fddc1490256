"""The tables of `dynkern eval`'s report.html: columns, what they mean, how they are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dynkern.report import Column, Table
from dynkern.report.scales import finite, interval, number, percent

Run = Mapping[str, Any]


def tables(meta: Mapping[str, Any], runs: Sequence[Run]) -> list[Table]:
    """The numbers that matter, and all others folded up."""
    timed = (meta["timing"] or {}).get("timed_prompts")
    first = [_NAME, *_QUALITY, *(_TIME if timed else ())]
    rest = [_NAME, *_MORE, *(_MORE_TIME if timed else ())]
    made = []
    for caption, columns, is_long in (
        ("Each policy beside full depth", first, False),
        ("Further numbers", rest, True),
    ):
        heads = [
            Column(title, meaning, place > 0) for place, (title, meaning, _) in enumerate(columns)
        ]
        rows = [[str(show(run, timed)) for *_, show in columns] for run in runs]
        made.append(Table(caption, heads, rows, is_long))
    return made


def _plain(key: str, places: int) -> Any:
    return lambda run, timed: number(run.get(key), places)


def _share(key: str) -> Any:
    return lambda run, timed: percent(run.get(key))


def _with(key: str, limits: str, places: int) -> Any:
    def show(run: Run, timed: int | None) -> str:
        ends = interval(run.get(limits), places)
        return number(run.get(key), places) + (f" ({ends})" if ends else "")

    return show


_NAME = ("policy", "", lambda run, timed: run["policy"])
_QUALITY = (
    (
        "ROUGE-L",
        "mean F1 against the best reference, with its 95 % bootstrap interval over prompts",
        _with("rougeL", "rougeL_ci", 3),
    ),
    ("tokens as full", "positions with the token of full depth", _share("agreement_with_full")),
    ("layers", "run per routed token, counted where layers run", _plain("mean_layers", 2)),
)
_TIME = (
    (
        "ms per sequence",
        "median end to end, at natural lengths",
        lambda run, timed: (
            number(run["seconds"] / timed * 1e3, 1) if finite(run.get("seconds")) else "n/a"
        ),
    ),
    (
        "speed-up",
        "full depth's time ÷ this, end to end, with slowest and fastest round",
        _with("speedup", "speedup_spread", 2),
    ),
    (
        "decode speed-up",
        "the same for decoding alone, at equal lengths",
        _with("speedup_decode", "speedup_decode_spread", 2),
    ),
    ("possible", "decode speed-up that the layers allow", _plain("predicted_speedup", 2)),
    ("realisation", "possible ÷ measured decode time", _plain("realisation", 2)),
)
_MORE = (
    ("ROUGE-1", "", _plain("rouge1", 3)),
    ("ROUGE-2", "", _plain("rouge2", 3)),
    (
        "difference",
        "95 % interval of ROUGE-L minus full depth's, paired by prompt",
        lambda run, timed: interval(run.get("rougeL_diff_ci"), 3) or "n/a",
    ),
    ("new tokens", "of all prompts", lambda run, timed: number(run.get("new_tokens"), 0)),
    ("layers end to end", "first tokens included", _plain("mean_layers_end_to_end", 2)),
)
_MORE_TIME = (
    ("prefill s", "of all timed prompts", _plain("seconds_prefill", 3)),
    ("decode s", "of all timed prompts", _plain("seconds_decode", 3)),
    ("tokens/s", "new tokens, end to end", _plain("tokens_per_second", 0)),
    ("saved", "share of the time that could be saved", _plain("saved_fraction", 2)),
    (
        "roofline",
        "time that memory and arithmetic allow ÷ measured",
        _plain("roofline_efficiency", 2),
    ),
    (
        "peak memory",
        "MB",
        lambda run, timed: (
            number(run["peak_memory_bytes"] / 1e6, 0)
            if finite(run.get("peak_memory_bytes"))
            else "n/a"
        ),
    ),
)

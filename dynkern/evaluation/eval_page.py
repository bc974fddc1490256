"""report.html of `dynkern eval`: its results as sections that others may take over."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from dynkern.evaluation.eval_tables import tables
from dynkern.evaluation.findings import findings, realised
from dynkern.evaluation.names import Styles, display_names, family_of
from dynkern.evaluation.quality import Prompt
from dynkern.evaluation.report import timing_notes
from dynkern.evaluation.samples import SampleStore
from dynkern.report import (
    Answer,
    Figure,
    Histogram,
    Lines,
    Pair,
    Pairs,
    Point,
    Report,
    Sample,
    Section,
    Series,
    Shares,
    command_line,
    conditions,
)
from dynkern.report.scales import finite, number

Run = Mapping[str, Any]

# prompts whose texts are shown
SHOWN = 6
# rows of a histogram; more are looked up in the table
MOST_ROWS = 12
FILES = {
    "results.json": "all numbers of this page, and how they came about",
    "samples.jsonl": "every text, with its scores and the layers that ran",
    "curve.png": "the curves as a picture",
}


@dataclass(frozen=True)
class Observed:
    """What a page shows of single sequences. layers: mean layers of each sequence under each
    policy; texts: rows of samples.jsonl by prompt id and policy, for some prompts.
    """

    layers: dict[str, list[float]]
    prompts: list[Prompt]
    texts: dict[str, dict[str, dict[str, Any]]]


def observe(store: SampleStore, policies: Sequence[str], prompts: Sequence[Prompt]) -> Observed:
    """Read it; the prompts shown lie at even distances in the data, whatever became of them."""
    count = min(SHOWN, len(prompts))
    shown = [prompts[place * len(prompts) // count] for place in range(count)]
    wanted = {prompt.record.id for prompt in shown}
    layers: dict[str, list[float]] = {}
    texts: dict[str, dict[str, dict[str, Any]]] = {id: {} for id in wanted}
    for spec in policies:
        rows = store.rows(spec)
        layers[spec] = [row["mean_layers"] for row in rows if row["mean_layers"] is not None]
        for row in rows:
            if row["prompt_id"] in wanted:
                texts[row["prompt_id"]][spec] = row
    return Observed(layers, shown, texts)


def eval_report(
    meta: Mapping[str, Any], runs: Sequence[Run], seen: Observed, call: Any = None
) -> Report:
    """The whole page. call: what stands for a command line where there was none."""
    arguments, layers = meta["arguments"], meta["num_layers"]
    names = display_names(run["policy"] for run in runs)
    styles = Styles(family_of(run["policy"])[0] for run in runs)
    model, data = (PurePath(arguments[key]).name for key in ("model", "data"))
    said = findings(runs, layers, meta["prompts"])
    what = "against wall-clock time" if meta["timing"] else "at fewer layers"
    sections = [
        Section("Quality and cost", cost_figures(meta, runs, styles)),
        *time_sections(runs, seen, layers, names, styles, said),
        sample_section(meta, runs, seen, names),
        Section("All numbers", tables(meta, runs)),
    ]
    return Report(
        title=f"{_count(len(runs), 'policy', 'policies')} of layer skipping on {model}",
        command="eval",
        asked=f"What becomes of ROUGE-L {what} when each sequence runs only some of the {layers} "
        f"layers? {_count(meta['prompts'], 'prompt', 'prompts')} of {data}, up to "
        f"{arguments['max_new_tokens']} new tokens each, {arguments['batch_size']} at a time.",
        settings=settings(arguments, (run["policy"] for run in runs)),
        found=said,
        sections=[section for section in sections if section.blocks],
        conditions=conditions(eval_conditions(meta)),
        rerun=[command_line(call)],
        notes=notes(meta, runs),
        rerun_note="A folder that holds samples is not written over: name another one with "
        "--output, or go on in it with --resume.",
        files=FILES,
    )


def _count(number: int, one: str, many: str) -> str:
    return f"{number} {one if number == 1 else many}"


def settings(arguments: Mapping[str, Any], policies: Any) -> dict[str, Any]:
    """Arguments as facts, policies by their canonical specs."""
    shown = {
        name.replace("_", " "): value
        for name, value in arguments.items()
        if name not in ("policies", "output") and value is not None
    }
    return {"policies": ", ".join(policies), **shown}


def eval_conditions(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What results.json knows of how they came about."""
    timing = meta["timing"] or {}
    peaks = timing.get("peaks")
    stamps = [timing[name] for name in ("natural", "forced") if name in timing]
    facts: dict[str, Any] = {
        **meta["environment"],
        "weights": f"{meta['weight_bytes'] / 1e6:.1f} MB",
        "prompt tokens (mean)": number(meta["prompt_tokens"], 1),
        "started": meta["started"],
        "finished": meta["finished"],
    }
    if peaks:
        facts["memory read at"] = f"{peaks['bandwidth'] / 1e9:.1f} GB/s"
    if stamps:
        facts["load of others"] = stamps[0]["load"]
        facts["runs rejected under load"] = sum(stamp["rejected"] for stamp in stamps)
        facts["policies timed under load"] = (
            ", ".join(dict.fromkeys(n for stamp in stamps for n in stamp["loaded"])) or "none"
        )
    return facts


def notes(meta: Mapping[str, Any], runs: Sequence[Run]) -> list[str]:
    """Reasons for doubt."""
    said = []
    if meta["prompts"] < 100:
        said.append(
            f"{_count(meta['prompts'], 'prompt is', 'prompts are')} few: differences that "
            "intervals do not show may be there all the same"
        )
    said += timing_notes(runs, meta)
    if meta["truncated_prompts"]:
        said.append(f"{meta['truncated_prompts']} prompts were too long and were cut")
    return said


def cost_figures(meta: Mapping[str, Any], runs: Sequence[Run], styles: Styles) -> list[Figure]:
    """ROUGE-L against seconds, where they were taken, and against layers."""
    figures = []
    bars = "Bars: 95 % bootstrap interval over prompts"
    if any(finite(run.get("seconds")) for run in runs):
        count = meta["timing"]["timed_prompts"]
        chart = _curve(runs, "seconds", "wall-clock, end to end [ms per sequence]", styles, count)
        note = f"{bars}; across: slowest and fastest round. Up and to the left is better."
        figures.append(Figure("ROUGE-L against time", chart, note))
    chart = _curve(runs, "mean_layers", "layers run per routed token (mean)", styles, None)
    note = f"{bars}. Dotted: full depth and its interval."
    return [*figures, Figure("ROUGE-L against layers", chart, note)]


def _curve(runs: Sequence[Run], key: str, x_label: str, styles: Styles, timed: int | None) -> Lines:
    families: dict[str, list[Point]] = {}
    ordered = sorted(
        (run for run in runs if finite(run.get(key)) and finite(run.get("rougeL"))),
        key=lambda run: (run.get("mean_layers") or 0.0, run[key]),
    )
    scale = 1.0 if timed is None else 1e3 / timed
    for run in ordered:
        family, label = family_of(run["policy"])
        ends = run.get("seconds_spread") if timed else None
        left, right = [end * scale if finite(end) else None for end in ends or (None, None)]
        point = Point(
            run[key] * scale, run["rougeL"], *(run["rougeL_ci"] or (None, None)), left, right, label
        )
        families.setdefault(family, []).append(point)
    full = next((run for run in runs if run["policy"] == "full"), None)
    series = [Series(name, points, styles.of(name)) for name, points in families.items()]
    series.sort(key=lambda one: one.style)
    across = None
    if full is not None and finite(full.get("rougeL")):
        across = ("full", full["rougeL"], *(full["rougeL_ci"] or (None, None)))
    return Lines(x_label, "ROUGE-L F1", series, across, whole_x=timed is None)


def time_sections(
    runs: Sequence[Run],
    seen: Observed,
    num_layers: int,
    names: Mapping[str, str],
    styles: Styles,
    said_before: Sequence[str],
) -> list[Section]:
    """Possible beside measured time, and the layers that sequences ran."""
    blocks: list[Figure] = []
    pairs = [
        Pair(
            names[run["policy"]],
            100 / run["predicted_speedup"],
            100 / run["speedup_decode"],
            *_inverse(run.get("speedup_decode_spread")),
            f"realisation {number(run['realisation'], 2)}",
        )
        for run in runs
        if finite(run.get("predicted_speedup")) and finite(run.get("speedup_decode"))
    ]
    if pairs:
        label = "decode time [% of full depth's]"
        blocks.append(
            Figure(
                "Realisation: measured beside possible time",
                Pairs(label, ("possible", "measured"), pairs),
                "Possible: embedding, head and each layer at full depth's own speed, times what "
                "ran. Realisation is possible ÷ measured; bars: slowest and fastest round.",
            )
        )
    blocks += budgets_figure(seen.layers, num_layers, names, styles)
    others = [run for run in runs if run["policy"] != "full"]
    lead = [said for said in [realised(others, names)] if said and said not in said_before]
    title = "Time and budgets" if pairs else "Budgets"
    return [Section(title, blocks, lead)] if blocks else []


def _inverse(spread: Any) -> tuple[float | None, float | None]:
    if not spread or not all(finite(end) and end > 0 for end in spread):
        return None, None
    return 100 / spread[1], 100 / spread[0]


def budgets_figure(
    layers: Mapping[str, Sequence[float]],
    num_layers: int,
    names: Mapping[str, str],
    styles: Styles,
) -> list[Figure]:
    """A histogram row for each policy whose sequences differ; all rows where none does."""
    shares = {spec: histogram(values) for spec, values in layers.items() if values}
    same = {spec: share for spec, share in shares.items() if len(share) == 1}
    drawn = {spec: share for spec, share in shares.items() if spec not in same} or same
    left_out = [f"{names[s]} ({next(iter(same[s]))})" for s in same if s not in drawn]
    note = "Layers of a sequence: the mean over its routed tokens, to the nearest whole number."
    if left_out:
        note += f" The same for every sequence: {', '.join(left_out)}."
    if drawn is same and len(same) > MOST_ROWS:
        return []
    rest = list(drawn)[MOST_ROWS:]
    if rest:
        note += f" Not drawn: {', '.join(names[spec] for spec in rest)}."
    rows = [
        Shares(
            names[spec],
            share,
            styles.of(family_of(spec)[0]),
            sum(layers[spec]) / len(layers[spec]),
        )
        for spec, share in list(drawn.items())[:MOST_ROWS]
    ]
    chart = Histogram("layers run by a sequence", rows, num_layers)
    return [Figure("Budgets: share of sequences by layers", chart, note)] if rows else []


def histogram(values: Sequence[float]) -> dict[int, float]:
    """The share of values at each whole number."""
    counts = Counter(round(value) for value in values)
    return {layers: counts[layers] / len(values) for layers in sorted(counts)}


def sample_section(
    meta: Mapping[str, Any], runs: Sequence[Run], seen: Observed, names: Mapping[str, str]
) -> Section:
    """Texts side by side, each with what it cost."""
    timed = (meta["timing"] or {}).get("timed_prompts")
    mean = {
        run["policy"]: run["seconds"] / timed * 1e3
        for run in runs
        if timed and finite(run.get("seconds"))
    }
    samples = []
    for prompt in seen.prompts:
        record, rows = prompt.record, seen.texts[prompt.record.id]
        answers = [
            Answer(names[spec], row["text"], _costs(row, mean)) for spec, row in rows.items()
        ]
        asked = "\n".join(part for part in (record.instruction, record.input) if part)
        title = f"Prompt {record.id}" + (f", {record.family}" if record.family else "")
        samples.append(Sample(title, asked, record.references or (record.output,), answers))
    place = (
        "all prompts" if len(samples) == meta["prompts"] else "prompts at even distances in the "
    )
    lead = (
        f"The {place}{'' if place.startswith('all') else 'data'}, not picked by how they came out."
    )
    if mean:
        lead += " Milliseconds are the policy's mean end to end, with its batch."
    return Section("Texts side by side", samples, [lead])


def _costs(row: Mapping[str, Any], mean: Mapping[str, float]) -> list[str]:
    layers = row["mean_layers"]
    said = [] if layers is None else [f"{number(layers, 1)} layers"]
    said.append(_count(row["new_tokens"], "token", "tokens"))
    if row["policy"] in mean:
        said.append(f"{number(mean[row['policy']], 1)} ms in the mean")
    return [*said, f"ROUGE-L {number(row['rougeL'], 2)}"]

"""python -m bench.scheduling --output DIR: refilled slots against static batches, cohort and fifo.

The same requests in turn (A B A B …), runs under load rejected. Lengths are those at which a model
ends on its own on --data (--model, or --lengths-of for a shape), or geometric ones on fresh random
prompts; they are forced, so that both sides do the same work. Possible times come of parts
measured in the same rounds. Rows go to DIR/scheduling.csv as they come.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from bench.arguments import check_each, refuse
from bench.cpu_cases import Routes, worst_load
from bench.end_to_end import SHAPES, make_checkpoint
from bench.results_file import append, stamp
from dynkern import routes
from dynkern.cost import CostModel, PassCount
from dynkern.data import TEMPLATES, encode_prompt, load_records, prompt_cap
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import Spread, Timings, interleave
from dynkern.llm import LLM

GROUPS = ("continuous", "cohort")
# of routes: one, two depths, three nested ones, every depth, random layers
MIXES = ("uniform", "bimodal", "nested", "spread", "random")
GENERATIONS = 16  # requests for each slot, unless the data has fewer
PROMPT = (8, 64)  # tokens of random prompts
# what a row must reach as a whole run: refilled slots against static batches; cohort against fifo
# where measured costs promise as much of decoding, and where they do not
CONTINUOUS_GAIN, COHORT_GAIN, NO_LOSS = 1.3, 1.15, 0.98
Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """Requests: prompts as ids, and how many tokens each generates. lengths: where these are from;
    random_ids: the vocabulary of fresh prompts for each run, None to keep the prompts.
    """

    prompts: list[list[int]]
    new_tokens: list[int]
    lengths: str
    random_ids: range | None = None

    def fresh(self) -> list[list[int]]:
        """Prompts of a run."""
        if self.random_ids is None:
            return self.prompts
        return [[p[0], *random.choices(self.random_ids, k=len(p) - 1)] for p in self.prompts]


@dataclass
class Ran:
    """What a run took."""

    seconds: float
    seconds_decode: float
    passes: list[PassCount]


def random_work(llm: LLM, count: int, longest: int) -> Work:
    """Prompts of PROMPT tokens, lengths geometric with a third of `longest` as their mean."""
    draw = random.Random(0)
    ids = range(4, llm.spec.vocab_size)
    prompts = [[llm.spec.bos_token_id] * draw.randint(*PROMPT) for _ in range(count)]
    lengths = [min(longest, 1 + int(draw.expovariate(3 / longest))) for _ in range(count)]
    mean = sum(lengths) / count
    return Work(prompts, lengths, f"geometric, mean {mean:.1f} of at most {longest}", ids)


def natural_work(llm: LLM, data: str, template: str, count: int, longest: int, batch: int) -> Work:
    """The data's first prompts, and the lengths at which full depth ends."""
    records = load_records(data, limit=count)
    cap = prompt_cap(template, llm.spec.max_positions - longest + 1)
    bos = llm.spec.bos_token_id
    prompts = [list(encode_prompt(llm.tokenizer, r, template, cap, bos).ids) for r in records]
    done = llm.generate(prompts, max_new_tokens=longest, batch_size=batch)
    lengths = [len(completion.token_ids) for completion in done]
    mean = sum(lengths) / len(lengths)
    return Work(prompts, lengths, f"natural, mean {mean:.1f} of at most {longest}")


def lengths_of(llm: LLM, other: LLM, work: Work) -> Work:
    """Work of another model for this one: prompts as long, of fresh ids, and as many new tokens."""
    draw = random.Random(0)
    ids = range(4, llm.spec.vocab_size)
    prompts = [[llm.spec.bos_token_id, *draw.choices(ids, k=len(p) - 1)] for p in work.prompts]
    return Work(prompts, work.new_tokens, f"{work.lengths}, of {Path(other.engine.name).name}", ids)


class Bench:
    """One model at one batch size. mixes: names of those of MIXES to measure, () for all."""

    def __init__(
        self, llm: LLM, work: Work, batch: int, repeats: int, mixes: Sequence[str] = ()
    ) -> None:
        self.llm, self.work, self.batch, self.repeats = llm, work, batch, repeats
        self.mixes = mixes

    def run(self, policy: Any, schedule: str, static: bool = False) -> Callable[[], Ran]:
        """A case: all requests at once, or batch after batch."""
        work, size = self.work, self.batch

        def once() -> Ran:
            prompts = work.fresh()
            step = size if static else len(prompts)
            ran = Ran(0.0, 0.0, [])
            for start in range(0, len(prompts), step):
                part = slice(start, start + step)
                stats = self.llm.run(
                    prompts[part],
                    policy,
                    max_new_tokens=work.new_tokens[part],
                    request_ids=range(start, min(start + step, len(prompts))),
                    batch_size=size,
                    force_length=True,
                    schedule=schedule,
                ).stats
                ran.seconds += stats.seconds
                ran.seconds_decode += stats.seconds_decode
                ran.passes += stats.passes
            return ran

        return once

    def compare(
        self, base: Callable[[], Ran], other: Callable[[], Ran], choice: Callable[[], Any]
    ) -> Row:
        """base ÷ other: measured, by the passes' possible times, and as "auto" chooses.

        choice: requests under "auto", asked before and after the engine knows measured costs.
        """
        lengths = [len(p) + n // 2 for p, n in zip(*self._sizes(), strict=True)]
        counts = sorted({1, self.batch, *range(1, self.batch + 1, max(1, self.batch // 8))})
        length = sum(lengths) / len(lengths)
        probe = self._probe(round(length))
        calibration = Calibration(probe, counts, length=length)
        cases = {**calibration.cases, "base": base, "other": other}
        timings = interleave(cases, self.repeats)
        cost = calibration.model(timings)
        unmeasured, measured = (self._choice(choice, model) for model in (None, cost))
        row = {**_ratios(timings), **_possible(timings, cost), **unmeasured, **measured}
        return {**row, **_promised(timings, row["expected_measured"])}

    def _probe(self, length: int) -> EngineProbe:
        """Rows of the data's prompts; of noise where prompts are noise."""
        engine, work = self.llm.engine, self.work
        if work.random_ids is not None:
            return EngineProbe(engine, [length] * self.batch, with_fill=False)
        prompts = [work.prompts[i % len(work.prompts)] for i in range(self.batch)]
        middle = sum(work.new_tokens) // len(work.new_tokens) // 2
        return EngineProbe.after(engine, prompts, middle, with_fill=False)

    def _sizes(self) -> tuple[Sequence[Sequence[int]], Sequence[int]]:
        return self.work.prompts, self.work.new_tokens

    def _choice(self, choice: Callable[[], Any], model: CostModel | None) -> Row:
        engine = self.llm.engine
        held, engine.cost_model = engine.cost_model, model
        try:
            stats = choice().stats
        finally:
            engine.cost_model = held
        name = "roofline" if model is None else "measured"
        predicted = stats.predicted
        ratio = predicted["fifo"] / predicted["cohort"] if predicted else ""
        return {f"auto_{name}": stats.schedule, f"expected_{name}": ratio}

    def auto(self, policy: Any) -> Callable[[], Any]:
        """The requests under "auto", for the choice that is made."""
        work = self.work
        options = {"batch_size": self.batch, "force_length": True, "schedule": "auto"}
        return lambda: self.llm.run(work.fresh(), policy, max_new_tokens=work.new_tokens, **options)


def _ratios(timings: Timings[Any]) -> Row:
    whole, decode = (
        timings.ratio("base", "other", of) for of in (None, lambda ran: ran.seconds_decode)
    )
    return {
        "seconds": timings["other"].spread.median,
        "base_seconds": timings["base"].spread.median,
        "speedup": whole.median,
        "speedup_low": whole.p20,
        "speedup_high": whole.p80,
        "speedup_decode": decode.median,
        "loaded": any(timings[name].loaded for name in ("base", "other")),
        "foreign_load": max(worst_load(timings[name]) for name in ("base", "other")),
    }


def _possible(timings: Timings[Any], cost: CostModel) -> Row:
    """Speed-up that the passes' possible times predict, and what of these was reached."""
    row: Row = {}
    possible = {}
    for name in ("base", "other"):
        possible[name] = cost.possible_time(timings[name].values[-1][-1].passes)
        seconds = Spread.of(timings[name].each(lambda ran: ran.seconds_decode)).median
        row["realisation" if name == "other" else "base_realisation"] = possible[name] / seconds
    return {"predicted_decode": possible["base"] / possible["other"], **row}


def _promised(timings: Timings[Any], gain: float | str) -> Row:
    """Of whole runs, if decoding gains as much as costs promise and the rest stays as it is."""
    decode = Spread.of(timings["base"].each(lambda ran: ran.seconds_decode)).median
    whole = timings["base"].spread.median
    promised = "" if gain == "" else whole / (whole - decode + decode / float(gain))
    return {"base_seconds_decode": decode, "promised": promised}


def continuous(bench: Bench) -> Iterator[Row]:
    """Slots refilled as rows end, against batches that wait for their last row."""
    base, other = bench.run("full", "fifo", static=True), bench.run("full", "fifo")
    yield {"case": "static / continuous", **bench.compare(base, other, bench.auto("full"))}


def cohort(bench: Bench) -> Iterator[Row]:
    """Like routes together, against the order of submission, for mixes of routes."""
    layers, draw = bench.llm.spec.num_layers, random.Random(1)

    def table(budgets: Sequence[int]) -> Routes:
        picked = [draw.choice(budgets) for _ in bench.work.prompts]
        return Routes([routes.uniform(layers, budget) for budget in picked])

    quarter, half = max(1, layers // 4), max(1, layers // 2)
    mixes = (
        (f"uniform:{half}", f"uniform:{half}"),
        (f"bimodal {quarter} and {layers}", table([quarter, layers])),
        (f"nested {quarter}, {half} and {layers}", table([quarter, half, layers])),
        (f"spread 1..{layers}", table(range(1, layers + 1))),
        (f"random:{half}", f"random:{half}"),
    )
    for kind, (name, policy) in zip(MIXES, mixes, strict=True):
        if bench.mixes and kind not in bench.mixes:
            continue
        base, other = bench.run(policy, "fifo"), bench.run(policy, "cohort")
        compared = bench.compare(base, other, bench.auto(policy))
        yield {"case": f"fifo / cohort, {name}", **compared}


def wanted(row: Row) -> float:
    """The speed-up that a row must reach."""
    if row["group"] == "continuous":
        return CONTINUOUS_GAIN
    promised = row["expected_measured"]
    return COHORT_GAIN if promised != "" and promised >= COHORT_GAIN else NO_LOSS


def verdict(row: Row) -> str:
    """Whether it does."""
    return "held" if row["speedup"] >= wanted(row) else "missed"


_RUN = {"continuous": continuous, "cohort": cohort}


def main(
    output: Annotated[Path, typer.Option(help="Folder for scheduling.csv.")],
    group: Annotated[list[str] | None, typer.Option(help="continuous, cohort; repeat it.")] = None,
    mix: Annotated[list[str] | None, typer.Option(help=f"{', '.join(MIXES)}; repeat it.")] = None,
    shape: Annotated[list[str] | None, typer.Option(help="125m, 350m-wide or 1.3b.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint instead of a shape.")] = None,
    data: Annotated[str | None, typer.Option(help="Prompts for --model.")] = None,
    lengths_of_: Annotated[
        str | None, typer.Option("--lengths-of", help="Checkpoint whose lengths on --data to take.")
    ] = None,
    template: Annotated[str, typer.Option(help="alpaca or plain, for --data.")] = "plain",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, int8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; repeat it.")] = None,
    requests: Annotated[int | None, typer.Option(help=f"By default {GENERATIONS} a row.")] = None,
    new_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 64,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 5,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Measure the groups asked for (all by default) and append them to OUTPUT/scheduling.csv."""
    shapes = [model] if model else ["tiny"] if dry_run else shape or ["125m"]
    check_each("group", group or [], GROUPS)
    check_each("mix", mix or [], MIXES)
    check_each("dtype", dtype or [], ("float32", "bfloat16", "int8"))
    check_each("template", [template], tuple(TEMPLATES))
    if not model:
        check_each("shape", shapes, tuple(SHAPES))
        if data and not lengths_of_:
            refuse("--data: got it without --model or --lengths-of, expected a checkpoint")
    if lengths_of_ and (model or not data):
        refuse("--lengths-of: expected --data with it, and no --model")
    numbers = {"batch": batch or [], "requests": [requests] if requests is not None else []}
    for name, values in {**numbers, "repeats": [repeats], "new-tokens": [new_tokens]}.items():
        for value in values:
            if value < (4 if name == "new-tokens" else 1):
                refuse(f"--{name}: got {value}, expected more")
    if dry_run:
        new_tokens, repeats, requests = 8, 1, requests or 12
    batches = batch or ([2, 3] if dry_run else [8, 32])
    done: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(shapes) * len(dtype or [0]) * len(batches))
        for name in shapes:
            checkpoint = name if model else make_checkpoint(name, None, Path(scratch))
            for format in dtype or ["float32" if dry_run else "bfloat16"]:
                llm = LLM(checkpoint, dtype=format)
                for size in batches:
                    bar.update(task, description=f"{Path(name).name}, {format}, {size} rows")
                    count = requests or GENERATIONS * size
                    if data and lengths_of_:
                        other = LLM(lengths_of_)
                        work = natural_work(other, data, template, count, new_tokens, size)
                        work = lengths_of(llm, other, work)
                    elif data:
                        work = natural_work(llm, data, template, count, new_tokens, size)
                    else:
                        work = random_work(llm, count, new_tokens)
                    bench = Bench(llm, work, size, repeats, mix or ())
                    on = {"model": Path(name).name, "dtype": format, "batch": size}
                    on |= {"requests": len(work.prompts), "lengths": work.lengths}
                    for kind in group or GROUPS:
                        for row in _RUN[kind](bench):
                            row = {"group": kind, **on, **row}
                            where = stamp("cpu", dry_run)
                            append(output / "scheduling.csv", [{**where, **row}])
                            done.append(row)
                    bar.advance(task)
    _print(done)


def _print(done: list[Row]) -> None:
    table = Table(title="bench.scheduling")
    for column in ("model", "dtype", "batch", "case", "seconds", "speedup", "promised", "decode"):
        table.add_column(column, overflow="fold")
    table.add_column("possible")
    table.add_column("decode promised")
    table.add_column("auto")
    for row in done:
        table.add_row(
            *(str(row[key]) for key in ("model", "dtype", "batch", "case")),
            f"{row['seconds']:.3f}",
            f"{row['speedup']:.3f}",
            f"{row['promised']:.3f}" if row["promised"] != "" else "",
            f"{row['speedup_decode']:.3f}",
            f"{row['predicted_decode']:.3f}",
            f"{row['expected_measured']:.3f}" if row["expected_measured"] != "" else "",
            f"{row['auto_roofline']}, measured {row['auto_measured']}",
            style="dim" if row["loaded"] else None,
        )
    console = Console()
    console.print(table)
    for row in done:
        console.print(
            f"{row['model']}, {row['dtype']}, {row['batch']} rows, {row['case']}: "
            f"{row['speedup']:.3f}, wanted {wanted(row)}: {verdict(row)}",
            highlight=False,
            soft_wrap=True,
        )
    if any(row["loaded"] for row in done):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)

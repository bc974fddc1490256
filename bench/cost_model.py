"""python -m bench.cost_model --output DIR: the cost model's prediction against measured passes.

A grid of shape × dtype × rows × prompt length, and in each place every kind of route and K/V fill.
The parts of a pass are timed in the same rounds as the runs (A B A B …), runs under load rejected,
and each run is predicted twice: from the parts of its own round, and from those of the first round
for all later ones, which is what somebody has who calibrated earlier. The passes that ran (how many
rows, which layers) are known to the prediction; their time is not. Rows go to DIR/cost_model.csv as
they come.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
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
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.judgement import decode_seconds
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.timing import CaseTiming, Spread, Timings, interleave
from dynkern.llm import LLM
from dynkern.routes import KV_FILLS
from dynkern.runtime.executors.kv_fill import DEFERRED_TOKENS
from dynkern.runtime.request import RunResult

DTYPES = ("float32", "bfloat16", "int8")
# mean and worst error that are wanted of a CPU
WANTED = (0.10, 0.25)
# rows and prompt tokens, what tells most first: many rows are bound by arithmetic, long ones by K/V
PLACES = ((8, 64), (1, 64), (32, 16), (1, 384), (8, 384))
Row = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """One model at one batch size and prompt length."""

    llm: LLM
    batch: int
    prompt: int
    new_tokens: int

    def prompts(self) -> list[list[int]]:
        """Fresh random ones, a row each."""
        spec = self.llm.spec
        ids = torch.randint(4, spec.vocab_size, (self.batch, self.prompt))
        ids[:, 0] = spec.bos_token_id
        return ids.tolist()

    def run(self, policy: Any, kv_fill: str = "project") -> Callable[[], RunResult]:
        """A case: one batch at forced length."""
        return lambda: self.llm.run(
            self.prompts(),
            policy,
            max_new_tokens=self.new_tokens,
            batch_size=self.batch,
            kv_fill=kv_fill,
            force_length=True,
        )

    def cases(self) -> dict[tuple[str, str], Callable[[], RunResult]]:
        """By policy and K/V fill ("" where a planned route leaves nothing to fill)."""
        layers = self.llm.spec.num_layers
        quarter, half = max(1, layers // 4), max(1, layers // 2)
        found = {
            (name, ""): self.run(name)
            for name in ("full", f"uniform:{half}", f"early_exit:{quarter - 1}")
        }
        if self.batch > 1:
            tables = {
                "budgets 1..L": [
                    1 + i * (layers - 1) // (self.batch - 1) for i in range(self.batch)
                ],
                "bimodal": [quarter, layers],
                "one straggler": [layers, *[quarter] * (self.batch - 1)],
            }
            for name, budgets in tables.items():
                table = [routes.uniform(layers, budget) for budget in budgets]
                found[name, ""] = self.run(Routes(table))
            found[f"random:{half}", ""] = self.run(f"random:{half}")
        for kv_fill in KV_FILLS:
            found[f"random-step:{half}", kv_fill] = self.run(f"random-step:{half}", kv_fill)
        found["stochastic:0.5", "project"] = self.run("stochastic:0.5")
        found["confidence:top_prob=0", "project"] = self.run("confidence:top_prob=0")
        found["confidence:top_prob=1", "project"] = self.run("confidence:top_prob=1")
        return found

    def calibration(self) -> Calibration:
        """Parts at the K/V length that passes have in the mean."""
        batch, middle = self.batch, self.new_tokens // 2
        counts = sorted({1, batch, *range(1, batch + 1, max(1, batch // 8))})
        probe = EngineProbe.after(self.llm.engine, self.prompts(), middle, with_fill=True)
        fills = [*counts, batch * DEFERRED_TOKENS]
        return Calibration(probe, counts, fill_row_counts=fills, length=self.prompt + middle)


def measure(
    place: Place, repeats: int, report: Callable[[int, int, str], None] | None = None
) -> Iterator[Row]:
    """A row for every case of a place. report(done, total, label) as it goes on."""
    calibration = place.calibration()
    cases = {
        f"{policy} {kv_fill}".rstrip(): (policy, kv_fill, run)
        for (policy, kv_fill), run in place.cases().items()
    }
    runs = {name: run for name, (_, _, run) in cases.items()}
    timings = interleave({**calibration.cases, **runs}, repeats, progress=report)
    for name, (policy, kv_fill, _) in cases.items():
        timed = timings[name]
        yield {
            "policy": policy,
            "kv_fill": kv_fill,
            **compared(timings, timed, calibration),
            "loaded": timed.loaded or any(timings[part].loaded for part in calibration.cases),
            "foreign_load": worst_load(timed),
        }


def compared(timings: Timings[Any], timed: CaseTiming[RunResult], calibration: Calibration) -> Row:
    """Seconds of a mean pass, measured and predicted, and the errors: predicted ÷ measured − 1."""
    measured = timed.each(decode_seconds)
    passes = [count for result in timed.values[-1] for count in result.stats.passes]
    per_run = len(passes) / len(timed.values[-1])
    models = [calibration.model(timings, index) for index in range(len(measured))]
    predicted = [predict(m, v) for m, v in zip(models, timed.values, strict=True)]
    earlier = [predict(models[0], values) for values in timed.values]
    spread = Spread.of(measured)
    errors = [p / m - 1 for p, m in zip(predicted, measured, strict=True)]
    earlier_errors = [p / m - 1 for p, m in zip(earlier[1:], measured[1:], strict=True)]
    return {
        "seconds": spread.median / per_run,
        "low": spread.p20 / per_run,
        "high": spread.p80 / per_run,
        "predicted": Spread.of(predicted).median / per_run,
        "error": Spread.of(errors).median,
        "predicted_earlier": Spread.of(earlier[1:]).median / per_run if earlier[1:] else "",
        "error_earlier": Spread.of(earlier_errors).median if earlier_errors else "",
        "mean_layers": sum(sum(c.layer_rows) for c in passes) / sum(c.rows for c in passes),
        "union": sum(c.union for c in passes) / len(passes),
    }


def predict(model: CostModel, results: Sequence[RunResult]) -> float:
    """Seconds that the passes of a run are expected to take; the mean of several runs."""
    passes: list[PassCount] = [count for result in results for count in result.stats.passes]
    return model.possible_time(passes) / len(results)


def summary(rows: Sequence[Row], column: str = "error") -> tuple[float, float, Row]:
    """Mean and worst absolute error, and the row of the worst. ValueError without rows."""
    known = [row for row in rows if row[column] not in ("", None)]
    if not known:
        raise ValueError(f"rows: none with a value of {column}, expected some")
    worst = max(known, key=lambda row: abs(float(row[column])))
    mean = sum(abs(float(row[column])) for row in known) / len(known)
    return mean, abs(float(worst[column])), worst


def main(
    output: Annotated[Path, typer.Option(help="Folder for cost_model.csv.")],
    shape: Annotated[list[str] | None, typer.Option(help="125m, 350m-wide or 1.3b.")] = None,
    model: Annotated[str | None, typer.Option(help="A checkpoint instead of a shape.")] = None,
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16, int8.")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="Rows; repeat it.")] = None,
    prompt: Annotated[list[int] | None, typer.Option(help="Prompt tokens; repeat it.")] = None,
    new_tokens: Annotated[int, typer.Option(help="Forced new tokens.")] = 24,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    minutes: Annotated[float, typer.Option(help="No place is begun after as many.")] = 5.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Measure the grid and append it to OUTPUT/cost_model.csv."""
    shapes = [model] if model else ["tiny"] if dry_run else shape or ["125m"]
    check_each("dtype", dtype or [], DTYPES)
    if not model:
        check_each("shape", shapes, tuple(SHAPES))
    numbers = {"batch": batch or [], "prompt": prompt or [], "repeats": [repeats]}
    for name, values in {**numbers, "new-tokens": [new_tokens]}.items():
        for value in values:
            if value < (2 if name == "new-tokens" else 1):
                refuse(f"--{name}: got {value}, expected more")
    if not minutes > 0:
        refuse(f"--minutes: got {minutes}, expected more than 0")
    places = PLACES
    if dry_run:
        new_tokens, repeats, places = 4, 2, ((1, 4), (3, 8))
    if batch or prompt:
        places = tuple((n, length) for length in prompt or [64] for n in batch or [1, 8])
    dtypes = dtype or (["float32"] if dry_run else list(DTYPES))
    done: list[Row] = []
    left: list[str] = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch, Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=len(shapes) * len(places) * len(dtypes))
        inner = bar.add_task("")
        for name in shapes:
            checkpoint = Path(name) if model else make_checkpoint(name, None, Path(scratch))
            models: dict[str, LLM] = {}
            for rows, length in places:
                for format in dtypes:
                    label = f"{Path(name).name}, {format}, {rows} rows of {length} tokens"
                    bar.advance(task)
                    if time.monotonic() - began > 60 * minutes:
                        left.append(label)
                        continue
                    bar.update(task, description=label)
                    if format not in models:
                        models[format] = LLM(checkpoint, dtype=format)
                    on = {"shape": Path(name).name, "dtype": format, "batch": rows}
                    on |= {"prompt": length, "new_tokens": new_tokens}

                    def report(at: int, total: int, what: str) -> None:
                        bar.update(inner, completed=at, total=total, description=what)

                    here = Place(models[format], rows, length, new_tokens)
                    for row in measure(here, repeats, report):
                        where = stamp("cpu", dry_run)
                        append(output / "cost_model.csv", [{**where, **on, **row}])
                        done.append({**on, **row})
    _print(done, left)


def _print(done: list[Row], left: list[str]) -> None:
    console = Console()
    table = Table(title="bench.cost_model: predicted ÷ measured − 1")
    for column in ("dtype", "rows", "prompt", "policy", "K/V fill", "ms a pass", "error"):
        table.add_column(column, overflow="fold")
    table.add_column("from earlier parts")
    for row in done:
        earlier = row["error_earlier"]
        table.add_row(
            *(str(row[key]) for key in ("dtype", "batch", "prompt", "policy", "kv_fill")),
            f"{row['seconds'] * 1e3:.3f}",
            f"{row['error']:+.1%}",
            f"{earlier:+.1%}" if earlier != "" else "",
            style="dim" if row["loaded"] else None,
        )
    console.print(table)
    ways = {"error": "parts of the same rounds", "error_earlier": "parts of the first round"}
    for column, label in ways.items():
        with suppress(ValueError):
            mean, most, worst = summary(done, column)
            kept = mean <= WANTED[0] and most <= WANTED[1]
            console.print(
                f"{label}: mean error {mean:.1%}, worst {most:.1%} ({worst['dtype']}, "
                f"{worst['batch']} rows of {worst['prompt']}, {worst['policy']} "
                f"{worst['kv_fill']}); wanted {WANTED[0]:.0%} and {WANTED[1]:.0%}: "
                f"{'kept' if kept else 'missed'}",
                highlight=False,
            )
    for label in left:
        console.print(f"not measured, out of time: {label}", highlight=False)
    if any(row["loaded"] for row in done):
        console.print("dim rows: other processes used the machine, and no quiet run could be had")


if __name__ == "__main__":
    typer.run(main)

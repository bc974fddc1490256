"""python -m bench.oracle_table --model M --data D --output DIR: the time of a table of routes.

Fills the table of `dynkern oracle` (texts and losses of every prompt under every uniform route)
again and again, each time from nothing, beside its possible time: prompts prefilled once for the
texts and once for the losses, and the passes of both. Parts are measured in the same rounds. What
is left is Python, scoring and SQLite. Rows go to DIR/oracle_table.csv.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from bench.arguments import check_each, refuse
from bench.cpu_cases import worst_load
from bench.results_file import append, stamp
from dynkern.allocation.families import RouteSet, make_routes
from dynkern.allocation.schema import FILE_NAME
from dynkern.allocation.store import TableStore
from dynkern.cost import CostModel, PassCount
from dynkern.data import TEMPLATES, load_records
from dynkern.evaluation.calibration import Calibration
from dynkern.evaluation.fill import LOSS_ROWS, Filling, fill_losses, fill_rows
from dynkern.evaluation.oracle import answer_ids, prompt_rows
from dynkern.evaluation.probe import EngineProbe
from dynkern.evaluation.sweep import encode_prompts
from dynkern.evaluation.timing import Spread, Timings, interleave
from dynkern.llm import LLM
from dynkern.runtime.request import RunStats, SamplingParams

Row = dict[str, Any]


@dataclass
class Ran:
    """Seconds of the two halves of a table, and what the texts executed."""

    texts: float
    losses: float
    stats: RunStats


def no_report(done: int, total: int, label: str) -> None:
    """Progress that nobody looks at."""


class Bench:
    """One model, its prompts, the routes of the family "uniform"."""

    def __init__(self, llm: LLM, data: str, template: str, limit: int, longest: int) -> None:
        self.llm, self.batch = llm, 32
        prompts, _ = encode_prompts(llm, load_records(data, limit=limit), template, longest)
        targets = answer_ids(llm, prompts)
        sampling = SamplingParams()
        self.filling = Filling(llm, prompts, targets, 1, sampling, longest, self.batch, 0)
        self.routes: RouteSet = make_routes("uniform", llm.spec.num_layers)

    def fill(self) -> Ran:
        """The whole table, in a folder that is thrown away."""
        filling, stats = self.filling, RunStats()
        with tempfile.TemporaryDirectory() as scratch:
            with TableStore.create(Path(scratch) / FILE_NAME, self.manifest, resume=False) as store:
                store.put_routes(self.routes)
                store.put_prompts(prompt_rows(filling.prompts))
                began = time.perf_counter()
                fill_rows(filling, filling.prompts, self.routes, store, set(), no_report, stats)
                between = time.perf_counter()
                fill_losses(filling, filling.prompts, self.routes, store, set(), no_report)
                return Ran(between - began, time.perf_counter() - between, stats)

    @property
    def manifest(self) -> dict[str, Any]:
        """As much of a table's manifest as its store asks for."""
        return {"samples": 1, "prompts": len(self.filling.prompts)}

    def prefill(self, batches: list[list[list[int]]]) -> Callable[[], None]:
        """Every batch of prompts once."""

        def once() -> None:
            with self.llm.engine.stepping():
                for batch in batches:
                    self.llm.engine.executor.prefill(batch)
                self.llm.engine.synchronize()

        return once

    def text_batches(self, tokens: int = 512) -> list[list[list[int]]]:
        """Prompts as the engine prefills them while rows decode: about 512 tokens at a time."""
        batches: list[list[list[int]]] = [[]]
        for prompt in self.filling.prompts:
            if batches[-1] and sum(map(len, batches[-1])) + len(prompt.ids) > tokens:
                batches.append([])
            batches[-1].append(prompt.ids)
        return batches

    def loss_rows(self) -> Iterator[list[tuple[int, int]]]:
        """(prompt, route) of the rows that share passes, as fill_losses takes them."""
        order = sorted(self.filling.prompts, key=lambda p: len(self.filling.targets[p.index]))
        pairs = [(prompt.index, r) for prompt in order for r in range(len(self.routes.keep))]
        step = max(self.batch, LOSS_ROWS)
        return (pairs[start : start + step] for start in range(0, len(pairs), step))

    def loss_batches(self) -> list[list[list[int]]]:
        """Prompts as the losses prefill them."""
        prompts = self.filling.prompts
        return [
            [prompts[index].ids for index in dict.fromkeys(prompt for prompt, _ in rows)]
            for rows in self.loss_rows()
        ]

    def loss_passes(self) -> Iterator[PassCount]:
        """What the passes of the losses execute."""
        keep, targets, prompts = self.routes.keep, self.filling.targets, self.filling.prompts
        for rows in self.loss_rows():
            for at in range(max(len(targets[prompt]) for prompt, _ in rows) - 1):
                alive = [row for row in rows if len(targets[row[0]]) - 1 > at]
                layers = tuple(map(sum, zip(*(keep[route] for _, route in alive), strict=True)))
                length = sum(len(prompts[prompt].ids) for prompt, _ in alive) / len(alive) + at
                yield PassCount(len(alive), layers, length=length)

    def measure(self, repeats: int) -> Row:
        """The table beside its possible time."""
        llm, ids = self.llm, [prompt.ids for prompt in self.filling.prompts]
        most = max(self.batch, LOSS_ROWS)
        counts = sorted({*itertools.takewhile(lambda n: n < most, (1, 2, 4, 8, 16, 24, 32)), most})
        # a pass reads what was generated so far: half of it on average
        half = self.filling.max_new_tokens // 2
        probe = EngineProbe.after(llm.engine, ids[:most], half, with_fill=False)
        calibration = Calibration(probe, counts)
        cases = {
            **calibration.cases,
            "prefill for texts": self.prefill(self.text_batches()),
            "prefill for losses": self.prefill(self.loss_batches()),
            "table": self.fill,
        }
        timings: Timings[Any] = interleave(cases, repeats)
        cost: CostModel = calibration.model(timings)
        row: Row = {"seconds": timings["table"].spread.median}
        possible = {}
        for name, passes in (
            ("texts", timings["table"].values[-1][-1].stats.passes),
            ("losses", list(self.loss_passes())),
        ):
            seconds = Spread.of(timings["table"].each(lambda ran, name=name: getattr(ran, name)))
            prefill = timings[f"prefill for {name}"].spread.median
            possible[name] = prefill + cost.possible_time(passes)
            row |= {f"{name}_seconds": seconds.median, f"{name}_possible": possible[name]}
        row["over_possible"] = row["seconds"] / sum(possible.values())
        row["loaded"] = timings["table"].loaded or bool(timings.loaded)
        row["foreign_load"] = worst_load(timings["table"])
        return row


def main(
    output: Annotated[Path, typer.Option(help="Folder for oracle_table.csv.")],
    model: Annotated[str, typer.Option(help="Checkpoint directory or hub id.")],
    data: Annotated[str, typer.Option(help="Prompts and answers.")],
    template: Annotated[str, typer.Option(help="alpaca or plain.")] = "plain",
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or int8.")] = "float32",
    limit: Annotated[int, typer.Option(help="First N prompts.")] = 100,
    new_tokens: Annotated[int, typer.Option(help="New tokens at most.")] = 64,
    repeats: Annotated[int, typer.Option(help="Interleaved rounds.")] = 3,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Measure a table and append a row to OUTPUT/oracle_table.csv."""
    check_each("template", [template], tuple(TEMPLATES))
    check_each("dtype", [dtype], ("float32", "bfloat16", "int8"))
    for name, value in {"limit": limit, "new-tokens": new_tokens, "repeats": repeats}.items():
        if value < 1:
            refuse(f"--{name}: got {value}, expected 1 or more")
    if dry_run:
        limit, new_tokens, repeats = 3, 8, 1
    llm = LLM(model, dtype=dtype)
    bench = Bench(llm, data, template, limit, new_tokens)
    with Progress(console=Console(stderr=True)) as bar:
        bar.add_task(f"{len(bench.filling.prompts)} prompts, {repeats} rounds", total=None)
        row = bench.measure(repeats)
    on = {"model": Path(model).name, "dtype": dtype, "prompts": len(bench.filling.prompts)}
    on |= {"routes": len(bench.routes.keep), "new_tokens": new_tokens}
    where = stamp("cpu", dry_run)
    append(output / "oracle_table.csv", [{**where, **on, **row}])
    texts, losses = (
        f"{row[f'{k}_seconds']:.2f} s of {row[f'{k}_possible']:.2f} possible"
        for k in ("texts", "losses")
    )
    loaded = ", under load" if row["loaded"] else ""
    print(
        f"table: {row['seconds']:.2f} s, {row['over_possible']:.2f} x its possible time{loaded}; "
        f"texts {texts}, losses {losses}"
    )


if __name__ == "__main__":
    typer.run(main)

"""python -m bench.measure --output DIR: every benchmark of the CPU anew, one after the other.

With --model and --data also those of a trained model. Each runs in processes of its own and appends
to its CSV in DIR; one that fails is reported and the others go on. Exit code 1 where one failed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from bench.arguments import check_each, refuse

TRY = "--dry-run"
# by name: minutes that it takes on two cores, roughly, then its steps: module and words, and words
# more that try it. {output}, {scratch}, {model} and {data} stand for folders and what was given.
BENCHES = {
    "cost_model": (6, [("bench.cost_model --output {output}", TRY)]),
    "scaling": (5, [("bench.scaling --output {output}", TRY)]),
    "levels": (3, [("bench.levels --output {output}", TRY)]),
    "end_to_end": (40, [("bench.end_to_end --output {output}", TRY)]),
    "scheduling": (15, [("bench.scheduling --output {output}", TRY)]),
    "ops": (6, [("dynkern bench ops --output {output}", "--quick")]),
    "int8_kernels": (1, [("bench.int8_kernels --output {output}", TRY)]),
}
ON_MODEL = "--model {model} --data {data}"
OF_MODEL = {
    "eval": (
        1,
        [
            (
                f"dynkern eval {ON_MODEL} --template plain --limit 64 --max-new-tokens 64"
                " --repeat 5 --policy uniform:9 --policy uniform:6 --policy uniform:3"
                " --policy early_exit:8 --policy early_exit:5 --policy random:6"
                " --output {scratch}/eval",
                "--limit 2 --max-new-tokens 4 --repeat 1",
            ),
            ("bench.keep_eval {scratch}/eval {model} {data} {output}", ""),
        ],
    ),
    "quality": (
        2,
        [
            (
                "bench.quality {model} {data} --output {output}/cpu_quality.csv",
                "--limit 2 --max-new-tokens 4",
            )
        ],
    ),
    "latency": (
        3,
        [
            (
                f"bench.end_to_end --group latency {ON_MODEL} --dtype float32 --batch 1"
                " --output {output}",
                f"{TRY} --kind dynkern-float32",
            )
        ],
    ),
    "oracle_table": (2, [(f"bench.oracle_table {ON_MODEL} --output {{output}}", TRY)]),
    "depths": (
        6,
        [
            (
                f"dynkern oracle {ON_MODEL} --template plain --limit 200 --max-new-tokens 64"
                " --output {scratch}/table",
                "--limit 60 --max-new-tokens 4",
            ),
            ("dynkern train-predictor {scratch}/table --output {scratch}/predictor", ""),
            (
                f"bench.depths {ON_MODEL} --table {{scratch}}/table"
                " --predictor {scratch}/predictor --output {output}",
                f"{TRY} --prompts 2",
            ),
        ],
    ),
}


def main(
    output: Annotated[Path, typer.Option(help="Folder for the CSV files.")],
    only: Annotated[list[str] | None, typer.Option(help=", ".join([*BENCHES, *OF_MODEL]))] = None,
    model: Annotated[str | None, typer.Option(help="A trained checkpoint of 12 layers.")] = None,
    data: Annotated[str | None, typer.Option(help="Prompts and answers for it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Tiny sizes, to try it.")] = False,
) -> None:
    """Run the benchmarks named (all by default)."""
    if (model is None) != (data is None):
        refuse("--model, --data: got one of them, expected both or neither")
    known = BENCHES if model is None else {**BENCHES, **OF_MODEL}
    check_each("only", only or [], tuple(known))
    failed = []
    output.mkdir(parents=True, exist_ok=True)
    for name in [name for name in known if name in (only or known)]:
        minutes, steps = known[name]
        print(f"{name}: {'a trial' if dry_run else f'about {minutes} minutes'}", flush=True)
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            places = {"output": str(output.resolve()), "scratch": scratch}
            places |= {"model": model or "", "data": data or ""}
            code = _run(steps, places, dry_run)
        print(f"{name}: exit code {code} after {time.monotonic() - began:.0f} s", flush=True)
        failed += [name] if code else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
        raise typer.Exit(1)


def _run(steps: list[tuple[str, str]], places: dict[str, str], dry_run: bool) -> int:
    """Exit code of the first step that fails, of which no later one is run."""
    for words, trial in steps:
        command = [sys.executable, "-m"]
        command += [word.format(**places) for word in words.split()]
        command += trial.split() if dry_run else []
        code = subprocess.run(command, cwd=Path(__file__).resolve().parent.parent).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    typer.run(main)

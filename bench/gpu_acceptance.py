"""GPU acceptance: builds, checks and times everything that needs a GPU, in one command.

    python -m bench.gpu_acceptance --output DIR [--dry-run] [--minutes 9] [--steps a,b]

Steps run one by one, what matters most first, and none takes another down; DIR gets report.json
after every step, and gpu.csv with a row for each timed case. A step has a share of the time: cases
that found none left are named. Exit code 0 only if every step passed. --dry-run goes the same way
on the CPU at tiny sizes; its numbers say nothing of a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynkern.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("case", "engine", "rows", "seconds", "p20", "p80", "bytes", "bytes_per_second")
COLUMNS += ("share_of_copy", "speedup", "realisation", "roofline_efficiency", "loaded")
# seconds that the cases of a step may take, before its remaining ones are left out
SHARES = {"op_tests": 170.0, "copy_forward": 20.0, "single_ops": 40.0, "decode_pass": 40.0}
SHARES |= {"planned_routes": 50.0, "mixed_routes": 60.0, "token_policies": 40.0}
SHARES |= {"host_syncs": 15.0, "graph_kinds": 15.0, "batch_invariant": 25.0, "sanitizer": 60.0}


class Acceptance:
    """State shared by the steps of one run."""

    def __init__(self, output: Path, dry_run: bool, minutes: float) -> None:
        import torch

        self.output, self.dry_run = output, dry_run
        self.deadline = time.monotonic() + 60 * minutes
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.repeats = 3 if dry_run else 30
        # a dry run's windows need not be long enough to judge the load in
        self.timing = {"min_window": 0.0} if dry_run else {}
        self.peaks: Any = None
        self.left_out: list[str] = []
        self._engines: Any = None
        self.report: dict[str, Any] = {"dry_run": dry_run, "steps": {}}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

    def share(self, step: str) -> float:
        """Seconds that a step may take."""
        return min(self.left(), SHARES[step])

    def within(self, step: str, cases: Iterable[Any]) -> Iterator[Any]:
        """Cases for which the step's share of the time lasts, at least one; others are noted."""
        until = time.monotonic() + self.share(step)
        for place, case in enumerate(cases):
            if place and time.monotonic() >= until:
                self.left_out.append(str(case))
            else:
                yield case

    @property
    def engines(self) -> Any:
        """Engines over one random model (bench/acceptance_model.py)."""
        from bench.acceptance_model import Engines

        if self._engines is None:
            self._engines = Engines(self.dry_run, self.device)
        return self._engines

    def environment(self) -> dict[str, Any]:
        """Versions, and what the device is."""
        import torch

        found: dict[str, Any] = {"python": platform.python_version(), "torch": torch.__version__}
        for package in ("triton", "transformers", "pytest", "ninja"):
            found[package] = shutil.which(package) or _version(package)
        found["nvcc"] = _first_line(["nvcc", "--version"], "release")
        found["driver"] = _first_line(
            ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        )
        if self.device.type == "cuda":
            if not torch.cuda.is_available():
                raise RuntimeError("torch sees no CUDA device; --dry-run needs none")
            found["device"] = torch.cuda.get_device_name()
            found["capability"] = list(torch.cuda.get_device_capability())
        return found

    def build(self) -> dict[str, Any]:
        """The native libraries, compiled in the checkout."""
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=max(1.0, self.left()),
        )
        from dynkern.kernels import native

        native.cpu_library.cache_clear()
        native.cuda_library.cache_clear()
        state = native.status()
        wanted = ["cpu"] if self.dry_run else ["cpu", "cuda"]
        for name in wanted:
            if not state[name]["available"]:
                raise RuntimeError(f"csrc/{name}: {state[name]['reason']}")
        return state

    def op_tests(self) -> dict[str, Any]:
        """Op tests against the reference: all of them on a GPU, a few in a dry run."""
        tests = ["tests/ops/test_agreement.py"] if self.dry_run else ["tests/ops", "tests/csrc"]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=max(1.0, self.share("op_tests")),
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        closing = done.stdout.strip().splitlines()[-1] if done.stdout.strip() else ""
        counts = {word: int(n) for n, word in re.findall(r"(\d+) (\w+)", closing)}
        if done.returncode or not counts.get("passed"):
            failures = [li for li in done.stdout.splitlines() if li.startswith(("FAILED", "ERROR"))]
            raise RuntimeError(f"{closing} {failures[:10]} {done.stderr[-500:]}")
        return counts

    def peak_rates(self) -> dict[str, Any]:
        """Read or copy bandwidth and arithmetic peak of the device."""
        import torch

        from dynkern.evaluation.peaks import measure_peaks

        size, dtype = (1 << 20, torch.float32) if self.dry_run else (2 << 30, torch.bfloat16)
        self.peaks = measure_peaks(
            size, dtype, self.device, matrix_size=128 if self.dry_run else None
        )
        return asdict(self.peaks)

    def copy_forward(self) -> dict[str, Any]:
        """kv_copy_forward against the share of copy bandwidth that it reaches."""
        from bench.acceptance_cases import copy_cases, measure_copy

        rows, too_large = [], []
        for case in self.within("copy_forward", copy_cases(self.dry_run)):
            row = measure_copy(case, self.device, self.repeats)
            if row is None:
                too_large.append(str(case))
                continue
            if self.peaks is not None:
                row["share_of_copy"] = row["bytes_per_second"] / self.peaks.bandwidth
            rows.append(row)
        return {"cases": self.keep(rows), "too_large": too_large}

    def single_ops(self) -> dict[str, Any]:
        """Every kernel of decode's ops, checked and timed beside the reference."""
        import torch

        from bench.acceptance_ops import measure_op, op_cases

        dtype, rows = torch.float32 if self.dry_run else torch.bfloat16, []
        for case in self.within("single_ops", op_cases(self.dry_run, self.device, dtype)):
            for row in measure_op(case, self.device, dtype, self.repeats):
                if self.peaks is not None:
                    row["share_of_copy"] = row["bytes_per_second"] / self.peaks.bandwidth
                rows.append(row)
        return {"cases": self.keep(rows)}

    def lengths(self) -> tuple[int, int]:
        """Tokens of a run, and rounds."""
        return (5, 1) if self.dry_run else (33, 5)

    def keep(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append timed cases to gpu.csv at once; hand them back."""
        from bench.results_file import append, stamp

        on = stamp(self.device, self.dry_run)
        rows = [{**dict.fromkeys(COLUMNS, ""), **row} for row in rows]
        append(self.output / "gpu.csv", [{**on, **row} for row in rows])
        return rows


def _timed(name: str) -> Callable[[Acceptance], dict[str, Any]]:
    """A step of acceptance_steps.py, imported when it runs: torch may not import."""

    def step(acceptance: Acceptance) -> dict[str, Any]:
        from bench import acceptance_steps

        return getattr(acceptance_steps, name)(acceptance)

    return step


STEPS: dict[str, Callable[[Acceptance], dict[str, Any]]] = {
    "environment": Acceptance.environment,
    "build": Acceptance.build,
    "op_tests": Acceptance.op_tests,
    "peak_rates": Acceptance.peak_rates,
    "copy_forward": Acceptance.copy_forward,
    "single_ops": Acceptance.single_ops,
    "decode_pass": _timed("decode_pass"),
    "planned_routes": _timed("planned_routes"),
    "mixed_routes": _timed("mixed_routes"),
    "token_policies": _timed("token_policies"),
    "host_syncs": _timed("host_syncs"),
    "logits_error": _timed("logits_error"),
    "graph_kinds": _timed("graph_kinds"),
    "batch_invariant": _timed("batch_invariant"),
    "peers": _timed("peers"),
    "sanitizer": _timed("sanitizer"),
}


def run(acceptance: Acceptance, steps: list[str]) -> bool:
    """Run the steps, writing report.json after each; whether all of them passed."""
    entries = acceptance.report["steps"]
    for name in steps:
        started, acceptance.left_out = time.monotonic(), []
        if acceptance.left() <= 0:
            entries[name] = {"status": "skipped", "reason": "the time budget is spent"}
        else:
            print(f"{name} ...", flush=True)
            try:
                entries[name] = {"status": "passed", "found": STEPS[name](acceptance)}
            except Exception as error:  # one step must not take the others down
                reason = f"{type(error).__name__}: {error}"
                if isinstance(error, subprocess.CalledProcessError):
                    reason += f": {(error.stderr or '')[-1000:]}"
                entries[name] = {
                    "status": "failed",
                    "reason": reason,
                    "trace": traceback.format_exc(limit=-4),
                }
        entries[name]["seconds"] = round(time.monotonic() - started, 2)
        if acceptance.left_out:
            entries[name]["left_out"] = acceptance.left_out
            print(f"  left out: {', '.join(acceptance.left_out)[:300]}", flush=True)
        print(f"{name}: {entries[name]['status']}, {entries[name]['seconds']} s", flush=True)
        if "reason" in entries[name]:
            print(f"  {entries[name]['reason'][:300]}", flush=True)
        _write(acceptance.output / "report.json", acceptance.report)
    return all(entry["status"] == "passed" for entry in entries.values())


def _write(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=2, default=str) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def _version(package: str) -> str | None:
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _first_line(command: list[str], having: str = "") -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return next((li.strip() for li in done.stdout.splitlines() if having in li), None)


def main(arguments: list[str] | None = None) -> int:
    """The command line; 0 when every step passed, 1 when one did not, 2 on bad arguments."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_acceptance", description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--steps", default=",".join(STEPS))
    given = parser.parse_args(arguments)
    steps = given.steps.split(",")
    unknown = [name for name in steps if name not in STEPS]
    if unknown or given.minutes < 0:
        problem = f"--minutes: got {given.minutes}, expected 0 or more"
        if unknown:
            problem = f"--steps: got {unknown[0]!r}, expected some of {','.join(STEPS)}"
        print(f"gpu_acceptance: {problem}", file=sys.stderr)
        return 2
    given.output.mkdir(parents=True, exist_ok=True)
    return 0 if run(Acceptance(given.output, given.dry_run, given.minutes), steps) else 1


if __name__ == "__main__":
    sys.exit(main())

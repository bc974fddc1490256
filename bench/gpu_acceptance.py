"""GPU acceptance: builds, checks and times everything that needs a GPU, in one command.

    python -m bench.gpu_acceptance --output DIR [--dry-run] [--minutes 9] [--steps a,b]

Steps run one by one and none takes another down; DIR gets report.json after every step, and
gpu.csv with a row for each timed case. Exit code 0 only if every step passed. --dry-run goes the
same way on the CPU at tiny sizes; its numbers say nothing of a GPU.
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
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dynkern.files import write_whole

ROOT = Path(__file__).resolve().parent.parent
COLUMNS = ("case", "rows", "seconds", "p20", "p80", "bytes", "bytes_per_second")
COLUMNS += ("share_of_copy", "speedup", "realisation", "roofline_efficiency", "loaded")


class Acceptance:
    """State shared by the steps of one run."""

    def __init__(self, output: Path, dry_run: bool, minutes: float) -> None:
        import torch

        self.output, self.dry_run = output, dry_run
        self.deadline = time.monotonic() + 60 * minutes
        self.device = torch.device("cpu" if dry_run else "cuda")
        self.repeats = 3 if dry_run else 30
        self.peaks: Any = None
        self.report: dict[str, Any] = {"dry_run": dry_run, "steps": {}}

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.deadline - time.monotonic()

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
            timeout=max(1.0, self.left()),
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
        for case in copy_cases(self.dry_run):
            row = measure_copy(case, self.device, self.repeats)
            if row is None:
                too_large.append(str(case))
                continue
            if self.peaks is not None:
                row["share_of_copy"] = row["bytes_per_second"] / self.peaks.bandwidth
            rows.append(row)
        return {"cases": self._keep(rows), "too_large": too_large}

    def single_ops(self) -> dict[str, Any]:
        """Every kernel of decode's ops, checked and timed beside the reference."""
        import torch

        from bench.acceptance_ops import measure_op, op_cases

        dtype, rows = torch.float32 if self.dry_run else torch.bfloat16, []
        for case in op_cases(self.dry_run, self.device, dtype):
            for row in measure_op(case, self.device, dtype, self.repeats):
                if self.peaks is not None:
                    row["share_of_copy"] = row["bytes_per_second"] / self.peaks.bandwidth
                rows.append(row)
        return {"cases": self._keep(rows)}

    def decode_pass(self) -> dict[str, Any]:
        """One decode pass of OPT-1.3B's shape at full, half and quarter depth."""
        from bench.acceptance_cases import measure_decode, random_engine

        if self.peaks is None:
            raise RuntimeError("the step peak_rates did not pass, so no roofline can be drawn")
        engine = random_engine(self.dry_run, self.device)
        tokens, repeats = (5, 1) if self.dry_run else (33, 5)
        rows = []
        for batch in (1, 2) if self.dry_run else (1, 8):
            rows += measure_decode(engine, batch, tokens, repeats, self.peaks)
        return {"cases": self._keep(rows)}

    def _keep(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Append timed cases to gpu.csv at once; hand them back."""
        from bench.results_file import append, stamp
        from dynkern.machine import device_name

        on = stamp(device_name(self.device), self.dry_run)
        rows = [{**dict.fromkeys(COLUMNS, ""), **row} for row in rows]
        append(self.output / "gpu.csv", [{**on, **row} for row in rows])
        return rows


STEPS: dict[str, Callable[[Acceptance], dict[str, Any]]] = {
    "environment": Acceptance.environment,
    "build": Acceptance.build,
    "op_tests": Acceptance.op_tests,
    "peak_rates": Acceptance.peak_rates,
    "copy_forward": Acceptance.copy_forward,
    "single_ops": Acceptance.single_ops,
    "decode_pass": Acceptance.decode_pass,
}


def run(acceptance: Acceptance, steps: list[str]) -> bool:
    """Run the steps, writing report.json after each; whether all of them passed."""
    entries = acceptance.report["steps"]
    for name in steps:
        started = time.monotonic()
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

"""`dynkern` in processes that are forked from one that has imported everything, so that a case
costs its run and not seconds of imports. What a case waits for, and what stands in its way, is said
by name:

    {"words": [...], "at": point or null, "seconds": delay or null, "file_size": limit or null,
     "stdin": file or null, "cwd": folder or null, "brief": true or null}

at: announce that point once it is reached, and wait there to be interrupted. seconds: announce the
start, wait for nothing. file_size: the largest file in bytes; beyond it writes fail. stdin: what it
reads there, nothing by default. cwd: where it runs. brief: timed windows are of one call.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
POINTS = {
    "load": ("dynkern.models.checkpoint", "Checkpoint.__getitem__"),
    "prefill": ("dynkern.runtime.executors.native", "NativeExecutor.prefill"),
    "decode": ("dynkern.runtime.executors.native", "NativeExecutor.advance"),
    "samples": ("dynkern.evaluation.samples", "SampleStore.append"),
    "results": ("os", "replace"),
    "curve": ("matplotlib.figure", "Figure.savefig"),
    "timing": ("dynkern.evaluation.sweep", "measure_speed"),
}


@dataclass
class Done:
    """What became of a case."""

    code: int
    out: str
    error: str


class Forked:
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forked"],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Forked:
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()

    def warm(self, words: list[str]) -> None:
        """Run this once in the process that forks."""
        print(json.dumps({"words": words, "warm": True}), file=self._server.stdin, flush=True)
        assert self._server.stdout.readline() == "warm\n"

    def run(self, words: list[str], folder: Path, **case: Any) -> Done:
        """One case; with `at` or `seconds` it gets SIGINT. folder: for its stdout and stderr."""
        case = {
            "words": words,
            "out": str(folder / "stdout"),
            "err": str(folder / "stderr"),
            **case,
        }
        print(json.dumps(case), file=self._server.stdin, flush=True)
        child = int(self._server.stdout.readline())
        if case.get("at") or case.get("seconds") is not None:
            assert self._server.stdout.readline() == "ready\n"
            time.sleep(case.get("seconds") or 0.0)
            with contextlib.suppress(ProcessLookupError):  # it may have come to its end
                os.kill(child, signal.SIGINT)
        code = int(self._server.stdout.readline())
        return Done(code, *(Path(case[key]).read_text() for key in ("out", "err")))


def main() -> None:
    # everything that a command imports, once
    import matplotlib.figure  # noqa: F401
    import torch

    import dynkern.commands.generate
    import dynkern.evaluation.sweep  # noqa: F401
    import dynkern.runtime.executors.native  # noqa: F401
    from dynkern.cli import main as cli

    torch.set_num_threads(1)
    for line in sys.stdin:
        case = json.loads(line)
        if case.get("warm"):
            # what is imported and cached on the way, so that no child does it again
            with contextlib.redirect_stdout(io.StringIO()):
                cli(case["words"])
            print("warm", flush=True)
            continue
        child = os.fork()
        if not child:
            try:
                # past what Python would do at its end for the process that forked
                os._exit(_child(case))
            except BaseException:
                import traceback

                traceback.print_exc()
                os._exit(99)
        status = os.waitpid(child, 0)[1]
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(case: dict[str, Any]) -> int:
    from dynkern.cli import main as cli

    parent = os.dup(1)
    os.write(parent, f"{os.getpid()}\n".encode())

    def ready() -> None:
        os.write(parent, b"ready\n")

    for descriptor, key in ((1, "out"), (2, "err")):
        file = os.open(case[key], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
    os.dup2(os.open(case.get("stdin") or os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)
    if case.get("cwd"):
        os.chdir(case["cwd"])
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if case.get("file_size"):
        import resource

        # Python ignores SIGXFSZ: the write itself fails
        resource.setrlimit(resource.RLIMIT_FSIZE, (case["file_size"], case["file_size"]))
    if case.get("user"):
        # mode bits say nothing to root
        os.setgroups([])
        os.setgid(case["user"])
        os.setuid(case["user"])
    if case.get("at"):
        _wait_at(case["at"], case.get("skip", 0), ready)
    elif case.get("seconds") is not None:
        _interruptible(ready)
    if case.get("brief"):
        from tests.support.brief import brief

        brief().__enter__()
    code = cli(case["words"])
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _interruptible(ready: Callable[[], None]) -> None:
    """Let SIGINT interrupt the command, and not the few instructions of ours around it."""
    import dynkern.cli

    run, inside = dynkern.cli._run, False

    def interrupted(*_: object) -> None:
        if inside:
            raise KeyboardInterrupt

    def watched(words: list[str]) -> int:
        nonlocal inside
        inside = True
        try:
            ready()
            return run(words)
        finally:
            inside = False

    dynkern.cli._run = watched
    signal.signal(signal.SIGINT, interrupted)


def _wait_at(point: str, skip: int, ready: Callable[[], None]) -> None:
    """Stand still, until interrupted, at the (skip + 1)-th call of a function of POINTS."""
    import importlib

    module, path = POINTS[point]
    owner: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part)
    function, calls = getattr(owner, name), [0]

    def waiting(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == skip + 1:
            ready()
            # short ones: a signal just ahead of a sleep is seen only after it
            for _ in range(6000):
                time.sleep(0.01)
            raise AssertionError("nobody interrupted")
        return function(*args, **kwargs)

    setattr(owner, name, waiting)


if __name__ == "__main__":
    main()

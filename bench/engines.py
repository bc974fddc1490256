"""Workers of bench.peers from outside: start one, ask it, give up on one that takes too long."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

# seconds to load (a peer may convert the checkpoint first) or to answer once (or compile first)
LIMIT = 240.0
# tries for a quiet run before a loaded one is kept and marked
TRIES = 4


class Engine:
    """One worker process. python: the interpreter that has the engine installed; converted: folder
    for a peer's own format, the checkpoint's by default; limit: seconds to load or to answer once.
    """

    def __init__(
        self,
        kind: str,
        checkpoint: Path,
        python: str = sys.executable,
        converted: Path | None = None,
        limit: float = LIMIT,
    ) -> None:
        self.kind, self.limit = kind, limit
        root = Path(__file__).resolve().parent.parent
        paths = [str(root), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }
        # a session of its own, so that compilers which the worker started end with it
        self._process = subprocess.Popen(
            [python, "-m", "bench.peers", kind, str(checkpoint), str(converted or checkpoint)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self._ended: dict[str, Any] | None = None
        first = self._read()
        self.obstacle: str | None = None if first.get("ready") else first["reason"]
        self.loaded_bytes = int(first.get("loaded_bytes", 0))
        self.version = str(first.get("version", ""))

    def run(self, batch: int, prompt: int, new_tokens: int, vocabulary: int) -> dict[str, Any]:
        """seconds of the whole loop, foreign load in cores, whether it was metered; or `reason`."""
        wanted = {"batch": batch, "prompt": prompt, "new_tokens": new_tokens}
        return self._ask({**wanted, "vocabulary": vocabulary})

    def answer(self, prompts: list[list[int]], new_tokens: int, **how: Any) -> dict[str, Any]:
        """As `run`, of these prompts, with `times` of each row's tokens and `peak`, the most
        resident memory of the process meanwhile, libraries included. how: natural, policy.
        """
        proc = Path(f"/proc/{self._process.pid}")
        with suppress(OSError):
            (proc / "clear_refs").write_text("5")
        done = self._ask({"prompts": prompts, "new_tokens": new_tokens, **how})
        peak = 0
        with suppress(OSError):
            for line in (proc / "status").read_text().splitlines():
                if line.startswith("VmHWM"):
                    peak = int(line.split()[1]) << 10
        return {**done, "peak": peak}

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._kill()

    def _ask(self, wanted: dict[str, Any]) -> dict[str, Any]:
        if self._ended is not None:
            return self._ended
        try:
            self._process.stdin.write(json.dumps(wanted) + "\n")
            self._process.stdin.flush()
        except OSError:
            pass  # it has ended, which is read next
        return self._read()

    def _read(self) -> dict[str, Any]:
        """Its next line. An answer is one line to one question, so nothing waits in the buffer."""
        answered, _, _ = select.select([self._process.stdout], [], [], self.limit)
        if not answered:
            self._kill()
            self._ended = {"reason": f"{self.kind}: no answer within {self.limit:g} s, given up"}
            return self._ended
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._ended = {"reason": f"{self.kind} ended with exit code {code}"}
            return self._ended
        return json.loads(line)

    def _kill(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

"""samples.jsonl: every text of a quality pass, kept row by row so that a stopped pass goes on.

The first line says what decides the texts; each further line is one (policy, prompt). The file is
only ever appended to. What a kill tears off is at most the end of its last write.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from dynkern.files import write_all, writing
from dynkern.manifest import differences

try:
    import fcntl
except ImportError:  # no locks on Windows
    fcntl = None  # type: ignore[assignment]

ROW_KEYS = (
    "policy",
    "prompt_id",
    "text",
    "token_ids",
    "rouge1",
    "rouge2",
    "rougeL",
    "new_tokens",
    "mean_layers",
    "layer_counts",
    "stop_reason",
)
_HEADER_START = b'{"kind": "header"'


def rows_of(path: Path) -> dict[str, set[str]]:
    """Prompt ids by policy of the whole rows in a file that a SampleStore has checked, and which
    another process may hold open.
    """
    held: dict[str, set[str]] = {}
    with open(path, "rb") as lines:
        next(lines, b"")
        for line in lines:
            if line.endswith(b"\n"):
                row = json.loads(line)
                held.setdefault(row["policy"], set()).add(row["prompt_id"])
    return held


class SampleStore:
    """Append-only rows of one quality pass.

    path: of samples.jsonl; its folder is made. fingerprint: JSON-like, whatever decides texts and
    scores (model, data, template, dtype, ...), but not the policies: more of them may be added on
    resume. order: all prompt ids in data order, which `rows` follows; without it rows come as they
    were appended.

    ValueError, one line, where the file holds rows and `resume` is false, was made with another
    fingerprint, is no such file, is broken before its last line, or is open in another process.
    A broken last line is what a kill leaves behind and is dropped.
    """

    def __init__(
        self,
        path: str | Path,
        fingerprint: Mapping[str, Any],
        resume: bool = False,
        order: Sequence[str] | None = None,
    ) -> None:
        self.path = Path(path)
        self._order = None if order is None else {id: place for place, id in enumerate(order)}
        # offsets, not rows: 7,801 prompts x 10 policies hold 20 million token ids
        self._places: dict[str, dict[str, tuple[int, int]]] = {}
        self._end = 0
        # as JSON gives it back, so that a tuple equals the list it becomes
        fingerprint = json.loads(json.dumps(fingerprint))
        with writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self.path, "a+b", buffering=0)
        try:
            self._lock()
            before = self._scan()
            if self._places:
                self._check_rows_may_stay(before, fingerprint, resume)
                self._file.truncate(self._end)
            else:
                self._file.truncate(0)
                self._end = 0
                header = {"kind": "header", "fingerprint": fingerprint}
                self._write(json.dumps(header).encode() + b"\n")
        except BaseException:
            self._file.close()
            raise

    @property
    def policies(self) -> list[str]:
        """Those that have rows, in the order in which they came."""
        return list(self._places)

    def done(self, policy: str) -> set[str]:
        """Prompt ids that have a row under `policy`."""
        return set(self._places.get(policy, ()))

    def rows(self, policy: str) -> list[dict[str, Any]]:
        """The rows of `policy` in data order."""
        places = self._places.get(policy, {})
        ids: Iterable[str] = places
        if self._order is not None:
            ids = sorted(places, key=self._order.__getitem__)
        return [json.loads(self._read(*places[id])) for id in ids]

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows (each with at least ROW_KEYS) in one write that is on disk when this returns.

        ValueError, and nothing is written, for a row that lacks a key, holds a number that is not
        finite, has a prompt unknown to `order`, or is there already.
        """
        lines: list[bytes] = []
        places: list[tuple[str, str, int, int]] = []
        start, fresh = self._end, set()
        for row in rows:
            self._check(row)
            self._check_prompt(row["prompt_id"])
            key = (row["policy"], row["prompt_id"])
            if key in fresh or key[1] in self._places.get(key[0], ()):
                raise ValueError(f"rows: got {key[0]} for prompt {key[1]!r} twice, expected once")
            fresh.add(key)
            line = json.dumps(row, ensure_ascii=False, allow_nan=False).encode() + b"\n"
            lines.append(line)
            places.append((*key, start, len(line)))
            start += len(line)
        self._write(b"".join(lines))
        for policy, prompt_id, at, length in places:
            self._places.setdefault(policy, {})[prompt_id] = (at, length)

    def take_over(self, shards: Sequence[SampleStore], policies: Sequence[str]) -> int:
        """Add the rows of shards of this very pass that are not here yet; how many.

        They come policy by policy (`policies`, then others) in data order, as one process would
        have written them. Taking over a second time changes nothing.
        """
        taken = 0
        every = [*policies, *(spec for shard in shards for spec in shard.policies)]
        for spec in dict.fromkeys(every):
            held = self.done(spec)
            rows = {row["prompt_id"]: row for shard in shards for row in shard.rows(spec)}
            fresh = [row for id, row in rows.items() if id not in held]
            if self._order is not None:
                fresh.sort(key=lambda row: self._order[row["prompt_id"]])
            if fresh:
                self.append(fresh)
            taken += len(fresh)
        return taken

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        self._file.close()

    def __enter__(self) -> SampleStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"output: {self.path} is being written by another process; wait for it or take "
                "another --output"
            ) from None
        except OSError:  # some network file systems have no locks
            pass

    def _scan(self) -> dict[str, Any]:
        """Index the whole rows, set the end behind the last, hand back the file's fingerprint."""
        size = os.fstat(self._file.fileno()).st_size
        with open(self.path, "rb") as lines:
            first = lines.readline()
            if not first.endswith(b"\n"):
                if first[: len(_HEADER_START)] != _HEADER_START[: len(first)]:
                    raise self._alien()
                return {}
            fingerprint = self._read_header(first)
            self._end = len(first)
            for number, line in enumerate(lines, 2):
                after = self._end + len(line)
                try:
                    self._index(line)
                except ValueError as error:
                    if after == size:
                        break
                    raise ValueError(
                        f"{self.path}, line {number}: found a broken row ({error}), expected a "
                        "sample; mend it or take another --output"
                    ) from None
                self._end = after
        return fingerprint

    def _read_header(self, line: bytes) -> dict[str, Any]:
        try:
            header = json.loads(line)
        except ValueError:
            raise self._alien() from None
        if not isinstance(header, dict) or header.get("kind") != "header":
            raise self._alien()
        if not isinstance(header.get("fingerprint"), dict):
            raise self._alien()
        return header["fingerprint"]

    def _check_rows_may_stay(
        self, before: dict[str, Any], fingerprint: dict[str, Any], resume: bool
    ) -> None:
        if not resume:
            raise ValueError(
                f"output: {self.path} already holds samples; go on with --resume or take another "
                "--output"
            )
        differing = differences(before, fingerprint)
        if differing:
            raise ValueError(
                f"output: {self.path} was made with other settings: {', '.join(differing)}; use "
                "the same ones or take another --output"
            )
        for places in self._places.values():
            for prompt_id in places:
                self._check_prompt(prompt_id)

    def _alien(self) -> ValueError:
        return ValueError(
            f"{self.path}, line 1: found no header, expected a samples.jsonl of dynkern; take "
            "another --output"
        )

    def _index(self, line: bytes) -> None:
        if not line.endswith(b"\n"):
            raise ValueError("no end of line")
        try:
            row = json.loads(line)
        except ValueError:
            raise ValueError("no JSON") from None
        self._check(row)
        places = self._places.setdefault(row["policy"], {})
        if row["prompt_id"] in places:
            raise ValueError(f"{row['policy']} for prompt {row['prompt_id']!r} a second time")
        places[row["prompt_id"]] = (self._end, len(line))

    def _check(self, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise ValueError("row: no object")
        for key in ROW_KEYS:
            if key not in row:
                raise ValueError(f"row: no {key}")
        for key in ("policy", "prompt_id"):
            if not isinstance(row[key], str):
                raise ValueError(f"row: {key} is {row[key]!r}, no text")

    def _check_prompt(self, prompt_id: str) -> None:
        if self._order is not None and prompt_id not in self._order:
            raise ValueError(
                f"output: {self.path} has prompt {prompt_id!r}, which is not in the data"
            )

    def _write(self, content: bytes) -> None:
        with writing(self.path):
            try:
                write_all(self._file, content)
                self._end += len(content)
            except BaseException:
                # half a line here would make the next append a broken line in the middle
                self._file.truncate(self._end)
                raise

    def _read(self, start: int, length: int) -> bytes:
        self._file.seek(start)
        content = b""
        while len(content) < length:
            piece = self._file.read(length - len(content))
            if not piece:
                raise ValueError(f"output: {self.path} was cut while it was in use")
            content += piece
        return content

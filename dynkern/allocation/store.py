"""The table on disk: one SQLite file, a row for every (prompt, route, sample).

Rows come in transactions under a write-ahead log, so that a kill at any moment leaves every
transaction whole or absent. At rest it is a single file: the log is folded in when a store closes,
and a store that was only read is not touched. Every row carries a checksum of what it holds, and a
store that closes seals the rest: a table that a kill left has no seal, and is taken as it is.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from dynkern.allocation.families import RouteSet
from dynkern.allocation.lock import FileLock
from dynkern.allocation.schema import (
    APPLICATION_ID,
    FILE_NAME,
    SCHEMA,
    SHARED,
    TABLES,
    VERSION,
    PromptRow,
    Row,
    checksum,
    seal,
)
from dynkern.manifest import differences


def table_path(path: str | Path) -> Path:
    """The file of a table given as file or folder. FileNotFoundError, one line, if it is absent."""
    path = Path(path)
    file = path / FILE_NAME if path.is_dir() else path
    if not file.is_file():
        raise FileNotFoundError(
            f"table: no file {file}, expected a table that `dynkern oracle` wrote, or its folder"
        )
    return file


class TableStore:
    """A table that is open. `connect` opens one to read, `create` and `resume` one to fill.

    ValueError, one line, for a file that is no table or is damaged. Not for use by two threads.
    """

    def __init__(self, path: Path, writable: bool) -> None:
        self.path, self.writable = path, writable
        self._lock: FileLock | None = None
        self._logged = False
        if writable:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = FileLock(path)
        try:
            mode = "rwc" if writable else "ro"
            uri = f"{path.resolve().as_uri()}?mode={mode}"
            self._connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=10)
        except sqlite3.Error as error:
            self._unlock()
            raise ValueError(f"table: {path} cannot be opened ({error})") from None
        try:
            self._check_header()
        except BaseException:
            self.close()
            raise

    @classmethod
    def connect(cls, path: str | Path) -> TableStore:
        """An existing table, to read."""
        return cls(table_path(path), writable=False)

    @classmethod
    def create(cls, path: Path, manifest: Mapping[str, Any], resume: bool) -> TableStore:
        """The table at `path` for what `manifest` (JSON-like) states, to fill; new where absent.

        ValueError, one line naming the cure, where there is one already and `resume` is false, or
        it was made with another manifest.
        """
        store = cls(path, writable=True)
        try:
            if store.is_empty():
                store._lay_out(manifest)
            elif resume:
                store.check_seal()
            else:
                raise ValueError(
                    f"output: {path} already holds a table; go on with --resume or take another "
                    "--output"
                )
            store.check_manifest(manifest)
        except BaseException:
            store.close()
            raise
        return store

    def is_empty(self) -> bool:
        """Whether nothing was laid out here yet, as after a kill in the first moment."""
        return not self.select("SELECT name FROM sqlite_master")

    def _lay_out(self, manifest: Mapping[str, Any]) -> None:
        with self.transaction() as connection:
            for statement in SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            _put(connection, "manifest", manifest)

    def check_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Raise a one-line ValueError that names what differs from this table's own manifest."""
        differing = differences(self.manifest, json.loads(json.dumps(manifest)))
        if differing:
            raise ValueError(
                f"output: {self.path} was made with other settings: {', '.join(differing)}; use "
                "the same ones or take another --output"
            )

    # -- reading -----------------------------------------------------------------------------------

    @property
    def manifest(self) -> dict[str, Any]:
        """What decides the rows: model, data, template, dtype, engine, family, decoding."""
        found = self._manifest_entry("manifest")
        if not isinstance(found, dict):
            raise self.damaged("manifest is no object")
        return found

    def _manifest_entry(self, key: str) -> Any:
        found = self.select("SELECT value FROM manifest WHERE key = ?", (key,))
        if not found:
            raise ValueError(f"table: {self.path} states no {key}; take another --output")
        try:
            return json.loads(found[0][0])
        except ValueError:
            raise self.damaged(f"{key} is no JSON") from None

    def select(self, query: str, arguments: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Rows of a query; a ValueError, one line, where the file turns out to be damaged."""
        try:
            return self._connection.execute(query, arguments).fetchall()
        except sqlite3.DatabaseError as error:
            raise self.damaged(str(error)) from None

    def route_set(self) -> RouteSet | None:
        """The routes of the table; None before they are chosen."""
        found = self.select("SELECT route, name, layers, keep FROM routes ORDER BY route")
        if not found:
            return None
        for place, (route, name, layers, keep) in enumerate(found):
            fits = isinstance(name, str) and isinstance(keep, str) and not set(keep) - {"0", "1"}
            fits = fits and len(keep) == len(found[0][3]) and keep.count("1") == layers > 0
            if route != place or not fits:
                raise self.damaged(f"route {route!r} differs from what was written")
        keep = tuple(tuple(bit == "1" for bit in row[3]) for row in found)
        return RouteSet(self.manifest["family"], tuple(row[1] for row in found), keep)

    def done(self) -> set[tuple[int, int, int]]:
        """(prompt, route, sample) of every row."""
        return set(self.select("SELECT prompt, route, sample FROM rows"))

    def losses_done(self) -> set[tuple[int, int]]:
        """(prompt, route) of every loss."""
        return set(self.select("SELECT prompt, route FROM losses"))

    def removals(self) -> list[tuple[int, float]]:
        """(layer, loss) of each step of greedy removal so far, in order."""
        return self.select("SELECT layer, loss FROM removals ORDER BY step")

    def check_rows(self) -> None:
        """Raise a one-line ValueError where a row is not what was written."""
        query = "SELECT prompt, route, sample, text, token_ids, rouge1, rouge2, rougeL, layers, "
        query += "new_tokens, stop_reason, checksum FROM rows"
        try:
            for row in self._connection.execute(query):
                if checksum(row[:-1]) != row[-1]:
                    raise self.damaged(f"row {row[:3]} differs from its checksum")
        except sqlite3.DatabaseError as error:
            raise self.damaged(str(error)) from None

    def check_seal(self) -> None:
        """Raise a one-line ValueError where the table is not what it was when it was closed."""
        found = self.select("SELECT value FROM manifest WHERE key = 'seal'")
        try:
            if found and found[0][0] != seal(self._connection):
                raise self.damaged("it differs from its seal")
        except sqlite3.DatabaseError as error:
            raise self.damaged(str(error)) from None

    # -- writing -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """A connection whose writes are all kept, or none of them."""
        if not self._logged:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = NORMAL")
            self._logged = True
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            if not self.is_empty():
                self._connection.execute("DELETE FROM manifest WHERE key = 'seal'")
            yield self._connection
            self._connection.execute("COMMIT")
        except sqlite3.OperationalError as error:  # a full disk
            self._roll_back()
            raise OSError(f"table: {self.path} cannot be written ({error})") from None
        except BaseException:
            self._roll_back()
            raise

    def _roll_back(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def put_routes(self, made: RouteSet) -> None:
        """Keep the routes; ValueError where other ones are there already."""
        before = self.route_set()
        if before is None:
            rows = [
                (place, name, sum(keep), "".join("01"[bit] for bit in keep))
                for place, (name, keep) in enumerate(zip(made.names, made.keep, strict=True))
            ]
            with self.transaction() as connection:
                connection.executemany("INSERT INTO routes VALUES (?, ?, ?, ?)", rows)
        elif (before.names, before.keep) != (made.names, made.keep):
            raise ValueError(
                f"output: {self.path} was made with other routes of {made.family}; use the same "
                "ones or take another --output"
            )

    def put_prompts(self, prompts: Iterable[PromptRow]) -> None:
        """Keep prompts that are not there yet."""
        there = {row[0] for row in self.select("SELECT prompt FROM prompts")}
        rows = [
            (p.prompt, p.id, p.digest, p.tokens, p.source) for p in prompts if p.prompt not in there
        ]
        if rows:
            with self.transaction() as connection:
                connection.executemany("INSERT INTO prompts VALUES (?, ?, ?, ?, ?)", rows)

    def put(self, rows: Iterable[Row], states: Mapping[int, np.ndarray]) -> None:
        """Add rows and prompt states (float32 [E]) in one transaction."""
        with self.transaction() as connection:
            connection.executemany(
                f"INSERT INTO rows VALUES ({', '.join('?' * 12)}, NULL)",
                [row.columns() for row in rows],
            )
            connection.executemany(
                "INSERT OR IGNORE INTO states VALUES (?, ?)",
                [(p, np.asarray(state, dtype="<f4").tobytes()) for p, state in states.items()],
            )

    def put_losses(self, losses: Iterable[tuple[int, int, float, int]]) -> None:
        """Add (prompt, route, loss in nats over all tokens, tokens) in one transaction."""
        with self.transaction() as connection:
            connection.executemany("INSERT INTO losses VALUES (?, ?, ?, ?)", losses)

    def put_removal(self, layer: int, loss: float) -> None:
        """Add a step of greedy removal: the layer dropped, and the loss without it."""
        step = len(self.removals())
        with self.transaction() as connection:
            connection.execute("INSERT INTO removals VALUES (?, ?, ?)", (step, layer, loss))

    def put_agreements(self, agreements: Iterable[tuple[float, int, int, int]]) -> None:
        """Set the agreement of rows: (agreement, prompt, route, sample)."""
        with self.transaction() as connection:
            connection.executemany(
                "UPDATE rows SET agreement = ? WHERE prompt = ? AND route = ? AND sample = ?",
                agreements,
            )

    def merge(self, other: Path) -> int:
        """Take over the rows of a shard of the same table that are not here yet; how many.

        Taking over a second time changes nothing.
        """
        with TableStore(other, writable=True) as shard:
            if shard.is_empty():
                return 0
            self.check_manifest(shard.manifest)
            shard.check_rows()
            shard.check_seal()
            made = shard.route_set()
            if made is not None:
                self.put_routes(made)
            return self._take_over(other)

    def _take_over(self, other: Path) -> int:
        before = self.select("SELECT count(*) FROM rows")[0][0]
        # ATTACH is not allowed within a transaction
        self._connection.execute("ATTACH DATABASE ? AS shard", (str(other),))
        try:
            if any(self._lacks(table) for table in SHARED):
                with self.transaction() as connection:
                    for table in SHARED:
                        connection.execute(
                            f"INSERT OR IGNORE INTO main.{table} SELECT * FROM shard.{table}"
                        )
        finally:
            self._connection.execute("DETACH DATABASE shard")
        return self.select("SELECT count(*) FROM rows")[0][0] - before

    def _lacks(self, table: str) -> bool:
        keys = {"rows": "prompt, route, sample", "losses": "prompt, route", "removals": "step"}
        key = keys.get(table, "prompt")
        query = f"SELECT {key} FROM shard.{table} EXCEPT SELECT {key} FROM main.{table} LIMIT 1"
        return bool(self.select(query))

    # -- opening and closing -----------------------------------------------------------------------

    def close(self) -> None:
        """Fold the log into the file and let go of it."""
        try:
            if self._logged:
                self._seal()
                self._connection.execute("PRAGMA journal_mode = DELETE")
        except (sqlite3.Error, ValueError):
            pass  # somebody reads: the log stays beside the file, and is part of it; or a full disk
        finally:
            self._connection.close()
            self._unlock()

    def _seal(self) -> None:
        if not self.is_empty() and not self.select("SELECT 1 FROM manifest WHERE key = 'seal'"):
            self._connection.execute(
                "INSERT INTO manifest VALUES ('seal', ?)", (seal(self._connection),)
            )

    def __enter__(self) -> TableStore:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _check_header(self) -> None:
        try:
            if self.writable and self.is_empty():
                return
            (mark,) = self._connection.execute("PRAGMA application_id").fetchone()
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if mark != APPLICATION_ID:
                raise ValueError(
                    f"table: {self.path} is no table of dynkern; take another path, or fill one "
                    "with `dynkern oracle`"
                )
            if version != VERSION:
                raise ValueError(
                    f"table: {self.path} has format {version}, expected {VERSION}; fill a new one"
                )
            found = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0]
            names = self._connection.execute("SELECT name FROM sqlite_master").fetchall()
        except sqlite3.DatabaseError as error:
            raise self.damaged(str(error)) from None
        if found != "ok":
            raise self.damaged(found)
        missing = sorted(set(TABLES) - {name for (name,) in names})
        if missing:
            raise self.damaged(f"no {missing[0]}")

    def damaged(self, reason: str) -> ValueError:
        """What is raised, in one line, where the file is not what was written."""
        reason = " ".join(reason.split())
        return ValueError(
            f"table: {self.path} is damaged or no table ({reason}); put a copy back, or take "
            "another --output and fill it anew"
        )

    def _unlock(self) -> None:
        if self._lock is not None:
            self._lock.release()


def _put(connection: sqlite3.Connection, key: str, value: Any) -> None:
    connection.execute("INSERT INTO manifest VALUES (?, ?)", (key, json.dumps(value)))


def remove(path: Path) -> None:
    """Delete a table that is closed, and what lies beside it."""
    for end in ("", "-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)

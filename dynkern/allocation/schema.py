"""What a table file holds: its SQL, and rows as Python sees them."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

FILE_NAME = "table.sqlite"
VERSION = 1
# says "dktb": SQLite keeps it in the file's header
APPLICATION_ID = 0x646B7462

SCHEMA = """
CREATE TABLE manifest (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE prompts (
    prompt INTEGER PRIMARY KEY, id TEXT NOT NULL, digest TEXT NOT NULL, tokens INTEGER NOT NULL,
    source TEXT);
CREATE TABLE states (prompt INTEGER PRIMARY KEY, state BLOB NOT NULL);
CREATE TABLE routes (
    route INTEGER PRIMARY KEY, name TEXT NOT NULL, layers INTEGER NOT NULL, keep TEXT NOT NULL);
CREATE TABLE removals (step INTEGER PRIMARY KEY, layer INTEGER NOT NULL, loss REAL NOT NULL);
CREATE TABLE rows (
    prompt INTEGER NOT NULL, route INTEGER NOT NULL, sample INTEGER NOT NULL,
    text TEXT NOT NULL, token_ids BLOB NOT NULL, rouge1 REAL NOT NULL, rouge2 REAL NOT NULL,
    rougeL REAL NOT NULL, layers REAL, new_tokens INTEGER NOT NULL, stop_reason TEXT NOT NULL,
    checksum INTEGER NOT NULL, agreement REAL,
    PRIMARY KEY (prompt, route, sample)) WITHOUT ROWID;
CREATE TABLE losses (
    prompt INTEGER NOT NULL, route INTEGER NOT NULL, loss REAL NOT NULL, tokens INTEGER NOT NULL,
    PRIMARY KEY (prompt, route)) WITHOUT ROWID;
"""
TABLES = ("manifest", "prompts", "states", "routes", "removals", "rows", "losses")
# what a row's own checksum does not cover, and that no row is missing
_SEALED = (
    "SELECT key, value FROM manifest WHERE key != 'seal' ORDER BY key",
    "SELECT * FROM prompts ORDER BY prompt",
    "SELECT * FROM states ORDER BY prompt",
    "SELECT * FROM routes ORDER BY route",
    "SELECT * FROM removals ORDER BY step",
    "SELECT * FROM losses ORDER BY prompt, route",
    "SELECT prompt, route, sample, checksum, agreement FROM rows ORDER BY prompt, route, sample",
)
SHARED = ("prompts", "states", "removals", "rows", "losses")


@dataclass(frozen=True)
class PromptRow:
    """A prompt of the table. prompt: its place in the data; digest: of its ids (digest_ids)."""

    prompt: int
    id: str
    digest: str
    tokens: int
    source: str | None


@dataclass(frozen=True)
class Row:
    """What one (prompt, route, sample) came to. layers: mean over routed passes, counted where
    layers run; None where one token ended the row.
    """

    prompt: int
    route: int
    sample: int
    text: str
    token_ids: tuple[int, ...]
    rouge1: float
    rouge2: float
    rougeL: float
    layers: float | None
    new_tokens: int
    stop_reason: str

    def columns(self) -> tuple[Any, ...]:
        """As stored, the checksum last."""
        ids = np.asarray(self.token_ids, dtype="<i4").tobytes()
        scores = (float(self.rouge1), float(self.rouge2), float(self.rougeL))
        # as SQLite hands them back, or the checksum would not
        layers = None if self.layers is None else float(self.layers)
        kept = (self.prompt, self.route, self.sample, self.text, ids, *scores, layers)
        kept += (self.new_tokens, self.stop_reason)
        return (*kept, checksum(kept))


def checksum(columns: Sequence[Any]) -> int:
    return zlib.crc32(repr(tuple(columns)).encode())


def seal(connection: sqlite3.Connection) -> str:
    """One checksum of everything in a table, whatever the order in which it came."""
    found = hashlib.sha256()
    for query in _SEALED:
        for row in connection.execute(query):
            found.update(repr(row).encode())
    return found.hexdigest()


def digest_ids(ids: Sequence[int]) -> str:
    """What a prompt is known by: SHA-256 of its ids as little-endian int32, 32 hex digits."""
    return hashlib.sha256(np.asarray(ids, dtype="<i4").tobytes()).hexdigest()[:32]

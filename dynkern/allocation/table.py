"""A table in memory: what every prompt came to under every route, as arrays."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynkern.allocation.families import RouteSet
from dynkern.allocation.store import TableStore
from dynkern.arguments import check_integer

Floats = NDArray[np.float64]
# arrays that begin with a dimension of prompts
_BY_PROMPT = ("prompt_tokens", "quality", "tokens", "agreement", "loss")


@dataclass(frozen=True)
class Table:
    """N prompts that have all their rows, R routes, S samples.

    quality, tokens, agreement: [N, R, S], ROUGE-L F1, generated tokens, share of the full route's
    tokens (NaN where it was not compared). loss: [N, R], teacher-forced nats per token, NaN where
    there is none. prompt_tokens: int [N]. states: float32 [N, E], the prompt's last token as the LM
    head reads it, None where a prompt lacks it. missing: prompts of the data left out because rows
    of theirs are missing.
    """

    path: Path
    manifest: dict[str, Any]
    routes: RouteSet
    ids: list[str]
    digests: list[str]
    sources: list[str | None]
    prompt_tokens: NDArray[np.int64]
    quality: Floats
    tokens: NDArray[np.int64]
    agreement: Floats
    loss: Floats
    states: NDArray[np.float32] | None
    missing: int

    @property
    def costs(self) -> Floats:
        """Layers that each route runs, [R]."""
        return np.asarray(self.routes.budgets, dtype=np.float64)

    @property
    def mean_quality(self) -> Floats:
        """Quality as mean over samples, [N, R]."""
        return self.quality.mean(axis=2)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.routes.num_layers

    def part(self, rows: NDArray[np.int64]) -> Table:
        """The table of the prompts `rows`, in this order, [n]."""
        return replace(
            self,
            ids=[self.ids[row] for row in rows],
            digests=[self.digests[row] for row in rows],
            sources=[self.sources[row] for row in rows],
            states=None if self.states is None else self.states[rows],
            **{name: getattr(self, name)[rows] for name in _BY_PROMPT},
        )

    def merged(self) -> tuple[list[str], Floats]:
        """Distinct digests, and the quality of each, [U, R]: prompts that are equal share a route,
        so that theirs is the mean.
        """
        unique = list(dict.fromkeys(self.digests))
        place = {digest: at for at, digest in enumerate(unique)}
        owner = np.array([place[digest] for digest in self.digests])
        sums = np.zeros((len(unique), self.quality.shape[1]))
        np.add.at(sums, owner, self.mean_quality)
        return unique, sums / np.bincount(owner, minlength=len(unique))[:, None]


def load_table(path: str | Path) -> Table:
    """The table in a file or folder. FileNotFoundError or ValueError, one line, where there is
    none, it is damaged, or no prompt has all its rows.
    """
    with TableStore.connect(path) as store:
        store.check_rows()
        store.check_seal()
        routes, manifest = store.route_set(), store.manifest
        if routes is None:
            raise ValueError(f"table: {store.path} holds no routes yet; fill it with --resume")
        try:
            made = _read(store, routes, manifest)
        except (KeyError, IndexError, TypeError, ValueError, ZeroDivisionError) as error:
            # a table without a seal, whose bytes say what cannot be
            reason = f"{type(error).__name__}: {error}"[:120]
            raise store.damaged(f"its entries do not fit each other, {reason}") from None
        if made is None:
            raise ValueError(
                f"table: {store.path} has no prompt with all of its rows; fill it with --resume"
            )
        return made


def _read(store: TableStore, routes: RouteSet, manifest: dict[str, Any]) -> Table | None:
    """None where no prompt has all its rows."""
    shape = (len(routes.keep), check_integer("samples", manifest["samples"], 1))
    query = (
        "SELECT prompt, route, sample, rougeL, new_tokens, agreement FROM rows "
        "ORDER BY prompt, route, sample"
    )
    cells = np.array(store.select(query), dtype=np.float64).reshape(-1, 6)
    prompts, held = np.unique(cells[:, 0].astype(np.int64), return_counts=True)
    whole = prompts[held == shape[0] * shape[1]]
    if not whole.size:
        return None
    cells = cells[np.isin(cells[:, 0], whole)].reshape(len(whole), *shape, 6)
    query = "SELECT id, digest, source, tokens, prompt FROM prompts ORDER BY prompt"
    about = {row[4]: row[:4] for row in store.select(query)}
    places = {int(prompt): place for place, prompt in enumerate(whole)}
    loss = np.full((len(whole), shape[0]), np.nan)
    for prompt, route, total, tokens in store.select("SELECT * FROM losses"):
        if prompt in places:
            loss[places[prompt], route] = total / tokens
    blobs = dict(store.select("SELECT prompt, state FROM states"))
    states = None
    if all(prompt in blobs for prompt in places):
        states = np.stack([np.frombuffer(blobs[prompt], dtype="<f4") for prompt in places])
    rows = [about[prompt] for prompt in places]
    return Table(
        store.path,
        manifest,
        routes,
        ids=[row[0] for row in rows],
        digests=[row[1] for row in rows],
        sources=[row[2] for row in rows],
        prompt_tokens=np.array([check_integer("tokens", row[3], 1) for row in rows]),
        quality=cells[..., 3],
        tokens=cells[..., 4].astype(np.int64),
        agreement=cells[..., 5],
        loss=loss,
        states=states,
        missing=check_integer("prompts", manifest["prompts"], len(whole)) - len(whole),
    )

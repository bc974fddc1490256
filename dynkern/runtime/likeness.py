"""Likeness: waiting requests by route, and which of them suit a batch best."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dynkern.runtime.scheduler import Company, Waiting

# requests of one group and one route, in order; may be empty
Kind = deque["Waiting"]


class Likeness:
    """Entries, at least one, in order; those of equal group and layers stand together.

    Hundreds of requests mostly have a dozen routes, and company comes back with the same union:
    kinds are compared with it, not requests, and only when it has changed.
    """

    def __init__(self, entries: Sequence[Waiting]) -> None:
        self._kinds: dict[object, Kind] = {}
        for entry in entries:
            self._kinds.setdefault((entry.group, entry.layers), deque()).append(entry)
        self._full = (1 << entries[0].num_layers) - 1
        self._company: Company | None = None
        self._classes: list[list[Kind]] = []

    def remove(self, entry: Waiting) -> None:
        """Take one out."""
        self._kinds[entry.group, entry.layers].remove(entry)

    def best(self, company: Company, may_go: Callable[[Waiting], bool]) -> Waiting:
        """The first in the order of `ranked` that may go: one may if an earlier one like it may.

        StopIteration where none may.
        """
        candidates = (
            [kind[0] for kind in kinds if kind and may_go(kind[0])]
            for kinds in self._compared(company)
        )
        return min(next(filter(None, candidates)), key=_order)

    def ranked(self, company: Company) -> Iterator[Waiting]:
        """Those of the company's group first; then by fewest layers added to its union, and by
        most of it that is used; then in order. Beside nobody the deepest go first.
        """
        for kinds in self._compared(company):
            yield from sorted((entry for kind in kinds for entry in kind), key=_order)

    def _compared(self, company: Company) -> list[list[Kind]]:
        """Kinds that suit the company equally well, the best first."""
        if company != self._company:
            union = self._full if company.group is None else company.union
            classes: dict[tuple[bool, int, int], list[Kind]] = {}
            for kind in filter(None, self._kinds.values()):
                group, layers = kind[0].group, kind[0].layers
                added, unused = (layers & ~union).bit_count(), (union & ~layers).bit_count()
                classes.setdefault((group != company.group, added, unused), []).append(kind)
            self._company = company
            self._classes = [classes[misfit] for misfit in sorted(classes)]
        return self._classes


def _order(entry: Waiting) -> tuple[float, int]:
    return entry.order

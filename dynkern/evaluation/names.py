"""Policies by the names that readers want: without folders, joined to families."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import PurePath

# specs that end in a path
_OF_FILES = ("oracle", "predictor", "histogram", "controller")


def family_of(spec: str) -> tuple[str, str]:
    """What joins points to a line, and what tells them apart: ("uniform", "6") of "uniform:6",
    ("confidence:margin", "0.2") of "confidence:margin=0.2", ("oracle", "0.5") of
    "oracle:0.5@TABLE".
    """
    head, _, option = spec.partition(":")
    if head in _OF_FILES:
        budget, at, path = option.rpartition("@")
        return head, budget if at else PurePath(path).name
    rule = re.match(r"([A-Za-z_]+)=(.*)", option)
    if rule:
        return f"{head}:{rule[1]}", rule[2]
    return head, option or head


def display_names(specs: Iterable[str]) -> dict[str, str]:
    """A name for each spec, paths cut to their last part where that leaves names apart."""
    specs = list(specs)
    brief = {spec: _brief(spec) for spec in specs}
    names = list(brief.values())
    return {spec: name if names.count(name) == 1 else spec for spec, name in brief.items()}


def _brief(spec: str) -> str:
    head, _, option = spec.partition(":")
    if head not in _OF_FILES:
        return spec
    budget, at, rest = option.rpartition("@")
    path, comma, options = rest.partition(",")
    name = PurePath(path).name or path
    if name in ("controller.safetensors", "table.sqlite"):
        name = PurePath(path).parent.name or name
    return f"{head}:{budget}{at}{name}{comma}{options}"


class Styles:
    """A style for each family, the same on the whole page: 0 is full depth's."""

    def __init__(self, families: Iterable[str] = ()) -> None:
        self._known = {"full": 0}
        for name in families:
            self.of(name)

    def of(self, family: str) -> int:
        """The family's style; a new one for a new family."""
        return self._known.setdefault(family, len(self._known))


def listed(names: Iterable[str], most: int = 4) -> str:
    """ "a, b and c"; beyond `most`, how many more."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"

"""What a report holds, whatever command it is of. All texts are plain: the page escapes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from dynkern.report.charts import Chart

# name and value, in order
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """A chart with its title and, below, what a reader must know to read it."""

    title: str
    chart: Chart
    note: str = ""
    kind: ClassVar[str] = "figure"


@dataclass(frozen=True)
class Column:
    """A column of a table. meaning: said once below the table."""

    title: str
    meaning: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Table:
    """Rows of cells as they are to be read; the first cell of a row names it.

    is_long: folded up until somebody asks. ValueError where a row has another length.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[str]]
    is_long: bool = False
    kind: ClassVar[str] = "table"

    def __post_init__(self) -> None:
        for place, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"rows: got {len(row)} cells in row {place}, expected {len(self.columns)}"
                )


@dataclass(frozen=True)
class Answer:
    """A text, by whom, and what it cost ("9.0 layers", "23 tokens")."""

    name: str
    text: str
    costs: Sequence[str]


@dataclass(frozen=True)
class Sample:
    """A prompt, the answers that count, and the answers that came."""

    name: str
    prompt: str
    references: Sequence[str]
    answers: Sequence[Answer]
    kind: ClassVar[str] = "sample"


@dataclass(frozen=True)
class Section:
    """Figures, tables and samples under a heading. lead: paragraphs ahead of them."""

    title: str
    blocks: Sequence[Figure | Table | Sample]
    lead: Sequence[str] = ()

    @property
    def groups(self) -> list[tuple[str, list[Any]]]:
        """Neighbours of one kind together: figures stand side by side where there is room."""
        groups: list[tuple[str, list[Any]]] = []
        for block in self.blocks:
            if not groups or groups[-1][0] != block.kind:
                groups.append((block.kind, []))
            groups[-1][1].append(block)
        return groups


@dataclass(frozen=True)
class Report:
    """One page. command: its name, "eval". asked: in one sentence; settings: in full. found: some
    sentences, the most important first; notes: reasons for doubt. rerun: lines for a shell.
    files: what else lies in the folder, and what it is.
    """

    title: str
    command: str
    asked: str
    settings: Facts
    found: Sequence[str]
    sections: Sequence[Section]
    conditions: Facts
    rerun: Sequence[str]
    notes: Sequence[str] = ()
    rerun_note: str = ""
    files: Mapping[str, str] = field(default_factory=dict)

"""Bars with rate and time left, for runs that take hours."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class Progressing:
    """Bars on a console. `task(name)` hands out report(done, total, label)."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[label]}"),
            console=console,
        )

    def task(self, name: str) -> Callable[[int, int, str], None]:
        """A new bar. What is done at its first report counts for no rate."""
        bar = self._bars.add_task(name, total=None, label="", start=False)
        begun = False

        def report(done: int, total: int, label: str) -> None:
            nonlocal begun
            if not begun:
                # rows of an earlier run were not made at this run's rate
                self._bars.update(bar, completed=done, total=total, label=label)
                self._bars.start_task(bar)
                begun = True
            self._bars.update(bar, completed=done, total=total, label=label)

        return report

    def __enter__(self) -> Progressing:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bars.stop()

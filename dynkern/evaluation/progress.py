"""Bars with rate and time left, for runs that take hours."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
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

# between two lines where bars cannot move: a log of an hour stays readable
LINE_SECONDS = 60.0


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.1f}/s", style="progress.data.speed")


class Progressing:
    """Bars on a console, and a line a minute where that is a file or a pipe. `task(name)` hands out
    report(done, total, label).
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._told = time.monotonic()
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
            now = time.monotonic()
            if not self.console.is_terminal and now - self._told >= LINE_SECONDS:
                self._told = now
                self._tell(next(task for task in self._bars.tasks if task.id == bar))

        return report

    def _tell(self, task: Task) -> None:
        left = task.time_remaining
        parts = (
            f"{task.description}: {task.completed:,.0f} of {task.total:,.0f}",
            _Rate().render(task).plain,
            "" if left is None else f"{timedelta(seconds=int(left))} left",
            task.fields["label"],
        )
        told = ", ".join(filter(None, parts))
        self.console.print(told, highlight=False, markup=False, soft_wrap=True)

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

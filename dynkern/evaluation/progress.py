"""Progress bars of long work."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


def progress_bar(console: Console) -> Progress:
    """A bar for each task: its name, how far, how long, and a label of what is under way."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    return Progress(
        *columns, TimeElapsedColumn(), TextColumn("{task.fields[label]}"), console=console
    )


def add_task(progress: Progress, name: str) -> Callable[[int, int, str], None]:
    """A task of the bar: report(done, total, label) moves it on."""
    task = progress.add_task(name, total=None, label="")

    def report(done: int, total: int, label: str) -> None:
        progress.update(task, completed=done, total=total, label=label)

    return report

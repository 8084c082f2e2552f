"""A progress bar on stderr that shows itself on a terminal only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import Progress, TaskID


class Bar:
    """One line of progress; `advance` takes what was done since."""

    def __init__(self, progress: Progress, task: TaskID):
        self._progress, self._task = progress, task

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def total(self, total: float) -> None:
        self._progress.update(self._task, total=total)


@contextmanager
def bar(description: str, total: float | None) -> Iterator[Bar]:
    """A bar for `total` steps (None: not known yet). Gone when done, so that logs and pipes stay clean."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress, progress.add_task(description, total=total))

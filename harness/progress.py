"""What a person sees while runs go on: one live line per run on stderr, nothing when it is no
terminal but a line as each run ends."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID, TextColumn, TimeRemainingColumn

REFRESH_SECONDS = 0.2


class Live:
    """Context manager; `update` may be called as often as a caller likes."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False)
        self.bars = Progress(
            TextColumn("{task.description:<26.26}"),
            TextColumn("{task.fields[note]:<42.42}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )
        self.tasks: dict[str, TaskID] = {}
        self.updated: dict[str, float] = {}

    def __enter__(self) -> Live:
        self.bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.bars.stop()

    def due(self, run_id: str) -> bool:
        """Whether a run's line is old enough to be drawn again; never when nobody watches."""
        age = time.monotonic() - self.updated.get(run_id, 0.0)
        return self.console.is_terminal and age >= REFRESH_SECONDS

    def update(self, run_id: str, name: str, done: float, total: float, note: str) -> None:
        """Move a run's line, if it is due; it appears with the first call."""
        if not self.due(run_id):
            return
        self.updated[run_id] = time.monotonic()
        if run_id not in self.tasks:
            self.tasks[run_id] = self.bars.add_task(name, total=total, note=note)
        self.bars.update(self.tasks[run_id], completed=done, total=total, note=note)

    def end(self, run_id: str, line: str) -> None:
        """Take a run's line away and leave one line of text."""
        if run_id in self.tasks:
            self.bars.remove_task(self.tasks.pop(run_id))
        self.say(line)

    def say(self, line: str) -> None:
        """One line above the live ones."""
        if self.console.is_terminal:
            self.console.print(line, markup=False)
        else:
            print(line, file=sys.stderr, flush=True)


def epoch_note(row: dict[str, Any], epochs: int) -> str:
    """`epoch 3/20  loss 1.203  verb_top1 41.0` of a line of metrics."""
    scores = [(k.removeprefix("select/"), v) for k, v in row.items() if k.endswith("_top1")]
    shown = "  ".join(f"{name} {100 * value:.1f}" for name, value in scores[:2])
    return f"epoch {row['epoch']}/{epochs}  loss {row['train/loss']:.3f}  {shown}"

"""What a person sees while a run goes on: a live line at a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

LIVE_SECONDS, PLAIN_SECONDS = 0.2, 15.0


class Display:
    """Progress on standard error; silent where ``quiet``.

    Args:
        quiet: say nothing (another process speaks, or nobody listens).
        name: of the run.
    """

    def __init__(self, name: str, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(name, total=None, figures="")
        self.next_at = 0.0

    def __enter__(self) -> Display:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def due(self) -> bool:
        """Whether it is time to show how far it is."""
        return not self.console.quiet and time.monotonic() >= self.next_at

    def step(self, done: float, epoch: int, loss: float, samples_per_second: float, seconds_left: float) -> None:
        """Show how far it is; asked for when :meth:`due`.

        Args:
            done: part of the run, 0..1.
            epoch: from 0.
            loss: mean over the epoch so far.
            samples_per_second: since the start of the epoch.
            seconds_left: estimate for the rest of the run.
        """
        first = self.next_at == 0.0
        self.next_at = time.monotonic() + (LIVE_SECONDS if self.live else PLAIN_SECONDS)
        figures = f"epoch {epoch + 1}  loss {loss:.4g}  {samples_per_second:,.0f} samples/s"
        if self.live:
            self.bar.update(self.task, completed=done, total=1.0, figures=figures)
        elif not first:
            self.console.print(f"{done:4.0%}  {figures}  {seconds_left:,.0f} s left")

    def row(self, row: Mapping[str, float | int]) -> None:
        """One line for a finished epoch."""
        hidden = ("epoch", "step", "learning_rate", "seconds", "samples_per_second", "peak_memory_mebibytes")
        figures = "  ".join(f"{key} {value:.4g}" for key, value in row.items() if key not in hidden)
        speed, memory = row["samples_per_second"], row["peak_memory_mebibytes"]
        self.console.print(
            f"epoch {row['epoch']:>3}  {figures}  {speed:,.0f} samples/s  {memory:,.0f} MiB  {row['seconds']:.1f} s"
        )

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

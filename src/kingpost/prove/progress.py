"""What a person sees while a trial goes on: a live line at a terminal, a line for each look elsewhere."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from kingpost.figure import readable
from kingpost.prove.sequential import Look


class TrialDisplay:
    """Progress on standard error; silent where ``quiet``."""

    def __init__(self, name: str, quiet: bool) -> None:
        self.console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and not quiet
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[figures]}"))
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.task = self.bar.add_task(name, total=1.0, figures="starting the workers")

    def __enter__(self) -> TrialDisplay:
        if self.live:
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self.console.print(text, markup=False)

    def look(self, arm: str, look: Look) -> None:
        """What one more pair says."""
        interval = f"[{look.lower:+.3g}, {look.upper:+.3g}]" if look.lower > float("-inf") else "no interval yet"
        after = f"{look.decision}: {look.reason}" if look.final else look.reason
        self.say(f"pair {look.pairs:>2}  {arm}  {look.difference:+.4g} {interval}  {after}")

    def now(self, what: str, part: float, seconds_left: float | None) -> None:
        """How far it is: what goes on, the part that is done, and at most how long it takes."""
        left = "" if seconds_left is None else f"  at most {readable(seconds_left, 'seconds')} left"
        if self.live:
            self.bar.update(self.task, completed=part, figures=f"{what}{left}")

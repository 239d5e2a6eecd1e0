"""A Figure: one number that was derived, with its unit and the reason for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One derived number.

    Args:
        name: what it is.
        value: the number, or text where there is none.
        unit: of the value.
        reason: how it came about.
    """

    name: str
    value: float | int | str
    unit: str
    reason: str

    def __str__(self) -> str:
        shown = self.value if isinstance(self.value, str) else readable(self.value, self.unit)
        return f"{self.name:<26} {shown:>20}   {self.reason}"


def readable(value: float, unit: str) -> str:
    """A number with its unit, in a size that people read.

    >>> readable(2_500_000, "bytes"), readable(1.5e9, "FLOPs"), readable(90, "seconds"), readable(64, "samples")
    ('2.38 MiB', '1.5 GFLOPs', '1.5 minutes', '64 samples')
    """
    if unit == "bytes":
        return _scaled(value, 1024, ["bytes", "KiB", "MiB", "GiB", "TiB"])
    if unit == "FLOPs":
        return _scaled(value, 1000, ["FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs", "EFLOPs"])
    if unit == "seconds" and value >= 60:
        return f"{value / 60:,.3g} minutes" if value < 5400 else f"{value / 3600:,.3g} hours"
    number = f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"
    return f"{number} {unit}".rstrip()


def _scaled(value: float, base: int, units: list[str]) -> str:
    for unit in units[:-1]:
        if abs(value) < base:
            return f"{value:.3g} {unit}"
        value /= base
    return f"{value:,.3g} {units[-1]}"

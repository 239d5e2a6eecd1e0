"""The Finding: something that is wrong or remarkable about a run, with its evidence and its remedy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from kingpost.patch import Patch

Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A symptom and what is known about it.

    Args:
        symptom: what was seen, one sentence.
        severity: ``note`` (good to know), ``warning`` (costs quality or time), ``error`` (the run cannot go on).
        evidence: the numbers behind it, units in their names.
        cause: the likely reason.
        place: module, parameter group, loader or key of the recipe.
        remedy: the change that should mend it.

    >>> print(Finding(symptom="the batch was split in 2", severity="note", cause="out of memory", place="step 7"))
    note: the batch was split in 2 (step 7)
      cause: out of memory
    """

    symptom: str
    severity: Severity
    evidence: Mapping[str, float | int | str] = field(default_factory=dict)
    cause: str = ""
    place: str = ""
    remedy: Patch | None = None

    def to_value(self) -> dict[str, Any]:
        """As plain values for JSON; :meth:`from_value` is the inverse."""
        remedy = self.remedy.to_value() if self.remedy else None
        return {
            **{k: v for k, v in vars(self).items() if k != "remedy"},
            "evidence": dict(self.evidence),
            "remedy": remedy,
        }

    @classmethod
    def from_value(cls, value: Mapping[str, Any]) -> Finding:
        """A finding from the values that :meth:`to_value` gives."""
        remedy = Patch.of(value["remedy"]) if value.get("remedy") else None
        return cls(**{**value, "remedy": remedy})

    def __str__(self) -> str:
        lines = [f"{self.severity}: {self.symptom}" + (f" ({self.place})" if self.place else "")]
        if self.cause:
            lines.append(f"  cause: {self.cause}")
        if self.evidence:
            lines.append("  evidence: " + ", ".join(f"{key} {value}" for key, value in self.evidence.items()))
        if self.remedy:
            lines.append(f"  remedy: {self.remedy}")
        return "\n".join(lines)

"""``torch.compile``."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from kingpost.assembly import Assembly, Slot
from kingpost.option import checked
from kingpost.technique import Technique


@checked
class Compile(Technique):
    """Compile the model's forward and backward with ``torch.compile``. Costs seconds to minutes at the start.

    Fails to pay in short runs and where shapes change often. Parameter names stay as they are.
    Source: Ansel et al., "PyTorch 2", ASPLOS 2024.
    """

    backend: Literal["inductor", "aot_eager", "eager"] = "inductor"
    """What runs the captured graph; the other two are for finding faults."""
    mode: Literal["default", "reduce-overhead", "max-autotune"] = "default"
    """How hard inductor tries."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    example: ClassVar[dict[str, Any]] = {"backend": "aot_eager"}  # one inductor compilation takes tens of seconds

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model is compiled when it is first called."""
        mode = self.mode if self.backend == "inductor" else None
        assembly.model.compile(backend=self.backend, mode=mode)
        return assembly

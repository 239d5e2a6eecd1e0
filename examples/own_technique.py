"""A technique of one's own: noise on the gradient, g + N(0, (strength / (1 + t)^0.55)^2), arXiv 1511.06807.

Run it: python examples/own_technique.py
"""

from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge
from torch import nn

import kingpost as kp
from kingpost.assembly import Slot


@kp.checked
class GradientNoise(kp.Technique):
    """Add noise to every gradient that fades as the steps go by. Fails where the batch is noisy enough already."""

    strength: Annotated[float, Ge(0)] = 0.01
    """Standard deviation at the first step."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"update"})
    neutral: ClassVar[dict[str, Any]] = {"strength": 0.0}

    def mount(self, assembly: kp.Assembly) -> kp.Assembly:
        """The assembly whose update adds the noise first."""
        inner = assembly.update

        def update(model: nn.Module, optimizer: torch.optim.Optimizer, step: kp.Step) -> None:
            std = self.strength / (1 + step.index) ** 0.55
            for name, p in model.named_parameters():
                if p.grad is not None:  # a generator of the step's own, so that a resumed run draws the same
                    generator = step.generator(f"gradient noise {name}", p.device)
                    p.grad += std * torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
            inner(model, optimizer, step)

        return assembly.with_(update=update)


def main() -> None:
    plain = kp.Recipe(
        name="noise",
        data="digits",
        model={"name": "mlp", "widths": [64]},
        optimizer={"name": "adamw", "lr": 0.01},
        budget={"epochs": 4},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
        save={"report": False},
    )
    # By reference, as in a YAML file or on the command line: the recipe's file can make it again.
    named = plain.patched({"techniques": [{"name": "own_technique:GradientNoise", "strength": 0.02}]})
    # As an object, in Python.
    given = plain.with_(techniques=(GradientNoise(strength=0.02),))
    for recipe in (named, given):
        run = kp.train(recipe, quiet=True)
        print(f"{run.name}: {recipe.techniques[0].name}, test accuracy {run.summary['test']['accuracy']:.3f}")


if __name__ == "__main__":
    main()

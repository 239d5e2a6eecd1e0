"""Any nn.Module, any torch optimizer and any DataLoader, in one recipe.

Run it: python examples/own_model.py
"""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import kingpost as kp


class Gated(nn.Module):
    """A small net with a gate; nothing in it knows of kingpost."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.value, self.gate, self.head = nn.Linear(64, width), nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(B, 10)``."""
        return self.head(self.value(x) * torch.sigmoid(self.gate(x)))


def loaders() -> tuple[DataLoader, DataLoader]:
    digits = load_digits()
    x, y = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, validation = order[:1400], order[1400:]
    return (
        DataLoader(TensorDataset(x[train], y[train]), batch_size=50, shuffle=True),
        DataLoader(TensorDataset(x[validation], y[validation]), batch_size=200),
    )


def main() -> None:
    train, validation = loaders()
    recipe = kp.Recipe(
        name="own",
        data=kp.Loaders(train=train, validation=validation),
        model=Gated(width=64),
        optimizer=kp.call(torch.optim.NAdam, lr=0.01),
        schedule="one-cycle",
        techniques=["label-smoothing", {"name": "ema", "decay": 0.9}],
        batch_size=50,
        budget={"epochs": 6},
        layout={"name": "data-parallel", "device": "cpu", "threads": 1},
        save={"report": False},
    )
    run = kp.train(recipe, quiet=True)
    print(f"{run.name}: validation accuracy {run.summary['best']['validation_accuracy']:.3f}")


if __name__ == "__main__":
    main()

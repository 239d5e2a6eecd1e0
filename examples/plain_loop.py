"""Mixup, sharpness-aware minimisation and an average of the weights in a loop of one's own: they are plain functions.

Run it: python examples/plain_loop.py
"""

import torch
from sklearn.datasets import load_digits

from kingpost.assembly import Batch, Step
from kingpost.train.augment.mixup import mixup
from kingpost.train.gradients.backward import backward
from kingpost.train.regularise.ema import Average
from kingpost.train.regularise.sam import sharpness_aware
from kingpost.train.tasks import Classification


def main() -> float:
    torch.manual_seed(0)
    torch.set_num_threads(1)  # a net this small is fastest so
    digits = load_digits()
    x = torch.tensor(digits.data / 16, dtype=torch.float32)
    y = torch.tensor(digits.target)
    order = torch.randperm(len(x))
    train, test = order[:1500], order[1500:]
    model = torch.nn.Sequential(torch.nn.Linear(64, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)
    objective, gradient, average = Classification().objective, sharpness_aware(backward, rho=0.05), Average(decay=0.9)
    for epoch in range(5):
        for rows in train[torch.randperm(len(train))].split(50):
            batch = Batch((x[rows],), y[rows], first=0, total=len(rows))
            weight = float(torch.distributions.Beta(0.2, 0.2).sample())
            batch = mixup(batch, weight, torch.randperm(len(rows)), classes=10)
            optimizer.zero_grad()
            gradient(model, objective, batch, Step(index=epoch, seed=0, items=len(rows)))
            optimizer.step()
            average.add(model)
    with average.in_place(model), torch.no_grad():
        accuracy = float((model(x[test]).argmax(1) == y[test]).float().mean())
    print(f"accuracy {accuracy:.3f} on {len(test)} digits that were not trained on")
    return accuracy


if __name__ == "__main__":
    main()

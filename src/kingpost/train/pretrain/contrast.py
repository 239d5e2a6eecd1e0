"""Two views of a sample should look alike to the net, those of different samples should not.

Legend of shapes: ``B`` samples, ``E`` numbers of an embedding.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le
from pydantic import Field
from torch import Tensor, nn

from kingpost.assembly import Batch, Loss, Setting
from kingpost.errors import RecipeError
from kingpost.net import head_of
from kingpost.option import checked
from kingpost.source import DataFacts
from kingpost.task import at_least_float32
from kingpost.train.pretrain.pretext import Pretext, replace
from kingpost.train.pretrain.views import view


def nt_xent(a_be: Tensor, b_be: Tensor, temperature: float) -> Tensor:
    """The normalised temperature-scaled cross-entropy, summed over samples, both views' losses averaged; scalar.

    For view i with partner j: ``-log(exp(s_ij / t) / sum_{k != i} exp(s_ik / t))``, ``s`` the cosine, over all 2B.

    >>> apart = torch.eye(4)
    >>> bool(nt_xent(apart, apart, 0.1) < nt_xent(apart, apart.roll(1, 0), 0.1))
    True
    """
    z = F.normalize(torch.cat([a_be, b_be]), dim=1)
    samples = len(a_be)
    itself = torch.eye(2 * samples, dtype=torch.bool, device=z.device)
    scores = (z @ z.T / temperature).masked_fill(itself, -torch.inf)
    partner = torch.arange(2 * samples, device=z.device).roll(samples)
    return F.cross_entropy(scores, partner, reduction="sum") / 2


def vicreg_loss(
    a_be: Tensor, b_be: Tensor, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """``l s(a, b) + m (v(a) + v(b)) + n (c(a) + c(b))``, a mean over the batch; scalar.

    ``s`` is the mean squared distance, ``v`` the mean over dimensions of ``max(0, 1 - std)``, and ``c`` the sum of
    squared covariances between different dimensions, divided by their number E.

    >>> spread = torch.tensor([[2.0, 2.0], [2.0, -2.0], [-2.0, 2.0], [-2.0, -2.0]])
    >>> float(vicreg_loss(spread, spread))
    0.0
    """
    samples, width = a_be.shape
    loss = invariance * F.mse_loss(a_be, b_be)
    for z in (a_be, b_be):
        centred = z - z.mean(0)
        spread = (centred.square().sum(0) / max(1, samples - 1) + 1e-4).sqrt()
        between = centred.T @ centred / max(1, samples - 1)
        apart = between.square().sum() - between.diagonal().square().sum()
        loss = loss + variance * F.relu(1 - spread).mean() + covariance * apart / width
    return loss


@checked
class TwoViews(Pretext):
    """Base of the tasks that compare two views of each sample; a subclass says how."""

    embedding: Annotated[int, Ge(1)] = Field(64, description="Numbers that a view is compared by.")
    hidden: Annotated[int, Ge(1)] = Field(256, description="Units between the features and these; dropped afterwards.")
    crop: Annotated[float, Gt(0), Le(1)] = Field(
        0.3, description="Least part of an image's area or a series' length that a view shows; of a row, what is kept."
    )
    jitter: Annotated[float, Ge(0)] = Field(
        0.4, description="Largest change of contrast (factor) and of brightness (in standard deviations)."
    )
    flip: Annotated[float, Ge(0), Le(1)] = Field(0.5, description="Probability that an image is mirrored.")

    def for_data(self, data: DataFacts) -> Self:
        """The same, if views of such samples can be made.

        Raises:
            RecipeError: they cannot.
        """
        if data.form not in ("image", "series", "features"):
            raise RecipeError(
                f"'{self.name}' makes views of images, series and rows of numbers, but this data is '{data.form}'",
                path="task",
                mend="use masked-tokens for tokens, masked-columns for tables",
            )
        return self

    def outputs_per_sample(self, data: DataFacts) -> int:
        """The embedding."""
        return self.embedding

    def adapt(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The model with a small perceptron in the place of its head."""
        head = head_of(model)
        inputs = model.get_submodule(head).in_features
        layers = nn.Linear(inputs, self.hidden), nn.ReLU(), nn.Linear(self.hidden, self.embedding)  # type: ignore[arg-type]
        return replace(model, head, nn.Sequential(*layers))

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """One view is the input, the other the target."""
        first, second = (view(batch, draw, self.crop, self.jitter, self.flip) for _ in range(2))
        return batch.with_(inputs=(first,), targets=second)

    def objective(self, model: nn.Module, batch: Batch) -> Loss:
        """Both views go through the model at once."""
        (first,) = batch.inputs
        outputs = model(torch.cat([first, batch.targets.to(first.dtype)]))
        return Loss(self.of_pair(*at_least_float32(outputs).chunk(2)), len(batch), outputs)

    @abstractmethod
    def of_pair(self, a_be: Tensor, b_be: Tensor) -> Tensor:
        """The loss of both views' embeddings, summed over samples; scalar."""

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Not used: the loss needs both views' outputs."""
        raise NotImplementedError(f"'{self.name}' compares two views; use its objective")


@checked
class SimCLR(TwoViews):
    """Tell each sample's second view from those of all others in the batch: ``-log softmax(cos(z_i, z_k) / t)_j``.

    Helps where there are many samples and few labels; better the larger the batch.
    Fails with small batches, which have too few others, and where views change what matters (a flipped digit).
    Source: Chen et al., "A Simple Framework for Contrastive Learning", arXiv 2002.05709; for rows of numbers, SCARF,
    arXiv 2106.15147.
    """

    temperature: Annotated[float, Gt(0)] = 0.2
    """The cosine is divided by it: small ones look at the most similar others alone."""

    def of_pair(self, a_be: Tensor, b_be: Tensor) -> Tensor:
        """NT-Xent."""
        return nt_xent(a_be, b_be, self.temperature)


@checked
class VICReg(TwoViews):
    """Bring two views together while each dimension keeps its spread and none repeats another; needs no others.

    ``25 s(a, b) + 25 (v(a) + v(b)) + c(a) + c(b)``: distance, missing standard deviation, covariance.
    Helps with smaller batches than a contrast needs. Fails with embeddings wider than the batch can decorrelate.
    Source: Bardes, Ponce and LeCun, "VICReg", arXiv 2105.04906.
    """

    unit: ClassVar[str] = "weighted_sum"
    invariance: Annotated[float, Ge(0)] = 25.0
    """Factor on the squared distance of two views."""
    variance: Annotated[float, Ge(0)] = 25.0
    """Factor on what a dimension lacks to a standard deviation of 1."""
    covariance: Annotated[float, Ge(0)] = 1.0
    """Factor on the squared covariances of different dimensions."""

    def of_pair(self, a_be: Tensor, b_be: Tensor) -> Tensor:
        """The batch's loss, counted once a sample."""
        return len(a_be) * vicreg_loss(a_be, b_be, self.invariance, self.variance, self.covariance)

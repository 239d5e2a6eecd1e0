"""Hide a part of each sample, and learn to fill it in.

Legend of shapes: ``B`` samples, ``T`` positions, ``V`` vocabulary, ``F`` numbers, ``K`` categories, ``P`` patches.
"""

from __future__ import annotations

import copy
import math
from typing import Annotated, ClassVar, Self

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from kingpost.assembly import Batch, Setting
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.source import DataFacts
from kingpost.task import at_least_float32
from kingpost.train.pretrain.pretext import Pretext, answer_at_positions, positions_of, replace
from kingpost.train.pretrain.views import drawn, drawn_like


class MaskableEmbedding(nn.Embedding):
    """An embedding that also knows a mask: the token ``V``, one past the last, has the vector ``mask``.

    The table keeps its name and shape, so that a net without the mask can start from it.
    """

    def __init__(self, table: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.__dict__.update({k: v for k, v in table.__dict__.items() if not k.startswith(("_param", "_modul"))})
        self._parameters, self._modules = dict(table._parameters), {}
        self.mask = nn.Parameter(table.weight.detach().std() * torch.randn_like(table.weight[0]))

    def forward(self, input: Tensor) -> Tensor:
        """``(B, T)`` int64 to ``(B, T, D)``."""
        hidden = input == self.num_embeddings
        vectors = super().forward(input.masked_fill(hidden, 0))
        return torch.where(hidden[..., None], self.mask, vectors)


def mask_tokens(
    tokens: Tensor, chosen: Tensor, kind: Tensor, others: Tensor, mask: int, kept: float = 0.1, random: float = 0.1
) -> tuple[Tensor, Tensor]:
    """What the net sees and what it must say: of the chosen tokens, 80 % are hidden, 10 % replaced, 10 % left.

    Args:
        tokens: ``(B, T)``.
        chosen: ``(B, T)`` bool.
        kind: ``(B, T)`` numbers in [0, 1) that decide which of the three.
        others: ``(B, T)`` tokens to be put in.
        mask: the token that hides.
        kept: part that is left as it is.
        random: part that another token takes the place of.

    Returns:
        Tokens, and targets that are -100 where nothing was chosen.
    """
    hidden = torch.where(kind < random, others, torch.full_like(tokens, mask))
    seen = torch.where(chosen & (kind < 1 - kept), hidden, tokens)
    return seen, torch.where(chosen, tokens, -100)


@checked
class MaskedTokens(Pretext):
    """Guess hidden tokens from all others: ``-log p(x_i | the rest)`` over the chosen positions, in nats.

    Helps encoders of text that have few labels. Fails with a net that reads from left to right alone: use
    language-modelling there. The padding is never chosen. Source: Devlin et al., "BERT", arXiv 1810.04805.
    """

    part: Annotated[float, Gt(0), Lt(1)] = 0.15
    """Of the tokens that are to be guessed; of these, 80 % are hidden, 10 % replaced and 10 % left."""

    def for_data(self, data: DataFacts) -> Self:
        """The same, knowing the tokens.

        Raises:
            RecipeError: samples are no tokens.
        """
        if data.form != "tokens":
            raise RecipeError(
                f"samples are '{data.form}', not tokens", path="task", mend="use masked-columns or denoise"
            )
        object.__setattr__(made := copy.copy(self), "_data", data)
        return made

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One; the model gives scores at every position instead."""
        return 1

    def adapt(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The model with a mask in its embedding, and scores at every position."""
        data = setting.data
        embeddings = [(path, m) for path, m in model.named_modules() if isinstance(m, nn.Embedding)]
        tables = [(path, m) for path, m in embeddings if m.num_embeddings == data.vocabulary]
        if not tables:
            raise RecipeError(f"{type(model).__name__} has no embedding of {data.vocabulary} tokens", path="model")
        tokens = torch.zeros(2, *data.inputs[0][0], dtype=torch.int64)
        tokens += int(data.padding == 0)  # anything but padding
        path, shape = positions_of(model, tokens)
        answer_at_positions(model, path, nn.Linear(shape[-1], data.vocabulary), tokens)
        return replace(model, tables[0][0], MaskableEmbedding(tables[0][1]))

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Hide some tokens, at least one of each sample with any."""
        (tokens,) = batch.inputs
        data: DataFacts = self._data  # type: ignore[attr-defined]
        choice, kind, other = (drawn_like(batch, draw) for _ in range(3))
        choice = choice.masked_fill(tokens == data.padding, 2.0) if data.padding is not None else choice
        chosen = (choice < self.part) | ((choice == choice.amin(1, keepdim=True)) & (choice < 2))
        others = (other * data.vocabulary).long().clamp(max=data.vocabulary - 1)
        seen, wanted = mask_tokens(tokens, chosen, kind, others, data.vocabulary)
        return batch.with_(inputs=(seen,), targets=wanted)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy, summed over the chosen positions."""
        scores = at_least_float32(outputs)
        return F.cross_entropy(scores.flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)

    def items(self, targets: Tensor) -> int:
        """Chosen positions."""
        return int((targets != -100).sum())

    def chance_loss(self, data: DataFacts) -> float | None:
        """``ln V``."""
        return math.log(data.vocabulary)


@checked
class MaskedColumns(Pretext):
    """Guess hidden cells of a row: squared error of numbers, cross-entropy of categories, summed over hidden cells.

    A hidden number is 0, the mean of a standardised column; a hidden category is code 0, 'another'.
    Helps tables with many rows and few labels. Fails where columns know little of one another.
    Source: Yoon et al., "VIME", NeurIPS 2020; Gorishniy et al., arXiv 2207.03208.
    """

    unit: ClassVar[str] = "squared_error_and_nats"
    part: Annotated[float, Gt(0), Lt(1)] = 0.3
    """Of the cells that are hidden."""

    def for_data(self, data: DataFacts) -> Self:
        """The same, knowing the columns.

        Raises:
            RecipeError: samples are no rows of a table.
        """
        if data.form not in ("features", "table"):
            raise RecipeError(f"samples are '{data.form}', not rows of a table", path="task", mend="use denoise")
        object.__setattr__(made := copy.copy(self), "_codes", data.cardinalities)
        return made

    def outputs_per_sample(self, data: DataFacts) -> int:
        """A value for each number, a score for each code."""
        return data.inputs[0][0][0] + sum(data.cardinalities)

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Hide cells; targets are ``(B, F + K, 2)``: the cell, and 1 where it was hidden."""
        numbers, *codes = batch.inputs
        cells = torch.cat([numbers, *(c.to(numbers.dtype) for c in codes)], 1)
        hidden = drawn(batch, draw, cells.shape[1]) < self.part
        parts = torch.split(hidden, [x.shape[1] for x in batch.inputs], 1)
        seen = tuple(x.masked_fill(part, 0) for x, part in zip(batch.inputs, parts, strict=True))
        return batch.with_(inputs=seen, targets=torch.stack([cells, hidden.to(cells.dtype)], 2))

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Summed over hidden cells."""
        codes: tuple[int, ...] = self._codes  # type: ignore[attr-defined]
        cells, hidden = targets.unbind(2)
        first = cells.shape[1] - len(codes)
        scores = at_least_float32(outputs)
        loss = ((scores[:, :first] - cells[:, :first]).square() * hidden[:, :first]).sum()
        for column, score in enumerate(torch.split(scores[:, first:], list(codes), 1) if codes else (), first):
            each = F.cross_entropy(score, cells[:, column].long(), reduction="none")
            loss = loss + (each * hidden[:, column]).sum()
        return loss

    def items(self, targets: Tensor) -> int:
        """Hidden cells; at least 1."""
        return max(1, int(targets[..., 1].sum()))


class PatchDecoder(nn.Module):
    """Pixels from features on a grid ``(B, D, h, w)``, or of patches ``(B, P, D)`` after vectors that are none.

    Args:
        features: shape of the features.
        image: channels, rows and columns.

    Raises:
        RecipeError: the grid does not divide the image.
    """

    def __init__(self, features: torch.Size, image: tuple[int, ...]) -> None:
        super().__init__()
        channels, rows, columns = image
        if len(features) == 4:
            width, self.grid = features[1], tuple(features[2:])
        else:
            width, patches = features[2], features[1]
            side = math.isqrt(rows * columns // patches)
            self.grid = (rows // side, columns // side)
        if rows % self.grid[0] or columns % self.grid[1] or rows // self.grid[0] != columns // self.grid[1]:
            raise RecipeError(
                f"the last grid of {self.grid[0]} x {self.grid[1]} does not divide {rows} x {columns} pixels",
                path="model",
                mend="use fewer stages, or a patch that divides them",
            )
        self.scale = rows // self.grid[0]
        self.pixels = nn.Linear(width, channels * self.scale**2)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, rows, columns)``."""
        h, w = self.grid
        x_bpd = x.flatten(2).transpose(1, 2) if x.ndim == 4 else x[:, x.shape[1] - h * w :]
        cells = self.pixels(x_bpd).transpose(1, 2).unflatten(2, (h, w))
        return F.pixel_shuffle(cells, self.scale)


@checked
class MaskedImage(Pretext):
    """Paint hidden patches from the visible ones: mean squared error over the hidden pixels.

    Hidden pixels are 0, the mean of a standardised image; each cell of the net's last grid paints its own square.
    Helps transformers most, which learn little by themselves from few images. Fails with nets whose last grid is
    very coarse. Source: Xie et al., "SimMIM", arXiv 2111.09886 (all patches go through the net, as here); He et al.,
    "Masked Autoencoders", arXiv 2111.06377.
    """

    unit: ClassVar[str] = "squared_error"
    part: Annotated[float, Gt(0), Lt(1)] = 0.6
    """Of the patches that are hidden, the same number in each image."""
    patch: Annotated[int, Ge(1)] = 4
    """Pixels a side of a patch; must divide the image."""

    def for_data(self, data: DataFacts) -> Self:
        """The same, if patches can be cut.

        Raises:
            RecipeError: samples are no images, or the patch does not divide them.
        """
        if data.form != "image":
            raise RecipeError(f"samples are '{data.form}', not images", path="task", mend="use denoise")
        _, rows, columns = data.inputs[0][0]
        if rows % self.patch or columns % self.patch:
            raise RecipeError(f"{self.patch} does not divide {rows} x {columns} pixels", path="task.patch")
        return self

    def outputs_per_sample(self, data: DataFacts) -> int:
        """One; the model gives pixels instead."""
        return 1

    def adapt(self, model: nn.Module, setting: Setting) -> nn.Module:
        """The model with a decoder of pixels on its last grid."""
        shape, dtype = setting.data.inputs[0]
        like = next((p for p in model.parameters() if p.is_floating_point()), None)
        image = torch.zeros(2, *shape, dtype=like.dtype if like is not None else dtype)
        path, features = positions_of(model, image)
        return answer_at_positions(model, path, PatchDecoder(features, shape), image)

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Hide patches; targets are ``(B, 2, channels, rows, columns)``: the image, and 1 where it was hidden."""
        (x,) = batch.inputs
        rows, columns = x.shape[2] // self.patch, x.shape[3] // self.patch
        count = min(rows * columns - 1, max(1, round(self.part * rows * columns)))
        order = drawn(batch, draw, rows * columns).argsort(1).argsort(1)
        hidden = (order < count).view(-1, 1, rows, columns).to(x.dtype)
        hidden = hidden.repeat_interleave(self.patch, 2).repeat_interleave(self.patch, 3).expand_as(x)
        return batch.with_(inputs=(x * (1 - hidden),), targets=torch.stack([x, hidden], 1))

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, summed over samples, the mean over the hidden pixels of each."""
        x, hidden = targets.unbind(1)
        error = (at_least_float32(outputs) - x).square() * hidden
        return (error.flatten(1).sum(1) / hidden.flatten(1).sum(1)).sum()


@checked
class Denoise(Pretext):
    """Give back what was there before noise was added: ``|x - f(x + noise * n)|^2``, ``n ~ N(0, 1)``, mean of numbers.

    The net's head becomes a linear decoder. Helps as the simplest pretraining of nets on numbers.
    Fails to learn more than averages from images, whose pixels their neighbours tell.
    Source: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008.
    """

    unit: ClassVar[str] = "squared_error"
    noise: Annotated[float, Ge(0)] = 0.5
    """Standard deviation, in units of the (standardised) inputs."""
    drop: Annotated[float, Ge(0), Le(1)] = 0.0
    """Part of the numbers that are set to 0 besides."""

    def for_data(self, data: DataFacts) -> Self:
        """The same, if a sample is one tensor of numbers.

        Raises:
            RecipeError: it is not.
        """
        if data.form not in ("features", "image", "series", "clip"):
            raise RecipeError(
                f"samples are '{data.form}', which noise cannot be added to",
                path="task",
                mend="use masked-tokens or masked-columns",
            )
        return self

    def outputs_per_sample(self, data: DataFacts) -> int:
        """All numbers of a sample."""
        return math.prod(data.inputs[0][0])

    def pose(self, batch: Batch, draw: torch.Generator) -> Batch:
        """Noisy inputs; the clean ones are the targets."""
        (x,) = batch.inputs
        noise = torch.randn(batch.total, *x.shape[1:], generator=draw, device=x.device, dtype=x.dtype)
        noisy = x + self.noise * noise[batch.first : batch.first + len(batch)]
        if self.drop:
            noisy = noisy.masked_fill(drawn_like(batch, draw) < self.drop, 0)
        return batch.with_(inputs=(noisy,), targets=x)

    def criterion(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error, the mean over a sample's numbers, summed over samples."""
        return (at_least_float32(outputs).flatten(1) - targets.flatten(1)).square().mean(1).sum()

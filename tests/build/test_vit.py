"""The vision transformer: patches against a slow twin, sizes, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kingpost.build.listing import count
from kingpost.build.nets.vit import PatchEmbedding, ViT, ViTNet
from kingpost.errors import RecipeError
from kingpost.net import image_facts
from net_checks import survives


def test_patches_are_squares_row_by_row() -> None:
    embed = PatchEmbedding(2, width=5, patch=3)
    x = torch.randn(4, 2, 6, 9)
    squares = [x[:, :, r : r + 3, c : c + 3].flatten(1) for r in (0, 3) for c in (0, 3, 6)]
    expected = [s @ embed.project.weight.flatten(1).T + embed.project.bias for s in squares]
    torch.testing.assert_close(embed(x), torch.stack(expected, 1), rtol=0, atol=1e-13)  # sums of 18 numbers


def test_parts_of_an_image_may_change_places_only_with_their_positions() -> None:
    torch.manual_seed(0)
    net = ViTNet((1, 4, 8), patch=4, depth=2, width=8, heads=2, outputs=3, pooling="mean")
    x = torch.randn(2, 1, 4, 8)
    swapped = torch.cat([x[..., 4:], x[..., :4]], -1)
    assert not torch.allclose(net(swapped), net(x))
    with torch.no_grad():
        net.positions.zero_()
    torch.testing.assert_close(net(swapped), net(x), rtol=0, atol=1e-13)


@pytest.mark.parametrize("pooling", ["class", "mean"])
def test_survives_everything(pooling: str, tmp_path: Path) -> None:
    def make() -> ViTNet:
        return ViTNet((2, 8, 12), patch=4, depth=2, width=8, heads=2, outputs=3, pooling=pooling)  # type: ignore[arg-type]

    survives(make, (torch.randn(3, 2, 8, 12),), tmp_path)


@pytest.mark.parametrize("size", [name for name, size in ViT.sizes.items() if size.parameters])
def test_parameters_as_published(size: str) -> None:
    assert count(ViT, size) == ViT.sizes[size].parameters


def test_starts_near_chance() -> None:
    torch.manual_seed(0)
    net = ViT().make(image_facts(1, 28, 28, 10), 10)
    loss = torch.nn.functional.cross_entropy(net(torch.randn(32, 1, 28, 28)), torch.arange(32) % 10)
    # Scores of a normed vector of 96 times 0.02: deviation 0.2, which costs about 0.2^2 / 2 nats above ln 10.
    assert float(loss.detach()) == pytest.approx(2.3026, abs=0.1)


def test_patch_and_heads_are_derived_with_reasons() -> None:
    figures = {f.name: f for f in ViT().derived(image_facts(1, 28, 28, 10))}
    assert figures["model.patch"].value == 4 and figures["model.heads"].value == 3
    assert figures["model.depth"].reason == "not given: the default"
    assert not ViT(size="B/16", heads=12).derived(image_facts(3, 224, 224, 10))


def test_errors_say_what_to_do() -> None:
    with pytest.raises(RecipeError, match="patch: no patch of a sensible size divides images of 29 x 29; these do: 1,"):
        ViT().make(image_facts(1, 29, 29, 10), 10)
    with pytest.raises(RecipeError, match=r"patch: patches of 5 pixels do not divide images of 28 x 28; .* 1, 2, 4, 7"):
        ViT(patch=5).make(image_facts(1, 28, 28, 10), 10)
    with pytest.raises(RecipeError, match="patches of 16 pixels do not divide images of 28 x 28"):
        ViT(size="Ti/16").make(image_facts(3, 28, 28, 10), 10)
    with pytest.raises(ValueError, match=r"images of 30 x 28 pixels cannot be cut .* resize or crop them to 28 x 28"):
        PatchEmbedding(1, 8, patch=4)(torch.zeros(1, 1, 30, 28))
    with pytest.raises(ValueError, match=r"made for images \(1, 28, 28\), got \(1, 32, 32\)"):
        ViT(depth=1).make(image_facts(1, 28, 28, 10), 10)(torch.zeros(1, 1, 32, 32))

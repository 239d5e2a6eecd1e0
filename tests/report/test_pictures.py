from __future__ import annotations

import base64
import io

import matplotlib.image
import numpy as np
import pytest
import torch

from kingpost.report.pictures import MOST_PIXELS, are_images, data_uri


def pixels(uri: str) -> np.ndarray:
    image = matplotlib.image.imread(io.BytesIO(base64.b64decode(uri.partition(",")[2])))
    return np.asarray(image)[..., :3].transpose(2, 0, 1)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_is_the_image(channels: int) -> None:
    image = torch.rand(channels, 5, 7)
    shown = pixels(data_uri(image, None))
    np.testing.assert_allclose(shown, image.expand(3, -1, -1).numpy(), atol=0.5 / 255 + 1e-6)  # 8 bits


def test_standardised_images_are_turned_back() -> None:
    image, scale = torch.rand(3, 4, 4), {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.25]}
    mean, std = (torch.tensor(scale[key]).view(3, 1, 1) for key in ("mean", "std"))
    assert data_uri((image - mean) / std, scale) == data_uri(image, None)


def test_other_ranges_are_stretched() -> None:
    shown = pixels(data_uri(torch.tensor([[[-3.0, 1.0], [5.0, float("nan")]]]), None))
    assert shown.min() == 0 and shown.max() == 1


def test_large_images_are_reduced_and_keep_their_shape() -> None:
    assert pixels(data_uri(torch.rand(3, 300, 150), None)).shape == (3, MOST_PIXELS, MOST_PIXELS // 2)


def test_what_counts_as_images() -> None:
    shapes = {(2, 1, 8, 8): True, (2, 3, 8, 8): True, (2, 4, 8, 8): False, (2, 3, 1, 8): False, (2, 8): False}
    assert {shape: are_images(torch.zeros(shape)) for shape in shapes} == shapes

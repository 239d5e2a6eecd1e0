"""Networks of other libraries: what is passed to them, and what is said when that does not work."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from contract.toys import Toy
from kingpost.build.nets.libraries import LogitsOnly
from kingpost.errors import MissingExtraError, RecipeError
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble


def model_of(model: dict[str, Any], **toy: str) -> nn.Module:
    recipe = Recipe.from_value({"name": "a", "data": Toy(dtype="float32", **toy), "model": model})
    return assemble(recipe, recipe.data.open(), torch.device("cpu")).model


@pytest.mark.filterwarnings("default")
def test_transformers_by_architecture() -> None:
    transformers = pytest.importorskip("transformers")
    arguments = {"n_embd": 8, "n_layer": 1, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = model_of(
        {"name": "transformers", "architecture": "gpt2", "arguments": arguments}, task="language-modelling"
    )
    assert isinstance(model, LogitsOnly)
    assert isinstance(model.net, transformers.GPT2LMHeadModel)
    assert model(torch.zeros(2, 6, dtype=torch.int64)).shape == (2, 6, 11)


@pytest.mark.filterwarnings("default")
def test_transformers_from_a_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, patch_size=4
    )
    config.save_pretrained(tmp_path)
    model = model_of({"name": "transformers", "folder": str(tmp_path)})
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 3)


@pytest.mark.filterwarnings("default")
def test_padding_is_hidden_from_a_network_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, num_labels=2
    )
    model = LogitsOnly(transformers.BertForSequenceClassification(config), padding=0).eval()
    short, padded = torch.tensor([[3, 4]]), torch.tensor([[3, 4, 0, 0]])
    torch.testing.assert_close(model(short), model(padded))
    without = LogitsOnly(model.net, padding=None)
    assert not torch.allclose(without(short), without(padded), atol=1e-6)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"name": "transformers"}, "exactly one of architecture and folder must be given, got neither"),
        ({"name": "transformers", "architecture": "bertt"}, "did you mean 'bert'?"),
        ({"name": "hub", "folder": "nowhere", "entry": "x"}, "no 'nowhere' in"),
    ],
)
@pytest.mark.filterwarnings("default")
def test_errors(model: dict[str, Any], message: str) -> None:
    pytest.importorskip("transformers")
    with pytest.raises(ValueError) as error:
        model_of(model)
    assert message in str(error.value)


def test_transformers_says_what_it_can() -> None:
    with pytest.raises(RecipeError, match="no network of transformers for regression of image; there are"):
        model_of({"name": "transformers", "architecture": "vit"}, task="regression")


def test_hub_folder(tmp_path: Path) -> None:
    (tmp_path / "parts.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    (tmp_path / "hubconf.py").write_text(
        "dependencies = ['torch']\nfrom parts import Net as _Net\n\n\ndef small(width=3):\n    return _Net(width, 2)\n"
        "\n\ndef number():\n    return 7\n"
    )
    try:
        model = model_of({"name": "hub", "folder": str(tmp_path), "entry": "small", "arguments": {"width": 5}})
        assert model(torch.zeros(1, 5)).shape == (1, 2)
        with pytest.raises(RecipeError, match=r"hubconf.py has no 'smal'; did you mean 'small'\?"):
            model_of({"name": "hub", "folder": str(tmp_path), "entry": "smal"})
        with pytest.raises(RecipeError, match=r"'number' made int, expected an nn\.Module"):
            model_of({"name": "hub", "folder": str(tmp_path), "entry": "number"})
    finally:
        sys.modules.pop("parts", None)


def test_timm_is_asked_for_a_net_sized_to_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm itself needs torchvision, which this project does not install: a stand-in notes what it is asked."""
    asked: dict[str, Any] = {}

    def create_model(name: str, **arguments: Any) -> nn.Module:
        asked.update(arguments, name=name)
        return nn.Flatten()

    stand_in: Any = types.ModuleType("timm")
    stand_in.create_model, stand_in.is_model = create_model, lambda name: name == "resnet18"
    stand_in.list_models = lambda: ["resnet18"]
    monkeypatch.setitem(sys.modules, "timm", stand_in)
    model_of({"name": "timm", "model": "resnet18", "arguments": {"drop_rate": 0.5}})
    assert asked == {"name": "resnet18", "pretrained": False, "num_classes": 3, "in_chans": 1, "drop_rate": 0.5}
    with pytest.raises(RecipeError, match=r"timm has no 'resnet81'; did you mean 'resnet18'\?"):
        model_of({"name": "timm", "model": "resnet81"})


def test_timm_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kingpost\[timm\]'"):
        model_of({"name": "timm", "model": "resnet18"})

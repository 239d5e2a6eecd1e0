"""Starting weights from a file: every bit arrives, what does not fit is said, and nothing is unpickled."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import kingpost as kp
from contract.toys import Toy
from kingpost.build.initialise.weights_file import load_weights
from kingpost.build.nets.gpt import GPTNet
from kingpost.errors import RecipeError
from kingpost.recipe import Recipe
from kingpost.train.assemble import assemble


def net(hidden: int = 5, norm: bool = True) -> nn.Module:
    middle = nn.BatchNorm1d(hidden) if norm else nn.Identity()
    return nn.Sequential(nn.Flatten(), nn.Linear(64, hidden), middle, nn.Linear(hidden, 3))


def saved(path: Path, model: nn.Module, rename: tuple[str, str] = ("", ""), **more: torch.Tensor) -> Path:
    tensors = {rename[1] + name.removeprefix(rename[0]): t.contiguous() for name, t in model.state_dict().items()}
    save_file({**tensors, **more}, path)
    return path


def recipe(model: Any, path: Path, **fields: Any) -> Recipe:
    return Recipe(
        name="toy",
        data=Toy(),
        model=model,
        initialise={"name": "weights-file", "path": path, **fields},
        layout={"name": "data-parallel", "threads": 1, "device": "cpu"},
        batch_size=8,
        budget={"steps": 4},
        save={"report": False},
    )


def started(made: Recipe) -> nn.Module:
    return assemble(made, made.data.open(), torch.device("cpu")).model


def test_every_bit_arrives(tmp_path: Path) -> None:
    torch.manual_seed(1)
    source = net()
    source[2].running_mean.fill_(3.0)
    path = saved(tmp_path / "w.safetensors", source)
    model = started(recipe(net(), path))
    for name, tensor in source.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_names_can_be_changed_and_tensors_left_out(tmp_path: Path) -> None:
    source, model = net(), net()
    head = model[3].weight.detach().clone()
    path = saved(tmp_path / "w.safetensors", source, ("", "backbone."))
    report = load_weights(model, path, rename={"backbone.": "", "backbone.3.": "3."}, skip=["3.*"])
    assert report.complete and report.skipped == ("3.weight", "3.bias")
    assert torch.equal(model[1].weight, source[1].weight) and torch.equal(model[3].weight, head)
    only = load_weights(model, path, rename={"backbone.": ""}, only=["3.weight"])
    assert list(only.matched) == ["3.weight"] and torch.equal(model[3].weight, source[3].weight)


def test_the_report_gives_each_reason_and_stays_short(tmp_path: Path) -> None:
    half = {name: t.half() if t.is_floating_point() else t for name, t in net().state_dict().items()}
    half["3.weight"] = torch.zeros(4, 5)
    half.pop("1.bias")
    save_file({**half, **{f"extra.{i:03}": torch.zeros(1) for i in range(100)}}, tmp_path / "w.safetensors")
    model = net()
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.matched["1.weight"] == "float16 in the file, float64 in the model: converted"
    assert report.matched["2.num_batches_tracked"] == ""
    assert report.mismatched == {"3.weight": "(4, 5) in the file, (3, 5) in the model"}
    assert report.missing == ("1.bias",) and len(report.unexpected) == 100 and not report.complete
    text = str(report)
    assert len(text.splitlines()) <= 30
    assert "100 not in the model" in text and "and 95 more" in text
    assert model[1].weight.dtype == torch.float64


def test_what_does_not_fit_is_an_error_unless_it_is_allowed(tmp_path: Path) -> None:
    path = saved(tmp_path / "w.safetensors", net(norm=False))
    with pytest.raises(RecipeError, match=r"the weights do not fit(.|\n)*5 missing in the file(.|\n)*strict"):
        started(recipe(net(), path))
    model = started(recipe(net(), path, strict=False, base="he"))
    assert torch.equal(model[1].weight, load_file(path)["1.weight"])
    plan = kp.plan(recipe(net(hidden=6), saved(tmp_path / "v.safetensors", net()), strict=False))
    assert "(5, 64) in the file, (6, 64) in the model" in str(plan)


def test_tied_weights_need_one_of_their_names(tmp_path: Path) -> None:
    source, model = (GPTNet(11, context=4, depth=1, width=8, heads=2) for _ in range(2))
    tensors = {name: t for name, t in source.state_dict().items() if name != "head.weight"}
    save_file(tensors, tmp_path / "w.safetensors")
    report = load_weights(model, tmp_path / "w.safetensors")
    assert report.complete, str(report)
    assert model.head.weight is model.tokens.weight and torch.equal(model.head.weight, source.head.weight)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt"])
def test_pickles_are_refused_unread(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"w{suffix}").write_bytes(b"anything")
    with pytest.raises(RecipeError, match=r"is a pickle, and reading one can run any code .* safetensors"):
        load_weights(net(), tmp_path / f"w{suffix}")


def test_other_errors_say_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="path: there is no file"):
        load_weights(net(), tmp_path / "absent.safetensors")
    (tmp_path / "w.safetensors").write_bytes(b"PK\x03\x04 a zip that calls itself something else")
    with pytest.raises(RecipeError, match=r"'w.safetensors' is no safetensors file"):
        load_weights(net(), tmp_path / "w.safetensors")
    path = saved(tmp_path / "v.safetensors", net())
    right = hashlib.sha256(path.read_bytes()).hexdigest()
    started(recipe(net(), path, sha256=right))
    with pytest.raises(RecipeError, match=r"initialise\.sha256: expected 00"):
        started(recipe(net(), path, sha256="0" * 64))


def test_a_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    mlp = {"name": "mlp", "widths": [5]}
    first = kp.train(recipe(mlp, tmp_path / "none").with_(initialise=None), root=tmp_path / "a", quiet=True)
    made = recipe(mlp, first.weights("last")).with_(save={"report": False, "every_steps": 1, "keep": 9})  # type: ignore[arg-type]
    whole = kp.train(made, root=tmp_path / "b", quiet=True)
    last = whole.weights("last").read_bytes()  # type: ignore[union-attr]
    checkpoints = sorted((whole.folder / "checkpoints").iterdir())
    for checkpoint in checkpoints[2:]:
        for file in checkpoint.iterdir():
            file.unlink()
        checkpoint.rmdir()
    whole.weights("last").unlink()  # type: ignore[union-attr]
    assert kp.resume(whole.folder, quiet=True).weights("last").read_bytes() == last  # type: ignore[union-attr]

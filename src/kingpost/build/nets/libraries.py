"""Networks of other libraries by their names there: timm, transformers, and folders made for ``torch.hub``.

Nothing is downloaded: the weights are random until ``initialise: weights-file`` fills them from a local file.
"""

from __future__ import annotations

import importlib.util
import types
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from kingpost.assembly import Assembly, Slot
from kingpost.errors import MissingExtraError, RecipeError, nearest
from kingpost.option import checked
from kingpost.source import DataFacts, existing_file
from kingpost.technique import Technique

_TOUCHES: frozenset[Slot] = frozenset({"model"})


@checked
class Timm(Technique):
    """Fills ``model`` with an image network of the library timm, by its name there, with random weights."""

    model: str
    """Name in timm, such as ``resnet18``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Further arguments of ``timm.create_model``."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES
    tasks: ClassVar[tuple[str, ...]] = ("classification", "regression", "multi-label", "multi-task")
    example: ClassVar[Mapping[str, Any] | None] = None  # timm needs torchvision, which is not tested with

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Most of timm's networks have batch norms."""
        reason = "batch norm takes its statistics over the samples it is given"
        return {"accumulation": reason, "two processes": reason}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the network, its first and last layer sized to the data."""
        try:
            import timm
        except ImportError as error:
            raise MissingExtraError("timm", extra="timm", purpose="its networks") from error
        data = assembly.setting.data
        if data.form != "image":
            raise RecipeError("timm's networks read images (channels, rows, columns)", mend="use another model")
        if not timm.is_model(self.model):
            raise RecipeError(f"timm has no '{self.model}'", path="model", mend=nearest(self.model, timm.list_models()))
        outputs = assembly.setting.task.outputs_per_sample(data)
        try:
            made = timm.create_model(
                self.model, pretrained=False, num_classes=outputs, in_chans=data.inputs[0][0][0], **self.arguments
            )
        except (TypeError, ValueError, AssertionError) as error:
            raise RecipeError(f"timm could not make '{self.model}': {error}", path="arguments") from error
        return assembly.with_(model=made)


class LogitsOnly(nn.Module):
    """A network of transformers that returns its scores alone, and is told which tokens are padding.

    Args:
        net: whose output has the field ``logits``.
        padding: token that fills up sequences; None if there is none.
        images: the input is images, not tokens.
    """

    def __init__(self, net: nn.Module, padding: int | None = None, images: bool = False) -> None:
        super().__init__()
        self.net, self.padding, self.images = net, padding, images

    def forward(self, x: Tensor, decoder_input: Tensor | None = None) -> Tensor:
        """Scores: ``(B, classes)``, or ``(B, T, V)`` for tokens that are predicted."""
        given: dict[str, Any] = {"pixel_values" if self.images else "input_ids": x}
        if self.padding is not None and not self.images:
            given["attention_mask"] = (x != self.padding).long()
        if decoder_input is not None:
            given["decoder_input_ids"] = decoder_input
        scores: Tensor = self.net(**given).logits
        return scores


AUTO = {
    ("image", "classification"): "AutoModelForImageClassification",
    ("tokens", "classification"): "AutoModelForSequenceClassification",
    ("tokens", "language-modelling"): "AutoModelForCausalLM",
    ("token-pair", "sequence-to-sequence"): "AutoModelForSeq2SeqLM",
}


@checked
class Transformers(Technique):
    """Fills ``model`` with a network of the library transformers, by its architecture, with random weights."""

    architecture: str = ""
    """Name of the model type there, such as ``bert``, ``gpt2``, ``vit`` or ``t5``; or give ``folder``."""
    folder: str = ""
    """Local folder with a ``config.json``, instead of ``architecture``."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Fields of its configuration, such as ``hidden_size``; vocabulary and number of labels follow from the data."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES
    example: ClassVar[Mapping[str, Any]] = {
        "architecture": "vit",
        "arguments": {
            "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
            "image_size": 8, "patch_size": 4, "num_channels": 1,
            "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
        },
    }  # fmt: skip

    def __post_init__(self) -> None:
        if bool(self.architecture) == bool(self.folder):
            got = "both" if self.folder else "neither"
            raise RecipeError(f"exactly one of architecture and folder must be given, got {got}", path="architecture")

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the network, its embeddings and last layer sized to the data."""
        try:
            import transformers
        except ImportError as error:
            raise MissingExtraError("transformers", extra="transformers", purpose="its networks") from error
        data, task = assembly.setting.data, assembly.setting.task
        if (data.form, task.name) not in AUTO:
            known = "; ".join(f"{task} of {form}" for form, task in AUTO)
            raise RecipeError(f"no network of transformers for {task.name} of {data.form}", mend=f"there are: {known}")
        given = self._from_data(data, task.outputs_per_sample(data)) | self.arguments
        try:
            if self.folder:
                folder = existing_file(self.folder, where="model.folder")
                config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, **given)
            else:
                config = transformers.AutoConfig.for_model(self.architecture, **given)
            made = getattr(transformers, AUTO[data.form, task.name]).from_config(config)
        except (ValueError, TypeError, KeyError) as error:
            known = nearest(self.architecture, transformers.CONFIG_MAPPING) if self.architecture else ""
            said = str(error).splitlines()[0]
            raise RecipeError(f"transformers could not make it: {said}", path="architecture", mend=known) from error
        return assembly.with_(model=LogitsOnly(made, data.padding, images=data.form == "image"))

    @staticmethod
    def _from_data(data: DataFacts, outputs: int) -> dict[str, Any]:
        if data.form == "image":
            return {"num_labels": outputs, "num_channels": data.inputs[0][0][0], "image_size": data.inputs[0][0][1]}
        given: dict[str, Any] = {"vocab_size": data.target_vocabulary or data.vocabulary}
        special = {"pad_token_id": data.padding, "bos_token_id": data.begin, "eos_token_id": data.end}
        given |= {key: token for key, token in special.items() if token is not None}
        return given | ({"num_labels": outputs} if data.classes else {})


@checked
class Hub(Technique):
    """Fills ``model`` from a local folder with a ``hubconf.py``, as ``torch.hub`` reads it; its code is executed."""

    folder: str
    """The folder."""
    entry: str
    """Name of the function in ``hubconf.py`` that makes the model."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Its arguments."""

    touches: ClassVar[frozenset[Slot]] = _TOUCHES
    example: ClassVar[Mapping[str, Any] | None] = None

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the model that the entry makes."""
        hubconf = _module(existing_file(self.folder, where="model.folder") / "hubconf.py")
        public = [name for name, made in vars(hubconf).items() if callable(made) and not name.startswith("_")]
        if self.entry not in public:
            raise RecipeError(
                f"{self.folder}/hubconf.py has no '{self.entry}'", path="entry", mend=nearest(self.entry, public)
            )
        made = getattr(hubconf, self.entry)(**self.arguments)
        if not isinstance(made, nn.Module):
            raise RecipeError(f"'{self.entry}' made {type(made).__name__}, expected an nn.Module", path="entry")
        return assembly.with_(model=made)


def _module(path: Path) -> types.ModuleType:
    """The Python file as a module; what lies beside it can be imported by it."""
    import sys

    if not path.is_file():
        raise RecipeError(f"no {path}", path="folder", mend="expected a folder with a hubconf.py")
    spec = importlib.util.spec_from_file_location(f"hubconf_of_{path.parent.name}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(path.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(path.parent))
    return module

"""A decoder-only transformer in which feed-forward blocks are mixtures of experts.

Legend of shapes: ``B`` sequences, ``T`` positions, ``D`` width, ``V`` vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge, Gt
from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.build.blocks.experts import Experts, balanced
from kingpost.build.blocks.feed_forward import GATED, feed_forward
from kingpost.build.heads import check_heads, default_figures, heads_figure, heads_for
from kingpost.build.nets.gpt import STYLES, GPTNet
from kingpost.errors import RecipeError
from kingpost.figure import Figure
from kingpost.net import Net, Size, token_facts
from kingpost.option import checked
from kingpost.source import DataFacts, Form

DEFAULTS = {"depth": 4, "width": 128, "experts": 8, "top": 2, "every": 2}  # where nothing is given


@checked
class MoE(Net):
    """Fills ``model`` with a GPT whose every n-th block has experts, and adds their balance loss to the objective.

    With the derived ``hidden``, a token costs what it costs in a GPT of the same depth and width, but the net has more
    parameters. Fails without balance: the router then sends all tokens to a few experts. Its loss in ``steps.csv``
    contains the balance losses (at best ``balance`` nats); validation does not.
    """

    depth: Annotated[int, Ge(1)] | None = None
    """Blocks; null = that of the size, else 4."""
    width: Annotated[int, Ge(1)] | None = None
    """Of the residual stream; null = that of the size, else 128."""
    heads: Annotated[int, Ge(1)] | None = None
    """Of attention, a divisor of the width; null derives them from it."""
    kv_heads: Annotated[int, Ge(1)] | None = None
    """Heads of keys and values, a divisor of the heads; null = that of the size, else as many as heads."""
    experts: Annotated[int, Ge(1)] | None = None
    """In each mixture; null = that of the size, else 8."""
    top: Annotated[int, Ge(1)] | None = None
    """Experts that a token uses; null = that of the size, else 2."""
    every: Annotated[int, Ge(1)] | None = None
    """Of so many blocks one is a mixture, counted from the last, which always is; null = that of the size, else 2."""
    hidden: Annotated[int, Ge(1)] | None = None
    """Units of one expert; null = that of the size, else those of a dense block divided by ``top``."""
    style: Literal["gpt2", "llama"] | None = None
    """Norms, positions, feed-forward blocks and biases as in that family; null = that of the size, else gpt2."""
    rotary_base: Annotated[float, Gt(1)] | None = None
    """Of the rotary wavelengths, with style=llama; null = that of the size, else 10000."""
    balance: Annotated[float, Ge(0)] = 0.01
    """Factor of the balance loss, in nats: 1 times this where all experts are used alike."""
    router_size: Annotated[float, Ge(0)] = 0.001
    """Factor of the mean squared log-sum-exp of the router's scores, which keeps them small."""
    size: Literal["small", "mixtral-8x7b"] | None = None
    """A named size; fields given beside it win."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model", "objective"})
    tasks: ClassVar[tuple[str, ...]] = ("language-modelling",)
    reads: ClassVar[tuple[Form, ...]] = ("tokens",)
    example: ClassVar[Mapping[str, object]] = {"depth": 1, "width": 8, "heads": 2, "experts": 4}
    sizes: ClassVar[Mapping[str, Size]] = {
        "default": Size(data=token_facts(65, 64)),
        "small": Size(fields={"depth": 6, "width": 192}, data=token_facts(65, 64)),
        "mixtral-8x7b": Size(
            fields={
                "style": "llama", "depth": 32, "width": 4096, "heads": 32, "kv_heads": 8, "hidden": 14_336,
                "experts": 8, "top": 2, "every": 1, "rotary_base": 1e6,
            },
            data=token_facts(32_000, 4096),
            parameters=46_702_792_704,
            source="published weights; Jiang et al., arXiv 2401.04088",
        ),
    }  # fmt: skip
    paper: ClassVar[str] = "Shazeer et al., arXiv 1701.06538; Fedus et al., arXiv 2101.03961"

    def __post_init__(self) -> None:
        width, heads = self._value("width"), self._heads()
        check_heads(width, heads)
        kv_heads = self.of("kv_heads") or heads
        if heads % kv_heads:
            raise RecipeError(
                f"got {kv_heads}, which does not divide the {heads} heads", path="kv_heads", mend=f"use {heads} or 1"
            )
        if self._style()["positions"] == "rotary" and (width // heads) % 2:
            raise RecipeError(
                f"{heads} heads of width {width // heads}, but rotary positions turn pairs of entries", path="heads",
                mend="choose heads of even width, or style=gpt2",
            )  # fmt: skip
        if self.rotary_base is not None and self._style()["positions"] != "rotary":
            raise RecipeError("has no effect: positions are not rotary", path="rotary_base", mend="style=llama")
        if self._value("top") > self._value("experts"):
            raise RecipeError(
                f"got {self._value('top')}, but there are {self._value('experts')} experts",
                path="top",
                mend="use fewer, or more experts",
            )

    @property
    def exceptions(self) -> Mapping[str, str]:
        """The balance loss is a product of two means over the batch."""
        if self.balance == 0:
            return {}
        reason = "the balance loss looks at the tokens that a process has at once; balance=0 has no such exception"
        return {"accumulation": reason, "two processes": reason}

    def _value(self, name: str) -> int:
        given: int | None = self.of(name)
        return DEFAULTS[name] if given is None else given

    def _heads(self) -> int:
        return self.of("heads") or heads_for(self._value("width"))

    def _style(self) -> Mapping[str, Any]:
        return STYLES[self.of("style") or "gpt2"]

    def _hidden(self) -> int:
        width, top = self._value("width"), self._value("top")
        dense = -(-8 * width // 24) * 8 if self._style()["feed_forward"] in GATED else 4 * width
        return self.of("hidden") or -(-dense // top)

    def _expert(self) -> nn.Module:
        style = self._style()
        return feed_forward(style["feed_forward"], self._value("width"), self._hidden(), style["bias"])

    def _is_mixture(self, block: int) -> bool:
        return (self._value("depth") - 1 - block) % self._value("every") == 0

    def _feed_forward(self, block: int) -> nn.Module:
        width, style = self._value("width"), self._style()
        if not self._is_mixture(block):
            return feed_forward(style["feed_forward"], width, bias=style["bias"])
        return Experts(width, self._value("experts"), self._value("top"), self._expert)

    def derived(self, data: DataFacts) -> tuple[Figure, ...]:
        """Defaults, heads and hidden units where they were not given, and how many parameters a token uses."""
        figures = [*default_figures(self, style="gpt2", **DEFAULTS)]
        if self.of("heads") is None:
            figures.append(heads_figure(self._value("width")))
        if self.of("hidden") is None:
            reason = f"of one expert: those of a dense block / {self._value('top')}, so that a token costs the same"
            figures.append(Figure("model.hidden", self._hidden(), "units", reason))
        mixtures = sum(map(self._is_mixture, range(self._value("depth"))))
        with torch.device("meta"):
            everything = sum(p.numel() for p in self.make(data, data.vocabulary).parameters())
            expert = sum(p.numel() for p in self._expert().parameters())
        idle = mixtures * (self._value("experts") - self._value("top")) * expert
        reason = f"a token uses {self._value('top')} of {self._value('experts')} experts in {mixtures} blocks"
        return (*figures, Figure("parameters of a token", everything - idle, "", f"of {everything:,}: {reason}"))

    def make(self, data: DataFacts, outputs: int) -> GPTNet:
        """The network, sized to the data."""
        return GPTNet(
            data.vocabulary,
            data.inputs[0][0][0],
            self._value("depth"),
            self._value("width"),
            self._heads(),
            kv_heads=self.of("kv_heads"),
            rotary_base=self.of("rotary_base") or 10_000.0,
            **{**self._style(), "feed_forward": self._feed_forward},
        )

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly with the net, and with the balance losses in its objective."""
        objective = balanced(assembly.objective, self.balance, self.router_size)
        return super().mount(assembly).with_(objective=objective)

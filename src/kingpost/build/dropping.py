"""Dropout that knows kingpost's own blocks: of attention weights, and of whole residual branches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from annotated_types import Ge, Lt
from torch import nn

from kingpost.assembly import Assembly, Slot
from kingpost.build.blocks.attention import Attention
from kingpost.build.blocks.stochastic_depth import StochasticDepth, set_stochastic_depth
from kingpost.build.blocks.transformer import TransformerBlock
from kingpost.errors import RecipeError
from kingpost.option import checked
from kingpost.technique import Technique

OWN_MASK = "each piece of a batch draws its own mask, so only the expectation is the same"


def set_attention_dropout(model: nn.Module, p: float) -> int:
    """Set the rate at which attention layers drop their weights, kingpost's and torch's; returns how many there are.

    >>> set_attention_dropout(nn.TransformerEncoderLayer(8, 2, 16), p=0.2)
    1
    """
    count = 0
    for module in model.modules():
        if isinstance(module, Attention):
            module.drop.p = p
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = p
        else:
            continue
        count += 1
    return count


def add_to_transformers(model: nn.Module) -> None:
    """Put a stochastic depth at the end of each branch of kingpost's transformer blocks, if there is none."""
    for block in model.modules():
        if isinstance(block, TransformerBlock):
            for name, branch in block.named_children():
                if name.endswith("_branch") and not any(isinstance(m, StochasticDepth) for m in branch.modules()):
                    assert isinstance(branch, nn.Sequential)
                    branch.append(StochasticDepth())


@checked
class AttentionDropout(Technique):
    """Set each attention weight to zero with probability ``p`` in training: ``dropout(softmax(q k^T / sqrt(d))) v``.

    The rest is multiplied by ``1 / (1 - p)``. ``dropout`` sets this rate too, with that of all other places; list this
    one after it.
    Helps transformers on little data.
    Fails where each position must look at one place exactly (copying, retrieval), and in long pre-training, where large
    models use none. Some fused kernels become slower.
    Source: Vaswani et al., arXiv 1706.03762, in its code; Zehui et al., "DropAttention", arXiv 1907.11065.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability of a zero."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    after: ClassVar[tuple[str, ...]] = ("dropout",)
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example_model: ClassVar[str] = "vit"
    example: ClassVar[dict[str, Any]] = {"p": 0.3}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Each piece of a batch draws its own mask."""
        return {"accumulation": OWN_MASK, "two processes": OWN_MASK}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose attention layers drop weights."""
        if not set_attention_dropout(assembly.model, self.p):
            raise RecipeError(
                "the model has no attention layer (kingpost's Attention or nn.MultiheadAttention)",
                mend="use it with a transformer",
            )
        return assembly


@checked
class StochasticDepthRule(Technique):
    """Leave out residual branches at random in training: branch ``l`` of ``L`` with probability ``p l / L``, by sample.

    What is kept is divided by ``1 - p l / L``, so that nothing changes in use. A transformer block has two branches (or
    three).
    Helps deep residual nets: they train as many shallower ones, and faster than their depth suggests.
    Fails in shallow nets, where a missing branch is a large part of the net.
    Source: Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382.
    """

    p: Annotated[float, Ge(0), Lt(1)] = 0.1
    """Probability that the last branch is left out; earlier ones have less, in a straight line."""

    touches: ClassVar[frozenset[Slot]] = frozenset({"model"})
    neutral: ClassVar[dict[str, Any]] = {"p": 0.0}
    example_model: ClassVar[str] = "resnet"
    example: ClassVar[dict[str, Any]] = {"p": 0.2}

    @property
    def exceptions(self) -> Mapping[str, str]:
        """Each piece of a batch draws its own mask."""
        return {"accumulation": OWN_MASK, "two processes": OWN_MASK}

    def mount(self, assembly: Assembly) -> Assembly:
        """The assembly whose model leaves out branches."""
        add_to_transformers(assembly.model)
        if not set_stochastic_depth(assembly.model, self.p):
            raise RecipeError(
                "the model has no residual branch that can be left out (blocks.stochastic_depth.StochasticDepth)",
                mend="use it with a residual net, such as resnet, or a transformer",
            )
        return assembly

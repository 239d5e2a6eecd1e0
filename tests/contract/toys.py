"""Toy tasks for the contract suite: tiny, generated, the same everywhere."""

from __future__ import annotations

from typing import Literal

import torch

from kingpost.data.tensors import TensorSplit
from kingpost.option import checked
from kingpost.source import DataFacts, Dataset, Graph, Head, Source

SAMPLES, CLASSES, CONTEXT, VOCABULARY = 36, 3, 6, 11


@checked
class Toy(Source):
    """Images of 8 x 8 pixels in three classes, sequences of tokens, or another form of sample.

    In float64, so that tolerances can be tight.
    """

    task: str = "classification"
    form: str = ""
    dtype: Literal["float64", "float32"] = "float64"

    def open(self) -> Dataset:
        if self.form:  # one function a form, by name: toy_nodes, toy_graphs, ...
            return globals()[f"toy_{self.form}"](getattr(torch, self.dtype))
        draw = torch.Generator().manual_seed(5)
        dtype = getattr(torch, self.dtype)
        if self.task == "language-modelling":
            tokens = torch.randint(0, VOCABULARY, (SAMPLES, CONTEXT + 1), generator=draw)
            whole = TensorSplit((tokens[:, :-1].contiguous(),), tokens[:, 1:].contiguous())
            facts = DataFacts(
                task=self.task,
                inputs=(((CONTEXT,), torch.int64),),
                target_shape=(CONTEXT,),
                vocabulary=VOCABULARY,
            )
        else:
            images = torch.randn(SAMPLES, 1, 8, 8, generator=draw, dtype=torch.float64).to(dtype)
            projected = images.flatten(1) @ torch.randn(64, CLASSES, generator=draw, dtype=torch.float64).to(dtype)
            targets = {
                "classification": projected.argmax(1),
                "regression": projected / 8,
                "multi-label": (projected > 0).to(dtype),
            }[self.task]
            whole = TensorSplit((images,), targets)
            facts = DataFacts(
                task=self.task,
                inputs=(((1, 8, 8), dtype),),
                target_shape=tuple(targets.shape[1:]),
                classes=() if self.task == "regression" else tuple("abc"),
            )
        parts = {"train": torch.arange(24), "validation": torch.arange(24, SAMPLES)}
        return Dataset(
            facts=facts,
            splits={part: whole.subset(index) for part, index in parts.items()},
            fingerprint="toy",
            indices=parts,
        )


def toy_nodes(dtype: torch.dtype) -> Dataset:
    """Nodes of one random graph, in three classes that their neighbours' features tell."""
    draw = torch.Generator().manual_seed(6)
    x = torch.randn(SAMPLES, 5, generator=draw, dtype=torch.float64)
    edges = torch.randint(0, SAMPLES, (2, 90), generator=draw)
    around = x.new_zeros(SAMPLES, 5).index_add(0, edges[1], x[edges[0]]) + x
    targets = (around @ torch.randn(5, CLASSES, generator=draw, dtype=torch.float64)).argmax(1)
    facts = DataFacts(
        task="classification",
        inputs=(((), torch.int64),),
        classes=tuple("abc"),
        graph=Graph(x=x.to(dtype), edges=edges),
    )
    return _divided(facts, TensorSplit((torch.arange(SAMPLES),), targets))


def toy_graphs(dtype: torch.dtype) -> Dataset:
    """Graphs of 3 to 8 nodes and 0 to 12 edges, in three classes that their nodes' features tell."""
    draw = torch.Generator().manual_seed(7)
    nodes, lengths = (torch.randint(low, high, (SAMPLES, 1), generator=draw) for low, high in ((3, 9), (0, 13)))
    real = (torch.arange(8) < nodes)[..., None]
    x = torch.randn(SAMPLES, 8, 4, generator=draw, dtype=torch.float64)
    x[..., 0] = 1
    ends = (torch.rand(SAMPLES, 12, 2, generator=draw) * nodes[..., None]).long()
    edges = torch.where((torch.arange(12) < lengths)[..., None], ends, -1)
    targets = ((x * real).sum(1) @ torch.randn(4, CLASSES, generator=draw, dtype=torch.float64)).argmax(1)
    facts = DataFacts(task="classification", inputs=(((8, 4), dtype), ((12, 2), torch.int64)), classes=tuple("abc"))
    return _divided(facts, TensorSplit(((x * real).to(dtype), edges), targets))


def _divided(facts: DataFacts, whole: TensorSplit) -> Dataset:
    parts = {"train": torch.arange(24), "validation": torch.arange(24, SAMPLES)}
    splits = {part: whole.subset(index) for part, index in parts.items()}
    return Dataset(facts=facts, splits=splits, fingerprint="toy", indices=parts)


def toy_tokens(dtype: torch.dtype) -> Dataset:
    """Sequences of 2 to 8 tokens, filled up with token 0; the class is how often token 1 occurs, at most twice."""
    draw = torch.Generator().manual_seed(8)
    lengths = torch.randint(2, 9, (SAMPLES, 1), generator=draw)
    tokens = torch.randint(1, 5, (SAMPLES, 8), generator=draw)
    tokens = torch.where(torch.arange(8) < lengths, tokens, 0)
    targets = tokens.eq(1).sum(1).clamp(max=2)
    facts = DataFacts(
        task="classification", inputs=(((8,), torch.int64),), classes=tuple("abc"), vocabulary=5, padding=0
    )
    return _divided(facts, TensorSplit((tokens,), targets))


def toy_pairs(dtype: torch.dtype) -> Dataset:
    """Sequences of 2 to 5 letters, to be written backwards; 0 fills up, 1 begins and 2 ends a sequence."""
    draw = torch.Generator().manual_seed(9)
    rows = [torch.randint(3, 8, (int(n),), generator=draw) for n in torch.randint(2, 6, (SAMPLES,), generator=draw)]
    source, shown = torch.zeros(SAMPLES, 6, dtype=torch.int64), torch.zeros(SAMPLES, 6, dtype=torch.int64)
    targets = torch.full((SAMPLES, 6), -100)
    for row, letters in enumerate(rows):
        n, backwards = len(letters), letters.flip(0)
        source[row, : n + 1] = torch.cat([letters, torch.tensor([2])])
        shown[row, : n + 1] = torch.cat([torch.tensor([1]), backwards])
        targets[row, : n + 1] = torch.cat([backwards, torch.tensor([2])])
    facts = DataFacts(
        task="sequence-to-sequence",
        inputs=(((6,), torch.int64), ((6,), torch.int64)),
        target_shape=(6,),
        vocabulary=8,
        target_vocabulary=8,
        padding=0,
        begin=1,
        end=2,
    )
    return _divided(facts, TensorSplit((source, shown), targets))


def toy_series(dtype: torch.dtype) -> Dataset:
    """Windows of two noisy waves: 12 steps are read, the next 4 of both are predicted."""
    draw = torch.Generator().manual_seed(10)
    time = torch.arange(SAMPLES + 16, dtype=torch.float64)[:, None]
    rows = torch.sin(time * torch.tensor([0.5, 0.9])) + 0.1 * torch.randn(len(time), 2, generator=draw)
    windows = rows.to(dtype).unfold(0, 16, 1).transpose(1, 2)[:SAMPLES]
    facts = DataFacts(
        task="forecasting",
        inputs=(((12, 2), dtype),),
        target_shape=(4, 2),
        features=("a", "b"),
        targets=("a", "b"),
    )
    return _divided(facts, TensorSplit((windows[:, :12].contiguous(),), windows[:, 12:].contiguous()))


def toy_recordings(dtype: torch.dtype) -> Dataset:
    """Series of 12 steps and 3 features in three classes: the feature that swings most."""
    draw = torch.Generator().manual_seed(11)
    series = torch.randn(SAMPLES, 12, 3, generator=draw, dtype=torch.float64)
    facts = DataFacts(task="classification", inputs=(((12, 3), dtype),), classes=tuple("abc"))
    return _divided(facts, TensorSplit((series.to(dtype),), series.square().sum(1).argmax(1)))


def toy_clips(dtype: torch.dtype) -> Dataset:
    """Clips of 4 frames of 8 x 8 pixels in which a spot stands still, or moves to the right or down."""
    draw = torch.Generator().manual_seed(12)
    targets = torch.arange(SAMPLES) % 3
    steps = torch.tensor([[0, 0], [0, 1], [1, 0]])[targets]
    start = torch.randint(8, (SAMPLES, 2), generator=draw)
    clips = torch.zeros(SAMPLES, 4, 1, 8, 8, dtype=dtype)
    for frame in range(4):
        y, x = ((start + frame * steps) % 8).unbind(1)
        clips[torch.arange(SAMPLES), frame, 0, y, x] = 1
    facts = DataFacts(task="classification", inputs=(((4, 1, 8, 8), dtype),), classes=tuple("abc"))
    return _divided(facts, TensorSplit((clips,), targets))


def toy_codes(dtype: torch.dtype) -> Dataset:
    """Rows of a table: 4 numbers and 2 categories of 3 and 5 codes, in three classes."""
    draw = torch.Generator().manual_seed(13)
    numbers = torch.randn(SAMPLES, 4, generator=draw, dtype=torch.float64)
    codes = torch.stack([torch.randint(n, (SAMPLES,), generator=draw) for n in (3, 5)], 1)
    effect = torch.randn(5, CLASSES, generator=draw, dtype=torch.float64)
    targets = (numbers[:, :CLASSES] + effect[codes[:, 1]]).argmax(1)
    facts = DataFacts(
        task="classification",
        inputs=(((4,), dtype), ((2,), torch.int64)),
        classes=tuple("abc"),
        features=("p", "q", "r", "s", "u", "v"),
        cardinalities=(3, 5),
    )
    return _divided(facts, TensorSplit((numbers.to(dtype), codes), targets))


def toy_heads(dtype: torch.dtype) -> Dataset:
    """Rows of 6 numbers that tell a class of three and a value; every seventh label is missing."""
    draw = torch.Generator().manual_seed(14)
    x = torch.randn(SAMPLES, 6, generator=draw, dtype=torch.float64)
    targets = torch.stack([x[:, :CLASSES].argmax(1).double(), x[:, 3:].sum(1) / 3**0.5], 1)
    targets.view(-1)[::7] = float("nan")
    facts = DataFacts(
        task="multi-task",
        inputs=(((6,), dtype),),
        target_shape=(2,),
        heads=(Head(name="kind", classes=tuple("abc")), Head(name="size")),
    )
    return _divided(facts, TensorSplit((x.to(dtype),), targets.to(dtype)))

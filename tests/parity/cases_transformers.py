"""Encoders, encoder-decoders, vision transformers and experts against transformers and torch's own layers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.build.nets.encoder import EncoderNet
from kingpost.build.nets.moe import MoE
from kingpost.build.nets.transformer import STYLES, TransformerNet
from kingpost.build.nets.vit import ViTNet
from kingpost.net import token_facts
from parity.case import Case, Errors, largest, relative

WORDS, CONTEXT, WIDTH, HEADS, DEPTH = 40, 12, 16, 4, 2
WHY_64 = "64 bits; sums of at most 64 terms in another order, through two blocks"
WHY_32 = "the reference computes its norms (and Mixtral its routing) in 32 bits whatever the weights are"

Place = tuple[str, slice | tuple[int, slice]]  # a tensor of the reference, and a part of it
ALL = slice(None)


def compared(
    ours: nn.Module, theirs: nn.Module, place: Callable[[str], Place], *, inputs: Sequence[Tensor],
    call: Callable[[Any], Tensor],
) -> Errors:  # fmt: skip
    """Random weights in the reference, copied to ours; outputs, and the gradients of a random sum of them.

    Args:
        ours: called with the inputs.
        theirs: the reference.
        place: where in the reference each of our parameters stands.
        inputs: of ours.
        call: runs the reference on the same.
    """
    ours, theirs = ours.double(), theirs.double().train()
    own, given = dict(ours.named_parameters()), dict(theirs.named_parameters())
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in given.values():
            std = 1.0 if p.ndim == 1 else p.shape[-1] ** -0.5
            p.copy_(torch.randn(p.shape, generator=draw, dtype=torch.float64) * std)
        for name, p in own.items():
            there, part = place(name)
            p.copy_(given[there][part].view_as(p))
    used = {place(name)[0] for name in own}
    assert used == set(given), set(given) ^ used  # nothing of the reference is left out
    y, z = ours(*inputs), call(theirs)
    weight = torch.randn(z.shape, generator=draw, dtype=torch.float64)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    pairs = []
    for name, p in own.items():
        there, part = place(name)
        a, b = p.grad, given[there].grad
        assert a is not None and b is not None, name
        # A key's bias moves all scores of a query alike: its gradient is nothing but rounding.
        if not name.endswith("key.bias"):
            pairs.append((a, b[part].view_as(a)))
    return Errors(relative(y.detach(), z.detach()), largest(pairs))


def renamed(rules: Sequence[tuple[str, str]]) -> Callable[[str], Place]:
    """A place by patterns: every rule that matches is applied, in order."""

    def place(name: str) -> Place:
        for pattern, there in rules:
            name = re.sub(pattern, there, name)
        return name, ALL

    return place


def texts(length: int = CONTEXT, rows: int = 5) -> Tensor:
    """Sentences of different lengths, padded with 0."""
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(1, WORDS, (rows, length), generator=draw)
    lengths = torch.randint(2, length + 1, (rows, 1), generator=draw)
    return words * (torch.arange(length) < lengths)


BERT = [
    (r"^embed\.first", "bert.embeddings.word_embeddings"),
    (r"^embed\.positions", "bert.embeddings.position_embeddings"),
    (r"^embed\.segments", "bert.embeddings.token_type_embeddings"),
    (r"^embed\.norm", "bert.embeddings.LayerNorm"),
    (r"^blocks\.", "bert.encoder.layer."),
    (r"\.attention_norm", ".attention.output.LayerNorm"),
    (r"\.attention\.(query|key|value)", r".attention.self.\1"),
    (r"\.attention\.out\.", ".attention.output.dense."),
    (r"\.feed_forward_norm", ".output.LayerNorm"),
    (r"\.feed_forward\.up", ".intermediate.dense"),
    (r"\.feed_forward\.down", ".output.dense"),
    (r"^pooler\.0", "bert.pooler.dense"),
    (r"^head", "classifier"),
]


def bert() -> Errors:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=WORDS, hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH, max_position_embeddings=CONTEXT, num_labels=3, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    ours = EncoderNet(
        WORDS, 3, CONTEXT, DEPTH, WIDTH, HEADS, padding=0, order="post", pooling="first", segments=2, eps=1e-12
    )
    x, kinds = texts(), torch.randint(0, 2, (5, CONTEXT), generator=torch.Generator().manual_seed(2))
    return compared(
        ours, BertForSequenceClassification(config), renamed(BERT), inputs=(x, kinds),
        call=lambda net: net(input_ids=x, attention_mask=(x != 0).long(), token_type_ids=kinds).logits,
    )  # fmt: skip


VIT = [
    (r"^class_vector", "vit.embeddings.cls_token"),
    (r"^positions", "vit.embeddings.position_embeddings"),
    (r"^patches\.project", "vit.embeddings.patch_embeddings.projection"),
    (r"^blocks\.", "vit.layers."),
    (r"\.attention_norm", ".layernorm_before"),
    (r"\.feed_forward_norm", ".layernorm_after"),
    (r"\.attention\.(q|k|v)[a-z]+", r".attention.\1_proj"),
    (r"\.attention\.out\.", ".attention.o_proj."),
    (r"\.feed_forward\.up", ".mlp.fc1"),
    (r"\.feed_forward\.down", ".mlp.fc2"),
    (r"^norm", "vit.layernorm"),
    (r"^head", "classifier"),
]


def vit() -> Errors:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=HEADS, intermediate_size=4 * WIDTH,
        image_size=12, patch_size=4, num_labels=3, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
        layer_norm_eps=1e-6,
    )  # fmt: skip
    x = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return compared(
        ViTNet((3, 12, 12), 4, DEPTH, WIDTH, HEADS, 3), ViTForImageClassification(config), renamed(VIT), inputs=(x,),
        call=lambda net: net(pixel_values=x).logits,
    )  # fmt: skip


T5 = [
    (r"^source\.first", "shared"),
    (r"^(encoder|decoder)_norm", r"\1.final_layer_norm"),
    (r"^(encoder|decoder)_bias\.values", r"\1.block.0.layer.0.SelfAttention.relative_attention_bias"),
    (r"^(encoder|decoder)\.(\d)", r"\1.block.\2"),
    (r"\.(\d)\.attention_norm", r".\1.layer.0.layer_norm"),
    (r"\.(\d)\.attention\.(q|k|v|o)[a-z]+", r".\1.layer.0.SelfAttention.\2"),
    (r"\.(\d)\.cross_norm", r".\1.layer.1.layer_norm"),
    (r"\.(\d)\.cross\.(q|k|v|o)[a-z]+", r".\1.layer.1.EncDecAttention.\2"),
    (r"^(encoder\.block\.\d)\.feed_forward_norm", r"\1.layer.1.layer_norm"),
    (r"^(decoder\.block\.\d)\.feed_forward_norm", r"\1.layer.2.layer_norm"),
    (r"^(encoder\.block\.\d)\.feed_forward\.", r"\1.layer.1.DenseReluDense."),
    (r"^(decoder\.block\.\d)\.feed_forward\.", r"\1.layer.2.DenseReluDense."),
    (r"\.up\.", ".wi."),
    (r"\.down\.", ".wo."),
]


def t5() -> Errors:
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=WORDS, d_model=WIDTH, d_kv=WIDTH // HEADS, d_ff=4 * WIDTH, num_layers=DEPTH, num_heads=HEADS,
        dropout_rate=0.0,
    )  # fmt: skip
    # Longer than the 16 distances that have a bucket of their own, so that shared buckets are compared too.
    source, target = texts(40), torch.randint(1, WORDS, (5, 37), generator=torch.Generator().manual_seed(3))
    ours = TransformerNet(WORDS, WORDS, 40, DEPTH, WIDTH, HEADS, padding=0, **STYLES["t5"])
    ours.source.first.padding_idx = None  # type: ignore[assignment]  # the reference gives padding a gradient by the head alone too
    return compared(
        ours, T5ForConditionalGeneration(config), renamed(T5), inputs=(source, target),
        call=lambda net: net(
            input_ids=source, attention_mask=(source != 0).long(), decoder_input_ids=target
        ).logits,
    )  # fmt: skip


class TorchTransformer(nn.Module):
    """The first transformer from torch's layers, with embeddings written out."""

    def __init__(self) -> None:
        super().__init__()
        layer = {"d_model": WIDTH, "nhead": HEADS, "dim_feedforward": 4 * WIDTH, "dropout": 0.0, "batch_first": True}
        self.table = nn.Embedding(WORDS, WIDTH)
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(**layer), DEPTH, enable_nested_tensor=False  # type: ignore[arg-type]
        )  # fmt: skip
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(**layer), DEPTH)  # type: ignore[arg-type]

    def embed(self, x: Tensor) -> Tensor:
        """Vectors times the root of the width, and waves, number by number."""
        waves = torch.zeros(x.shape[1], WIDTH, dtype=torch.float64)
        for p in range(x.shape[1]):
            for i in range(WIDTH):
                angle = p / 10_000 ** (2 * (i // 2) / WIDTH)
                waves[p, i] = math.cos(angle) if i % 2 else math.sin(angle)
        y: Tensor = self.table(x) * math.sqrt(WIDTH) + waves
        return y

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Scores of the next token."""
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        memory = self.encoder(self.embed(source), src_key_padding_mask=source == 0)
        y = self.decoder(self.embed(target), memory, tgt_mask=later, memory_key_padding_mask=source == 0)
        return y @ self.table.weight.T


def torch_place(name: str) -> Place:
    """Torch keeps the matrices of queries, keys and values in one tensor."""
    if name.startswith("source."):
        return "table.weight", ALL
    stack, layer, part, *rest = name.split(".")
    decodes = stack == "decoder"
    norms = {"attention_norm": 1, "cross_norm": 2, "feed_forward_norm": 3 if decodes else 2}
    if part in norms:
        there = f"norm{norms[part]}.{rest[0]}"
    elif part == "feed_forward":
        there = f"linear{1 if rest[0] == 'up' else 2}.{rest[1]}"
    else:
        attention = "self_attn" if part == "attention" else "multihead_attn"
        if rest[0] != "out":
            row = ("query", "key", "value").index(rest[0]) * WIDTH
            return f"{stack}.layers.{layer}.{attention}.in_proj_{rest[1]}", slice(row, row + WIDTH)
        there = f"{attention}.out_proj.{rest[1]}"
    return f"{stack}.layers.{layer}.{there}", ALL


def vaswani() -> Errors:
    source, target = texts(), texts(9)
    ours = TransformerNet(WORDS, WORDS, CONTEXT, DEPTH, WIDTH, HEADS, padding=0, order="post")
    ours.source.first.padding_idx = None  # type: ignore[assignment]  # the reference's table has none
    return compared(
        ours, TorchTransformer(), torch_place, inputs=(source, target), call=lambda net: net(source, target)
    )  # fmt: skip


MIXTRAL = [
    (r"^tokens", "model.embed_tokens"),
    (r"^blocks\.", "model.layers."),
    (r"\.attention_norm", ".input_layernorm"),
    (r"\.feed_forward_norm", ".post_attention_layernorm"),
    (r"\.attention\.(q|k|v)[a-z]+", r".self_attn.\1_proj"),
    (r"\.attention\.out\.", ".self_attn.o_proj."),
    (r"\.feed_forward\.router", ".mlp.gate"),
    (r"\.feed_forward\.experts", ".mlp.experts"),
    (r"^norm", "model.norm"),
    (r"^head", "lm_head"),
]


def mixtral() -> Errors:
    from transformers import MixtralConfig, MixtralForCausalLM

    experts, hidden = 4, 24
    config = MixtralConfig(
        vocab_size=WORDS, hidden_size=WIDTH, intermediate_size=hidden, num_hidden_layers=DEPTH, rms_norm_eps=1e-5,
        num_attention_heads=HEADS, num_key_value_heads=2, num_local_experts=experts, num_experts_per_tok=2,
        max_position_embeddings=CONTEXT, rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
        sliding_window=None, tie_word_embeddings=False, experts_implementation="eager",
    )  # fmt: skip
    ours = MoE(
        depth=DEPTH, every=1, width=WIDTH, heads=HEADS, kv_heads=2, experts=experts, hidden=hidden, style="llama"
    ).make(token_facts(WORDS, CONTEXT), WORDS)
    by_name = renamed(MIXTRAL)

    def place(name: str) -> Place:
        there, _ = by_name(name)
        if found := re.fullmatch(r"(.*\.experts)\.(\d)\.(gate|up|down)\.weight", there):
            kind = "down_proj" if found[3] == "down" else "gate_up_proj"
            rows = {"gate": slice(0, hidden), "up": slice(hidden, None), "down": ALL}[found[3]]
            return f"{found[1]}.{kind}", (int(found[2]), rows)
        return there, ALL

    x = torch.randint(0, WORDS, (5, CONTEXT), generator=torch.Generator().manual_seed(3))
    return compared(ours, MixtralForCausalLM(config), place, inputs=(x,), call=lambda net: net(input_ids=x).logits)


def _case(ours: str, reference: str, compare: Callable[[], Errors], tolerance: float, why: str) -> Case:
    needs = "torch" if reference.startswith("torch") else "transformers"
    return Case(ours=ours, reference=reference, needs=needs, compare=compare, tolerance=tolerance, why=why)


CASES = [
    _case("encoder(size=bert-*)", "transformers BertForSequenceClassification", bert, 1e-11, WHY_64),
    _case("vit", "transformers ViTForImageClassification", vit, 1e-11, WHY_64),
    _case("transformer(style=t5)", "transformers T5ForConditionalGeneration", t5, 2e-5, WHY_32),
    _case("transformer(order=post)", "torch.nn.TransformerEncoder and Decoder", vaswani, 1e-11, WHY_64),
    _case("moe(style=llama)", "transformers MixtralForCausalLM", mixtral, 2e-5, WHY_32),
]

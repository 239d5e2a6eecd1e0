"""Attention, transformer blocks, GPT-2 and Llama against PyTorch's own and transformers'."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kingpost.build.blocks.attention import Attention
from kingpost.build.blocks.positions import RelativeBias
from kingpost.build.blocks.transformer import TransformerBlock
from kingpost.build.generate import beam_search, generate
from kingpost.build.nets.gpt import GPTNet
from parity.case import Case, Errors, largest, relative

B, T, S, D, H = 3, 6, 5, 24, 4
VOCABULARY, CONTEXT = 31, 16
WHY = "64 bits; the same sums of a few dozen numbers in another order, through at most two blocks"

Part = Callable[[Tensor], Tensor]
Names = Mapping[str, tuple[str, Part]]  # name of ours -> name of theirs, and which part of it, turned how


def whole(weight: Tensor) -> Tensor:
    return weight


def third(index: int, turned: bool = False) -> Part:
    """Queries, keys or values of three matrices that are kept as one."""
    return lambda weight: (weight.t() if turned else weight).chunk(3)[index]


def copied(ours: nn.Module, theirs: nn.Module, names: Names, std: float = 0.3) -> None:
    """Random weights for the reference, the same for ours; every parameter of both must be named."""
    own, given = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert own.keys() == names.keys(), own.keys() ^ names.keys()
    assert given.keys() == {name for name, _ in names.values()}, given.keys() ^ {n for n, _ in names.values()}
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in given.values():
            weight.copy_(std * torch.randn(weight.shape, generator=draw, dtype=torch.float64))
        for name, (other, part) in names.items():
            own[name].copy_(part(given[other]))


def compared(ours: nn.Module, theirs: nn.Module, names: Names, y: Tensor, z: Tensor, *inputs: Tensor) -> Errors:
    """Outputs, and the gradients of all weights; of ``inputs``, pairs of ours and theirs, too."""
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    own, given = dict(ours.named_parameters()), dict(theirs.named_parameters())
    pairs: list[Any] = [(own[name].grad, part(given[other].grad)) for name, (other, part) in names.items()]  # type: ignore[arg-type]
    pairs += [(a.grad, b.grad) for a, b in zip(inputs[::2], inputs[1::2], strict=True)]
    # A bias of keys shifts all scores of a query alike, so its gradient is zero but for rounding, on both sides.
    scale = max(float(b.abs().max()) for _, b in pairs)
    zero = [float(b.abs().max()) < 1e-12 * scale for _, b in pairs]
    assert all(float(a.abs().max()) < 1e-12 * scale for (a, _), is_zero in zip(pairs, zero, strict=True) if is_zero)
    rest = [pair for pair, is_zero in zip(pairs, zero, strict=True) if not is_zero]
    return Errors(relative(y.detach(), z.detach()), largest(rest))


def numbers(*shape: int, seed: int = 2) -> tuple[Tensor, Tensor]:
    """The same input twice, one for each side."""
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x.clone().requires_grad_(), x.clone().requires_grad_()


def lengths(longest: int) -> Tensor:
    """Which positions are real, ``(B, longest)``: all, all but two, one."""
    return torch.arange(longest)[None] < torch.tensor([[longest], [longest - 2], [1]])


def future(t: int) -> Tensor:
    """True where PyTorch's layers may not look."""
    return torch.ones(t, t, dtype=torch.bool).triu(1)


def attention_names(ours: str, theirs: str, out: str = "out_proj", separate: bool = False, bias: bool = True) -> Names:
    names: dict[str, tuple[str, Part]] = {}
    for index, name in enumerate(("query", "key", "value")):
        one = (f"{theirs}{name[0]}_proj_weight", whole) if separate else (f"{theirs}in_proj_weight", third(index))
        names[f"{ours}{name}.weight"] = one
        if bias:
            names[f"{ours}{name}.bias"] = (f"{theirs}in_proj_bias", third(index))
    for kind in ("weight", "bias") if bias else ("weight",):
        names[f"{ours}out.{kind}"] = (f"{theirs}{out}.{kind}", whole)
    return names


def multi_head(causal: bool = False, padded: bool = False, bias: bool = True) -> Errors:
    ours = Attention(D, H, causal=causal, bias=bias).double()
    theirs = nn.MultiheadAttention(D, H, bias=bias, batch_first=True).double()
    names = attention_names("", "", bias=bias)
    copied(ours, theirs, names)
    a, b = numbers(B, T, D)
    real = lengths(T) if padded else None
    y = ours(a, real=real)
    z, _ = theirs(b, b, b, attn_mask=future(T) if causal else None, key_padding_mask=None if real is None else ~real)
    return compared(ours, theirs, names, y, z, a, b)


def cross_attention() -> Errors:
    ours = Attention(D, H, context_width=10).double()
    theirs = nn.MultiheadAttention(D, H, kdim=10, vdim=10, batch_first=True).double()
    names = attention_names("", "", separate=True)
    copied(ours, theirs, names)
    (a, b), (c, d), real = numbers(B, T, D), numbers(B, S, 10, seed=3), lengths(S)
    y, (z, _) = ours(a, context=c, real=real), theirs(b, d, d, key_padding_mask=~real)
    return compared(ours, theirs, names, y, z, a, b, c, d)


def layer_names(norms: Sequence[str], cross: bool) -> Names:
    names = {**attention_names("attention.", "self_attn.")}
    if cross:
        names |= attention_names("cross.", "multihead_attn.")
    for kind in ("weight", "bias"):
        names |= {f"{norm}.{kind}": (f"norm{i + 1}.{kind}", whole) for i, norm in enumerate(norms)}
        names[f"feed_forward.up.{kind}"] = (f"linear1.{kind}", whole)
        names[f"feed_forward.down.{kind}"] = (f"linear2.{kind}", whole)
    return names


def encoder_layer(order: Any, activation: Any) -> Errors:
    ours = TransformerBlock(D, H, order=order, feed_forward=activation, hidden=50).double()
    theirs = nn.TransformerEncoderLayer(
        D, H, 50, dropout=0.0, activation=activation, batch_first=True, norm_first=order == "pre"
    ).double()
    names = layer_names(("attention_norm", "feed_forward_norm"), cross=False)
    copied(ours, theirs, names)
    (a, b), real = numbers(B, T, D), lengths(T)
    return compared(ours, theirs, names, ours(a, real=real), theirs(b, src_key_padding_mask=~real), a, b)


def decoder_layer(order: Any) -> Errors:
    ours = TransformerBlock(D, H, causal=True, cross=True, order=order, hidden=50).double()
    theirs = nn.TransformerDecoderLayer(
        D, H, 50, dropout=0.0, activation="gelu", batch_first=True, norm_first=order == "pre"
    ).double()
    names = layer_names(("attention_norm", "cross_norm", "feed_forward_norm"), cross=True)
    copied(ours, theirs, names)
    (a, b), (c, d), own, other = numbers(B, T, D), numbers(B, S, D, seed=3), lengths(T), lengths(S)
    y = ours(a, real=own, context=c, context_real=other)
    z = theirs(b, d, tgt_mask=future(T), tgt_key_padding_mask=~own, memory_key_padding_mask=~other, tgt_is_causal=False)
    return compared(ours, theirs, names, y, z, a, b, c, d)


def relative_bias(both_ways: bool) -> Errors:
    from transformers import T5Config
    from transformers.models.t5.modeling_t5 import T5Attention

    config = T5Config(d_model=D, d_kv=6, num_heads=H, is_decoder=not both_ways)
    theirs = T5Attention(config, has_relative_attention_bias=True, layer_idx=0).double()
    ours = RelativeBias(H, both_ways=both_ways).double()
    with torch.no_grad():
        ours.values.weight.copy_(theirs.relative_attention_bias.weight)
    y = ours(torch.arange(300), torch.arange(300))
    z = theirs.compute_bias(300, 300)[0]
    weight = torch.randn(z.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    (y * weight).sum().backward()
    (z * weight).sum().backward()
    grads = ours.values.weight.grad, theirs.relative_attention_bias.weight.grad
    return Errors(relative(y.detach(), z.detach()), relative(*grads))  # type: ignore[arg-type]


def gpt2_names(depth: int) -> Names:
    names: dict[str, tuple[str, Part]] = {
        "tokens.weight": ("transformer.wte.weight", whole),
        "positions.weight": ("transformer.wpe.weight", whole),
    }
    for kind in ("weight", "bias"):
        turned: Part = torch.t if kind == "weight" else whole  # their layers keep a matrix as (inputs, outputs)
        names[f"norm.{kind}"] = (f"transformer.ln_f.{kind}", whole)
        for i in range(depth):
            a, b = f"blocks.{i}.", f"transformer.h.{i}."
            names |= {
                f"{a}attention.{name}.{kind}": (f"{b}attn.c_attn.{kind}", third(index, turned=True))
                for index, name in enumerate(("query", "key", "value"))
            }
            names[f"{a}attention.out.{kind}"] = (f"{b}attn.c_proj.{kind}", turned)
            names[f"{a}feed_forward.up.{kind}"] = (f"{b}mlp.c_fc.{kind}", turned)
            names[f"{a}feed_forward.down.{kind}"] = (f"{b}mlp.c_proj.{kind}", turned)
            names[f"{a}attention_norm.{kind}"] = (f"{b}ln_1.{kind}", whole)
            names[f"{a}feed_forward_norm.{kind}"] = (f"{b}ln_2.{kind}", whole)
    return names


def gpt2_pair() -> tuple[GPTNet, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=D, n_layer=2, n_head=H, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=2,
    )  # fmt: skip
    theirs = GPT2LMHeadModel(config).double()
    ours = GPTNet(VOCABULARY, CONTEXT, 2, D, H).double()
    copied(ours, theirs, gpt2_names(2))
    return ours, theirs


def llama_names(depth: int) -> Names:
    names = {"tokens.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight"}
    names["head.weight"] = "lm_head.weight"
    for i in range(depth):
        a, b = f"blocks.{i}.", f"model.layers.{i}."
        names |= {f"{a}attention.{n}.weight": f"{b}self_attn.{n[0]}_proj.weight" for n in ("query", "key", "value")}
        names[f"{a}attention.out.weight"] = f"{b}self_attn.o_proj.weight"
        names |= {f"{a}feed_forward.{n}.weight": f"{b}mlp.{n}_proj.weight" for n in ("gate", "up", "down")}
        names[f"{a}attention_norm.weight"] = f"{b}input_layernorm.weight"
        names[f"{a}feed_forward_norm.weight"] = f"{b}post_attention_layernorm.weight"
    return {name: (other, whole) for name, other in names.items()}


class _Angles64(nn.Module):
    """Rotary angles as the reference lays them out, but in 64 bits."""

    def __init__(self, frequencies: Tensor) -> None:
        super().__init__()
        self.frequencies = frequencies

    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = (position_ids[..., None] * self.frequencies).repeat(1, 1, 2)
        return angles.cos(), angles.sin()


def llama_pair(in_64_bits: bool, base: float = 500.0) -> tuple[GPTNet, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=D, intermediate_size=40, num_hidden_layers=2, num_attention_heads=H,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, bos_token_id=0, eos_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": base},
    )  # fmt: skip
    theirs = LlamaForCausalLM(config).double()
    if in_64_bits:
        d = D // H
        theirs.model.rotary_emb = _Angles64(base ** -(torch.arange(0, d, 2, dtype=torch.float64) / d))
        for path, module in list(theirs.named_modules()):
            if path.endswith("norm"):
                parent, _, name = path.rpartition(".")
                setattr(theirs.get_submodule(parent), name, nn.RMSNorm(module.weight.shape, 1e-5).double())
    ours = GPTNet(
        VOCABULARY, CONTEXT, 2, D, H, kv_heads=2, hidden=40, positions="rotary", norm="rms", feed_forward="swiglu",
        bias=False, tied=False, rotary_base=base,
    ).double()  # fmt: skip
    copied(ours, theirs, llama_names(2))
    return ours, theirs


def words(b: int, t: int) -> Tensor:
    return torch.randint(3, VOCABULARY, (b, t), generator=torch.Generator().manual_seed(0))


def gpt2() -> Errors:
    ours, theirs = gpt2_pair()
    x = words(B, CONTEXT)
    return compared(ours, theirs, gpt2_names(2), ours(x), theirs(x).logits)


def llama(in_64_bits: bool) -> Errors:
    ours, theirs = llama_pair(in_64_bits)
    x = words(B, CONTEXT)
    return compared(ours, theirs, llama_names(2), ours(x), theirs(x).logits)


def greedy(pair: Callable[[], tuple[GPTNet, Any]]) -> Errors:
    """1 if a single token differs, else 0."""
    ours, theirs = pair()
    x = words(B, 4)
    z = theirs.eval().generate(x, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    y = torch.stack(generate(ours, x, 10, temperature=0))
    return Errors(float(not torch.equal(y, z)), 0.0)


def beams(pair: Callable[[], tuple[GPTNet, Any]], length_penalty: float) -> Errors:
    """The error of the scores; infinite if a single token differs."""
    ours, theirs = pair()
    x = words(B, 4)
    end = int(generate(ours, x, 3, temperature=0)[0][-1])  # a likely token, so that some sequences end early
    found = theirs.eval().generate(
        x, max_new_tokens=8, num_beams=3, num_return_sequences=3, do_sample=False, eos_token_id=end, pad_token_id=0,
        length_penalty=length_penalty, early_stopping="never", return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    got = [h for row in beam_search(ours, x, 8, beams=3, end=end, length_penalty=length_penalty) for h in row]
    for hypothesis, row in zip(got, found.sequences, strict=True):
        n = len(hypothesis.tokens)
        if not torch.equal(hypothesis.tokens, row[:n]) or bool((row[n:] != end).any()):  # they fill up with the end
            return Errors(float("inf"), 0.0)
    assert length_penalty or len({len(h.tokens) for h in got}) > 1
    scores = torch.tensor([h.score for h in got], dtype=torch.float64)
    return Errors(relative(scores, found.sequences_scores), 0.0)


def _case(ours: str, reference: str, compare: Callable[[], Errors], tolerance: float = 1e-12, why: str = WHY) -> Case:
    needs = "transformers" if reference.startswith("transformers") else "torch"
    return Case(ours=ours, reference=reference, needs=needs, compare=compare, tolerance=tolerance, why=why)


ANGLES = "transformers takes rotary angles and RMS norms in 32 bits, whatever the model's precision"
WRITTEN = "the same tokens; beam scores are sums of eight logarithms, which transformers keeps in 32 bits"

CASES: list[Case] = [
    _case("Attention", "torch.nn.MultiheadAttention", multi_head),
    _case("Attention(causal=True)", "torch.nn.MultiheadAttention", lambda: multi_head(causal=True)),
    _case("Attention, padding", "torch.nn.MultiheadAttention", lambda: multi_head(causal=True, padded=True)),
    _case("Attention(bias=False)", "torch.nn.MultiheadAttention", lambda: multi_head(bias=False)),
    _case("Attention(context_width=10)", "torch.nn.MultiheadAttention", cross_attention),
    _case("TransformerBlock", "torch.nn.TransformerEncoderLayer", lambda: encoder_layer("pre", "gelu")),
    _case("TransformerBlock(order='post')", "torch.nn.TransformerEncoderLayer", lambda: encoder_layer("post", "relu")),
    _case("TransformerBlock(cross=True)", "torch.nn.TransformerDecoderLayer", lambda: decoder_layer("pre")),
    _case(
        "TransformerBlock(cross=True, order='post')", "torch.nn.TransformerDecoderLayer", lambda: decoder_layer("post")
    ),
    _case("RelativeBias", "transformers T5Attention", lambda: relative_bias(both_ways=True)),
    _case("RelativeBias(both_ways=False)", "transformers T5Attention", lambda: relative_bias(both_ways=False)),
    _case("gpt(style=gpt2)", "transformers GPT2LMHeadModel", gpt2),
    _case("gpt(style=llama, kv_heads=2)", "transformers LlamaForCausalLM, 64 bits", lambda: llama(True)),
    _case("gpt(style=llama, kv_heads=2)", "transformers LlamaForCausalLM", lambda: llama(False), 1e-5, ANGLES),
    _case("generate, greedy, gpt2", "transformers generate", lambda: greedy(gpt2_pair)),
    _case("generate, greedy, llama", "transformers generate", lambda: greedy(lambda: llama_pair(True))),
    *(
        _case(
            f"beam_search(length_penalty={power}), {name}", "transformers generate",
            lambda pair=pair, power=power: beams(pair, power), 1e-6, WRITTEN,
        )
        for power in (0.0, 1.0)
        for name, pair in (("gpt2", gpt2_pair), ("llama", lambda: llama_pair(True)))
    ),
]  # fmt: skip

"""Small networks in the original repositories' layouts, written for these tests.

Only key names, shapes and arithmetic are the originals' (kakaobrain/karlo, openai/CLIP): each
network computes what its original computes, so that a key map can be proven by equal outputs.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional as F


def sinusoids(t: torch.Tensor, width: int) -> torch.Tensor:
    half = width // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) * torch.arange(half) / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def scramble(network: nn.Module, seed: int) -> nn.Module:
    """Every parameter random: no zero-initialised layer may hide a wrong map."""
    g = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        noise = torch.randn(parameter.shape, generator=g)
        scale = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
        norm = parameter.ndim == 1 and name.endswith("weight")
        parameter.data = noise * scale + (1.0 if norm else 0.0)
    return network.eval().requires_grad_(False)


# -- prior -------------------------------------------------------------------------------------


class LacedAttention(nn.Module):
    """Self-attention whose qkv rows lie head by head."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, n, width = x.shape
        q, k, v = self.c_qkv(x).view(b, n, self.heads, 3, -1).unbind(3)
        scores = torch.einsum("bnhc,bmhc->bhnm", q, k) * q.shape[-1] ** -0.5 + mask[:, None]
        mixed = torch.einsum("bhnm,bmhc->bnhc", scores.softmax(-1), v)
        return self.c_proj(mixed.reshape(b, n, width))


class PriorMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class PriorBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = LacedAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = PriorMLP(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class OriginalPrior(nn.Module):
    def __init__(self, words: int = 7, width: int = 32, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        dim = 24
        self.width = width
        self.time_embed = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.text_enc_proj = nn.Linear(dim, width)
        self.text_emb_proj = nn.Linear(dim, width)
        self.clip_img_proj = nn.Linear(dim, width)
        self.out_proj = nn.Linear(width, dim)
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList(PriorBlock(width, heads) for _ in range(layers))
        self.final_ln = nn.LayerNorm(width)
        self.positional_embedding = nn.Parameter(torch.zeros(1, words + 4, width))
        self.prd_emb = nn.Parameter(torch.zeros(1, 1, width))

    def forward(self, x, t, text_emb, text_enc, mask):
        tokens = [
            self.text_enc_proj(text_enc),
            self.text_emb_proj(text_emb)[:, None],
            self.time_embed(sinusoids(t, self.width))[:, None],
            self.clip_img_proj(x)[:, None],
            self.prd_emb.expand(len(x), -1, -1),
        ]
        h = torch.cat(tokens, 1) + self.positional_embedding
        n = h.shape[1]
        causal = torch.full((n, n), -torch.inf).triu(1)
        padding = torch.where(F.pad(mask, (0, 4), value=True), 0.0, -torch.inf)
        for block in self.transformer.resblocks:
            h = block(h, padding[:, None] + causal)
        return self.out_proj(self.final_ln(h)[:, -1])


# -- U-Nets ------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A residual block; ``resample`` 2 doubles the picture inside it, 0.5 halves it."""

    def __init__(self, cin: int, cout: int, time: int, shift: bool, resample: float = 1) -> None:
        super().__init__()
        self.shift, self.resample = shift, resample
        conv1, conv2 = nn.Conv2d(cin, cout, 3, padding=1), nn.Conv2d(cout, cout, 3, padding=1)
        self.in_layers = nn.Sequential(nn.GroupNorm(32, cin), nn.Identity(), conv1)
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, cout * (2 if shift else 1)))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, cout), nn.Identity(), nn.Identity(), conv2)
        self.skip_connection = nn.Identity() if cin == cout else nn.Conv2d(cin, cout, 1)

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        if self.resample == 2:
            return F.interpolate(x, scale_factor=2, mode="nearest")
        return F.avg_pool2d(x, 2) if self.resample == 0.5 else x

    def forward(self, x, emb, context, mask):
        h = self.in_layers[2](self._resize(F.silu(self.in_layers[0](x))))
        e = self.emb_layers(emb)[..., None, None]
        if self.shift:
            scale, offset = e.chunk(2, 1)
            h = self.out_layers[0](h) * (1 + scale) + offset
        else:
            h = self.out_layers[0](h + e)
        return self.skip_connection(self._resize(x)) + self.out_layers[3](F.silu(h))


class PixelAttention(nn.Module):
    """Pixels attend to the context and to each other; rows are laced per head."""

    def __init__(self, width: int, head: int, context: int) -> None:
        super().__init__()
        self.heads = width // head
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.encoder_kv = nn.Conv1d(context, 2 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x, emb, context, mask):
        b, c, height, width = x.shape
        q, k, v = (
            self.qkv(self.norm(x).flatten(2)).view(b, self.heads, 3, -1, height * width).unbind(2)
        )
        ek, ev = self.encoder_kv(context).view(b, self.heads, 2, q.shape[2], -1).unbind(2)
        k, v = torch.cat([ek, k], -1), torch.cat([ev, v], -1)
        scores = torch.einsum("bhcn,bhcm->bhnm", q, k) * q.shape[2] ** -0.5
        scores = scores + F.pad(mask, (0, height * width))[:, None, None]
        out = torch.einsum("bhnm,bhcm->bhcn", scores.softmax(-1), v).reshape(b, c, -1)
        return x + self.proj_out(out).view_as(x)


class Conv(nn.Conv2d):
    def forward(self, x, emb, context, mask):
        return super().forward(x)


class OriginalUNet(nn.Module):
    def __init__(self, cin, cout, channels, layers, attends=(), head=16, context=None, shift=False):
        super().__init__()
        base = channels[0]
        time = 4 * base
        self.base = base
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))
        blocks, widths, c = [nn.ModuleList([Conv(cin, base, 3, padding=1)])], [base], base
        for level, width in enumerate(channels):
            for _ in range(layers):
                parts = [Residual(c, width, time, shift)]
                parts += [PixelAttention(width, head, context)] if level in attends else []
                blocks.append(nn.ModuleList(parts))
                widths.append(width)
                c = width
            if level < len(channels) - 1:
                blocks.append(nn.ModuleList([Residual(c, c, time, shift, 0.5)]))
                widths.append(c)
        self.input_blocks = nn.ModuleList(blocks)
        middle = [PixelAttention(c, head, context)] if attends else []
        self.middle_block = nn.ModuleList(
            [Residual(c, c, time, shift), *middle, Residual(c, c, time, shift)]
        )
        blocks = []
        for level, width in reversed(list(enumerate(channels))):
            for i in range(layers + 1):
                parts = [Residual(c + widths.pop(), width, time, shift)]
                parts += [PixelAttention(width, head, context)] if level in attends else []
                parts += [Residual(width, width, time, shift, 2)] if level and i == layers else []
                blocks.append(nn.ModuleList(parts))
                c = width
        self.output_blocks = nn.ModuleList(blocks)
        self.out = nn.Sequential(
            nn.GroupNorm(32, c), nn.Identity(), nn.Conv2d(c, cout, 3, padding=1)
        )

    def run(self, x, emb, context=None, mask=None):
        def through(parts, h):
            for part in parts:
                h = part(h, emb, context, mask)
            return h

        skips = []
        for parts in self.input_blocks:
            x = through(parts, x)
            skips.append(x)
        x = through(self.middle_block, x)
        for parts in self.output_blocks:
            x = through(parts, torch.cat([x, skips.pop()], 1))
        return self.out[2](F.silu(self.out[0](x)))

    def time(self, t):
        return self.time_embed(sinusoids(t, self.base))

    def forward(self, x, t):
        return self.run(x, self.time(t))


class OriginalDecoder(OriginalUNet):
    def __init__(self, dim: int = 24, context: int = 20, tokens: int = 4, head: int = 16) -> None:
        super().__init__(3, 6, (32, 64), 2, attends=(1,), head=head, context=context, shift=True)
        self.tokens = tokens
        self.clip_emb = nn.Linear(dim, 4 * self.base)
        self.text_seq_proj = nn.Sequential(nn.Linear(dim, context), nn.LayerNorm(context))
        self.text_feat_proj = nn.Linear(dim, 4 * self.base)
        self.clip_tok_proj = nn.Linear(dim, context * tokens)
        self.cf_param = nn.Parameter(torch.zeros(dim))

    def forward(self, x, t, pooled, hidden, mask, image):
        emb = self.time(t) + self.clip_emb(image) + self.text_feat_proj(pooled)
        words = self.text_seq_proj(hidden).permute(0, 2, 1)
        extra = self.clip_tok_proj(image).reshape(len(image), -1, self.tokens)
        bias = torch.where(F.pad(mask, (self.tokens, 0), value=True), 0.0, -torch.inf)
        return self.run(x, emb, torch.cat([extra, words], 2), bias)


def original_upscaler() -> nn.Module:
    pair = nn.Module()
    pair.model_first_steps = OriginalUNet(6, 3, (32, 64), 1)
    pair.model_last_step = OriginalUNet(6, 3, (32, 64), 1)
    return pair


# -- OpenAI's CLIP -----------------------------------------------------------------------------


class StackedAttention(nn.Module):
    """nn.MultiheadAttention's parameters, spelled out so that TorchScript takes it as it is."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.zeros(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b, n, width = x.shape
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias).view(b, n, 3, self.heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5) + mask
        return self.out_proj((scores.softmax(-1) @ v).transpose(1, 2).reshape(b, n, width))


class ClipMLP(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.c_fc(x)
        return self.c_proj(h * torch.sigmoid(1.702 * h))


class ClipBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = StackedAttention(width, heads)
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = ClipMLP(width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x), mask)
        return x + self.mlp(self.ln_2(x))


class ClipTransformer(nn.Module):
    def __init__(self, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.resblocks = nn.ModuleList(ClipBlock(width, heads) for _ in range(layers))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for block in self.resblocks:
            x = block(x, mask)
        return x


class ClipVision(nn.Module):
    def __init__(self, width: int, layers: int, heads: int, dim: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 8, stride=8, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.positional_embedding = nn.Parameter(torch.zeros(17, width))
        self.ln_pre, self.ln_post = nn.LayerNorm(width), nn.LayerNorm(width)
        self.transformer = ClipTransformer(width, layers, heads)
        self.proj = nn.Parameter(torch.zeros(width, dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.conv1(x).flatten(2).permute(0, 2, 1)
        first = self.class_embedding.expand(x.shape[0], 1, -1)
        h = self.ln_pre(torch.cat([first, patches], 1) + self.positional_embedding)
        h = self.transformer(h, torch.zeros(1))
        return self.ln_post(h[:, 0]) @ self.proj


class OriginalClip(nn.Module):
    """Both towers, 32-pixel pictures in 8-pixel patches."""

    def __init__(self, vocabulary: int, width: int = 32, dim: int = 24, heads: int = 2) -> None:
        super().__init__()
        self.visual = ClipVision(48, 2, 3, dim)
        self.transformer = ClipTransformer(width, 2, heads)
        self.token_embedding = nn.Embedding(vocabulary, width)
        self.positional_embedding = nn.Parameter(torch.zeros(77, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.zeros(width, dim))
        self.logit_scale = nn.Parameter(torch.zeros([]))
        for name, value in (("input_resolution", 32), ("context_length", 77)):
            self.register_buffer(name, torch.tensor(value))

    def forward(self, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        n = ids.shape[1]
        causal = torch.full((n, n), float("-inf")).triu(1)
        h = self.transformer(self.token_embedding(ids) + self.positional_embedding[:n], causal)
        h = self.ln_final(h)
        return h, h[torch.arange(ids.shape[0]), ids.argmax(-1)] @ self.text_projection

"""Small minDALL-E checkpoints in the original layout, written for these tests.

Key names, shapes and arithmetic are the original repository's (kakaobrain/minDALL-E); the VQGAN
computes what the original computes, so that the key map can be proven by equal outputs.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from .draw import random
from .karlo_originals import scramble

SIZE = 16
CODES, WIDTH, GRID, TEXT = 24, 32, 4, 6
VOCABULARY = ["[PAD]", "[UNK]", *"abcdert", "e</w>", "d</w>", "a</w>", "t</w>", "re", "red</w>"]
MERGES = ["r e", "re d</w>"]


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(32, channels, eps=1e-6)


class Resnet(nn.Module):
    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = norm(cin), norm(cout)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        if cin != cout:
            self.nin_shortcut = nn.Conv2d(cin, cout, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x) + h


class Attention(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(c, c, 1) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm(x)
        q, k, v = (part(h).flatten(2) for part in (self.q, self.k, self.v))
        weights = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(2)
        return x + self.proj_out((v @ weights.transpose(1, 2)).view_as(x))


class Level(nn.Module):
    def __init__(self, cin: int, cout: int, blocks: int, attends: bool, resample: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(Resnet(cout if i else cin, cout) for i in range(blocks))
        self.attn = nn.ModuleList(Attention(cout) for i in range(blocks if attends else 0))
        if resample:
            conv = nn.Conv2d(cout, cout, 3, padding=1 if resample == "upsample" else 0)
            self.add_module(resample, nn.ModuleDict({"conv": conv}))
            if resample == "downsample":
                conv.stride = (2, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            x = self.attn[i](x) if len(self.attn) else x
        if hasattr(self, "downsample"):
            x = self.downsample["conv"](F.pad(x, (0, 1, 0, 1)))
        if hasattr(self, "upsample"):
            x = self.upsample["conv"](F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return x


class Middle(nn.Module):
    def __init__(self, c: int) -> None:
        super().__init__()
        self.block_1, self.attn_1, self.block_2 = Resnet(c, c), Attention(c), Resnet(c, c)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, attends: set[int], z: int) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Level(widths[max(i - 1, 0)], w, blocks, i in attends, "downsample" if i < last else "")
            for i, w in enumerate(widths)
        )
        self.mid, self.norm_out = Middle(widths[-1]), norm(widths[-1])
        self.conv_out = nn.Conv2d(widths[-1], z, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, widths: list[int], blocks: int, attends: set[int], z: int) -> None:
        super().__init__()
        self.conv_in, self.mid = nn.Conv2d(z, widths[-1], 3, padding=1), Middle(widths[-1])
        before = [*widths[1:], widths[-1]]
        self.up = nn.ModuleList(
            Level(before[i], w, blocks + 1, i in attends, "upsample" if i else "")
            for i, w in enumerate(widths)
        )
        self.norm_out, self.conv_out = norm(widths[0]), nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.mid(self.conv_in(x))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class OriginalVQGAN(nn.Module):
    """The published tokenizer; the defaults are tiny: 16 pixels, 4x4 codes."""

    def __init__(
        self,
        widths: tuple[int, ...] = (32, 32, 64),
        blocks: int = 1,
        attends: tuple[int, ...] = (2,),
        z: int = 8,
        embed: int = 8,
        codes: int = CODES,
    ) -> None:
        super().__init__()
        self.encoder = Encoder(list(widths), blocks, set(attends), z)
        self.decoder = Decoder(list(widths), blocks, set(attends), z)
        self.quantize = nn.ModuleDict({"embedding": nn.Embedding(codes, embed)})
        self.quant_conv, self.post_quant_conv = nn.Conv2d(z, embed, 1), nn.Conv2d(embed, z, 1)

    def get_codes(self, x: torch.Tensor) -> torch.Tensor:
        z = self.quant_conv(self.encoder(x)).permute(0, 2, 3, 1)
        book = self.quantize["embedding"].weight
        flat = z.reshape(-1, book.shape[1])
        d = (flat**2).sum(1, keepdim=True) + (book**2).sum(1) - 2 * flat @ book.T
        return d.argmin(1).view(z.shape[:3])

    def decode_code(self, codes: torch.Tensor) -> torch.Tensor:
        quant = self.quantize["embedding"](codes).permute(0, 3, 1, 2)
        return self.decoder(self.post_quant_conv(quant))


def vqgan(**sizes) -> OriginalVQGAN:
    network = scramble(OriginalVQGAN(**sizes), 1)
    # Entries where the encoder's outputs are, so that many of them are chosen.
    network.quantize["embedding"].weight.data = random(*network.quantize["embedding"].weight.shape)
    return network


def transformer(kind: str, layers: int = 2, codes: int = CODES) -> dict[str, torch.Tensor]:
    """A state dict of ``Transformer1d`` (text), or of ``iGPT`` (class, unconditional)."""
    w = WIDTH
    shapes = {"tok_emb_img.weight": (codes, w), "pos_emb_img.weight": (GRID**2, w)}
    if kind == "text":
        words = len(VOCABULARY)
        shapes |= {"tok_emb_txt.weight": (words, w), "pos_emb_txt.weight": (TEXT, w)}
        shapes |= {"head_img.weight": (codes, w), "head_txt.weight": (words, w)}
    else:
        shapes |= {"sos.weight": (5, w)} if kind == "class" else {"sos": (1, 1, w)}
        shapes |= {"head.weight": (codes, w)}
    for i in range(layers):
        for name in ("attn.key", "attn.query", "attn.value", "attn.proj"):
            shapes |= {f"blocks.{i}.{name}.weight": (w, w), f"blocks.{i}.{name}.bias": (w,)}
        shapes |= {f"blocks.{i}.mlp.0.weight": (4 * w, w), f"blocks.{i}.mlp.0.bias": (4 * w,)}
        shapes |= {f"blocks.{i}.mlp.2.weight": (w, 4 * w), f"blocks.{i}.mlp.2.bias": (w,)}
        for name in ("ln1", "ln2"):
            shapes |= {f"blocks.{i}.{name}.weight": (w,), f"blocks.{i}.{name}.bias": (w,)}
    shapes |= {"ln_f.weight": (w,), "ln_f.bias": (w,)}
    return {key: 0.1 * random(*shape, seed=i) for i, (key, shape) in enumerate(shapes.items())}


def write_tokenizer(folder: Path, words: list[str] | None = None) -> None:
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    ids = {word: i for i, word in enumerate(words or VOCABULARY)}
    (folder / "tokenizer" / "bpe-16k-vocab.json").write_text(json.dumps(ids))
    merges = "\n".join(["#version: 0.2 - Trained", *MERGES]) + "\n"
    (folder / "tokenizer" / "bpe-16k-merges.txt").write_text(merges)


YAML = f"""
stage1: {{type: vqgan, hparams: {{resolution: {SIZE}, ch: 32, ch_mult: [1, 1, 2]}}}}
stage2:
  type: transformer1d
  hparams: {{embed_dim: {WIDTH}, n_heads: 4, gelu_use_approx: False}}
"""


def write_original(folder: Path, kind: str = "text") -> Path:
    """The whole original folder."""
    write_tokenizer(folder)
    torch.save({"state_dict": vqgan().state_dict()}, folder / "stage1_last.ckpt")
    torch.save({"state_dict": transformer(kind)}, folder / "stage2_last.ckpt")
    (folder / "config.yaml").write_text(YAML)
    return folder

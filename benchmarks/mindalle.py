"""minDALL-E's sampler: PriorArt against the published loop on the same random weights.

    python benchmarks/mindalle.py --size true --batch 1 4 16 --tokens 256 --runs 3 --json out.json

The peer does what the published loop does, its waste included: every candidate's prompt is run, the
cache is stacked and joined anew for each token, positions are rebuilt. (On a CPU its autocast does
nothing.) Both sides draw from one stream per candidate, and their tokens must be equal. One
process, runs alternate, the median counts; processor time is printed beside, the steadier of the
two on a busy machine. Peak memory includes the weights.

`--dtype bfloat16` lets our side compute in bf16, against the peer in fp32: half the weights to read
for each token, but other tokens, which are counted. `--compile` compiles our side's blocks.
`--memory 96` instead of all that samples so many candidates once, decodes some of them, and prints
our peak memory beside weights plus keys and values.

`--device cuda` has the peer run as published there: fp32 weights under fp16 autocast, and drawing
on the device, so that tokens are not compared. Our side draws on the CPU as everywhere. Beside the
times stands the limit: the time that reading weights, keys and values takes at the speed at which
this device reads memory.

`--original DIR` measures kakaobrain's own code too: DIR holds its package `dalle`, made to import
on this Python (2021's `utils/config.py` needs `field(default_factory=...)`), and what that imports
is installed. Only where its draws come from is changed: one stream per candidate.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from diffusers import VQModel
from measure import MIB, alternate, machine, measure, print_table, write
from torch import Tensor, nn

from prior_art.networks.mindalle import ARConfig, ARTransformer, Block
from prior_art.networks.mindalle_vqgan import decode
from prior_art.samplers.mindalle import Draw, sample_tokens
from prior_art.samplers.parts.noise import Noise, generators

# Layers, width, heads.
SIZES = {"true": (42, 1536, 24), "small": (12, 512, 8), "embedded": (6, 128, 2)}
Work = Callable[[ARTransformer, Tensor, int], Tensor]
SEED, TOP_K = 7, 256


def make(size: str, tokens: int, device: torch.device) -> ARTransformer:
    """Random weights of the published deviation."""
    torch.manual_seed(1)
    with torch.device("meta"):
        network = ARTransformer(ARConfig(*SIZES[size], image_tokens=tokens))
    network = network.to_empty(device=device)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    network.initialise()
    return network.eval().requires_grad_(False)


# --------------------------------------------------------------------- the peer, as published


def positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1], device=ids.device).repeat(len(ids), 1)


def attention(block: Block, x: Tensor, past: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attended values, and this call's keys and values ``[2, B * heads, T, head_dim]``."""
    attn = block.attn
    rows, count, width = x.shape
    # Heads are cut out of a [T, B, W] layout, as published.
    x = x.transpose(0, 1).contiguous()
    k, q, v = (
        layer(x).view(count, rows * attn.heads, width // attn.heads).transpose(0, 1)
        for layer in (attn.key, attn.query, attn.value)
    )
    present = torch.stack([k, v])
    if past is not None:
        k, v = torch.cat([past[0], k], dim=1), torch.cat([past[1], v], dim=1)
    scores = torch.bmm(q, k.transpose(1, 2) * (1 / math.sqrt(k.shape[2])))
    if past is None:
        causal = torch.ones(count, count, device=x.device).tril()[None]
        scores = scores.masked_fill(causal == 0, -math.inf)
    y = torch.bmm(scores.softmax(dim=-1), v)
    y = attn.proj(y.transpose(0, 1).contiguous().view(count, rows, width))
    return y.transpose(0, 1).contiguous(), present


def forward(network: ARTransformer, x: Tensor, past: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits after the last token, and all layers' new keys and values."""
    joined = torch.cat(past, dim=3) if past else None  # the whole cache, for every token
    presents = []
    for i, block in enumerate(network.blocks):
        y, present = attention(block, block.ln1(x), None if joined is None else joined[i])
        presents.append(present)
        x = x + y
        x = x + block.mlp(block.ln2(x))
    logits = network.head_img(network.ln_f(x)[:, -1].contiguous())
    return logits, torch.stack(presents).clone()


@torch.no_grad()
def peer(network: ARTransformer, prompt: Tensor, count: int) -> Tensor:
    draw = multinomial(count, prompt.device)
    prompts = prompt.repeat_interleave(count, dim=0)
    prompt_positions = positions(prompts)
    tokens: Tensor | None = None
    past: list[Tensor] = []
    for done in range(network.config.image_tokens):
        if tokens is None:
            x = network.tok_emb_txt(prompts) + network.pos_emb_txt(prompt_positions)
        else:
            given = tokens.clone()
            places = positions(given)[:, done - 1, None]
            x = network.tok_emb_img(given[:, done - 1, None]) + network.pos_emb_img(places)
        with torch.autocast("cuda", torch.float16, enabled=x.is_cuda):
            logits, present = forward(network, x, past)
        past.append(present)
        logits = logits.float() / 1.0
        cut = logits.clone()
        cut[cut < logits.topk(TOP_K).values[:, -1:]] = -math.inf
        drawn = draw(F.softmax(cut, dim=-1), 1)
        tokens = drawn if tokens is None else torch.cat([tokens, drawn], dim=1)
    return tokens


def multinomial(count: int, device: torch.device) -> Callable[[Tensor, int], Tensor]:
    """``torch.multinomial``, on a CPU with a stream for each row."""
    if device.type == "cuda":
        stream = torch.Generator(device).manual_seed(SEED)
        return partial(torch.multinomial, generator=stream)
    streams, drawn = generators(SEED, count), torch.multinomial

    def of_streams(p: Tensor, num_samples: int) -> Tensor:
        rows = zip(p, streams, strict=True)
        return torch.stack([drawn(row, num_samples, generator=g) for row, g in rows])

    return of_streams


def original(folder: Path, network: ARTransformer) -> tuple[Work, nn.Module]:
    """kakaobrain's own loop in ``folder`` on the same weights, and its model's last layer."""
    sys.path.insert(0, str(folder))
    from dalle.models.stage2.transformer import Transformer1d
    from dalle.utils.sampling import sampling

    config = network.config
    settings = SimpleNamespace(
        embed_dim=config.width,
        n_layers=config.layers,
        n_heads=config.heads,
        n_dense_layers=config.layers,
        ctx_len_img=config.image_tokens,
        ctx_len_txt=config.text_tokens,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        attn_pdrop=0.0,
        mlp_bias=True,
        attn_bias=True,
        gelu_use_approx=False,
        use_head_txt=True,
        n_classes=None,
    )
    model = Transformer1d(config.text_vocab, config.image_vocab, settings)
    model.load_state_dict(network.state_dict(), assign=True)
    model.eval().to(network.pos_emb_img.weight.device)

    def work(_: ARTransformer, prompt: Tensor, count: int) -> Tensor:
        with mock.patch("torch.multinomial", multinomial(count, prompt.device)):
            return sampling(
                model,
                prompt.repeat_interleave(count, dim=0),
                top_k=TOP_K,
                is_tqdm=False,
                use_fp16=prompt.is_cuda,
                max_seq_len=config.image_tokens,
            )

    return work, model.head_img


def ours(network: ARTransformer, prompt: Tensor, count: int, **options: Any) -> Tensor:
    """Our sampler's tokens; ``options`` are :class:`Draw`'s."""
    weight = network.pos_emb_img.weight
    draw = Draw(Noise.seeded(SEED, count), weight.device, weight.dtype, top_k=TOP_K, **options)
    return sample_tokens(network, prompt, draw)


def in_dtype(network: ARTransformer, dtype: torch.dtype) -> ARTransformer:
    """A copy of the network in ``dtype``: our side stores weights in an order of its own."""
    with torch.device("meta"):
        other = ARTransformer(network.config)
    weights = {key: tensor.to(dtype, copy=True) for key, tensor in network.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------- measuring


def make_prompt(device: torch.device) -> Tensor:
    ids = torch.randint(16384, (1, 64), generator=torch.Generator().manual_seed(2))
    return ids.to(device)


def held(network: ARTransformer, count: int) -> tuple[float, float]:
    """Bytes of the weights, and of the keys and values of so many candidates' every position."""
    config, size = network.config, network.pos_emb_img.weight.element_size()
    positions = config.context + config.image_tokens * count
    weights = sum(p.numel() for p in network.parameters()) * size
    return weights, 2 * config.layers * config.width * positions * size


def limit(network: ARTransformer, count: int, rate: float) -> float:
    """Seconds in which ``rate`` bytes a second read what all steps must read.

    Each step reads the blocks and the head once, and all keys and values so far.
    """
    config, size = network.config, network.pos_emb_img.weight.element_size()
    used = [*network.blocks.parameters(), *network.head_img.parameters()]
    weights = sum(p.numel() for p in used) * size
    positions = config.context + count * config.image_tokens / 2
    cached = 2 * config.layers * config.width * positions * size
    return config.image_tokens * (weights + cached) / rate


def reading_rate(device: torch.device) -> float:
    """Bytes a second that summing much memory reads here."""
    data = torch.ones(2**29 if device.type == "cuda" else 2**27, device=device)
    times = [measure(device, data.sum)[1]["s"] for _ in range(6)]
    return data.numel() * data.element_size() / min(times[1:])


def print_memory(network: ARTransformer, count: int, device: torch.device) -> None:
    """Peak memory of ``count`` candidates and of decoding, and what weights and cache take of it.

    The VQGAN is the published one, with random weights; eight pictures are decoded at once, which
    is all that further ones need.
    """
    tokens, took = measure(device, lambda: ours(network, make_prompt(device), count))
    weights, cached = (taken / MIB for taken in held(network, count))
    print(
        f"{count} candidates of {tokens.shape[1]} tokens in {took['s']:.0f} s: peak"
        f" {took['peak_mib']:.0f} MiB; weights {weights:.0f}, keys and values {cached:.0f}, the"
        f" rest, with Python and torch, {took['peak_mib'] - weights - cached:.0f}",
        flush=True,
    )
    blocks = 4
    coder = VQModel(
        down_block_types=["DownEncoderBlock2D"] * blocks + ["AttnDownEncoderBlock2D"],
        up_block_types=["AttnUpDecoderBlock2D"] + ["UpDecoderBlock2D"] * blocks,
        block_out_channels=[128, 128, 256, 256, 512],
        layers_per_block=2,
        latent_channels=256,
        vq_embed_dim=256,
        num_vq_embeddings=16384,
        lookup_from_codebook=True,
    )
    coder = coder.to(device).eval().requires_grad_(False)
    codes = torch.randint(16384, (8, 16, 16), device=device)
    _, took = measure(device, lambda: decode(coder, codes))
    print(f"decoding 8 pictures beside it in {took['s']:.0f} s: peak {took['peak_mib']:.0f} MiB")


def compare(
    network: ARTransformer,
    own: ARTransformer,
    peer: tuple[Work, nn.Module],
    name: str,
    count: int,
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Both sides, alternating; medians. ``own`` is our side's, ``name`` says who the peer is.

    Raises:
        SystemExit: their tokens differ, in fp32.
    """
    device = network.pos_emb_img.weight.device
    prompt = make_prompt(device)
    logits: dict[str, Tensor] = {}  # of each side's last token
    seen: list[Tensor] = []
    # On a GPU neither side's draws are the other's, and a network with hooks is not recorded.
    compared = device.type != "cuda"
    hooks = [
        head.register_forward_hook(lambda *call: seen.__setitem__(slice(None), [call[2]]))
        for head in {own.head_img, peer[1]}
        if compared
    ]

    def sampled(side: str, work: Work, with_: ARTransformer) -> Tensor:
        tokens = work(with_, prompt, count)
        if compared:
            logits[side] = seen[-1]
        return tokens

    found, tokens = alternate(
        f"{name}, batch {count}",
        {
            "ours": partial(sampled, "ours", partial(ours, compiled=args.compile), own),
            "peer": partial(sampled, "peer", peer[0], network),
        },
        device,
        args.runs,
        warm=args.size == "small" or device.type == "cuda" or args.compile,
    )
    for hook in hooks:
        hook.remove()
    if None not in (found["ours_peak_mib"], found["peer_peak_mib"]):
        # Each side needs one set of weights, and the other's lies beside it.
        found["ours_peak_mib"] -= held(network, count)[0] / MIB
        found["peer_peak_mib"] -= held(own, count)[0] / MIB
    work = f"{name}, {args.tokens} tokens, batch {count}"
    work += ", ours bf16" if args.dtype == "bfloat16" else ""
    row = {"work": work + (", compiled" if args.compile else ""), "size": args.size} | found
    row["limit_s"] = limit(own, count, args.rate)
    print(f"  reading at {args.rate / 1e9:.1f} GB/s takes at least {row['limit_s']:.4g} s")
    if not compared:
        return row | {"differing_tokens": None, "max_abs_diff": None}
    differing = int((tokens["ours"] != tokens["peer"]).sum())
    if differing and args.dtype == "float32" and not args.compile:
        raise SystemExit(f"{differing} of {tokens['ours'].numel()} tokens differ at batch {count}")
    difference = (logits["ours"].float() - logits["peer"]).abs().max().item()
    return row | {"differing_tokens": differing, "max_abs_diff": difference}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="true")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--original", type=Path, metavar="DIR", help="kakaobrain's code, to run too"
    )
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--compile", action="store_true", help="torch.compile on our side")
    parser.add_argument("--memory", type=int, metavar="N", help="N candidates' peak memory only")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    print(machine(args), flush=True)

    network = make(args.size, args.tokens, device)
    own = in_dtype(network, getattr(torch, args.dtype))
    if args.memory:
        del network
        print_memory(own, args.memory, device)
        return
    args.rate = reading_rate(device)
    peers = {"published loop": (peer, network.head_img)}
    if args.original:
        peers["original code"] = original(args.original, network)
    rows = []
    for (name, side), count in itertools.product(peers.items(), args.batch):
        rows.append(compare(network, own, side, name, count, args))
        write(rows, args)
    print_table(rows)


if __name__ == "__main__":
    main()

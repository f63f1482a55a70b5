"""minDALL-E's sampler: PriorArt against the published loop on the same random weights.

    python benchmarks/mindalle.py --size true --batch 1 4 16 --tokens 256 --runs 3 --json out.json

The peer does what the published loop does, its waste included: every candidate's prompt is run, the
cache is stacked and joined anew for each token, positions are rebuilt. (On a CPU its autocast does
nothing.) Both sides draw from one stream per candidate, and their tokens must be equal. One
process, runs alternate, the median counts; processor time is printed beside, the steadier of the
two on a busy machine. Peak memory includes the weights.

`--dtype bfloat16` lets our side compute in bf16, against the peer in fp32: half the weights to read
for each token, but other tokens, which are counted. `--memory 96` instead of all that samples so
many candidates once and prints our peak memory beside weights plus keys and values.

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
from measure import MIB, alternate, machine, measure, print_table, write
from torch import Tensor, nn

from prior_art.networks.mindalle import ARConfig, ARTransformer, Block
from prior_art.samplers.autoregressive import sample_tokens
from prior_art.samplers.noise import generators

# Layers, width, heads.
SIZES = {"true": (42, 1536, 24), "small": (12, 512, 8)}
CPU = torch.device("cpu")
Work = Callable[[ARTransformer, Tensor, int], Tensor]
SEED, TOP_K = 7, 256


def make(size: str, tokens: int) -> ARTransformer:
    """Random weights of the published deviation."""
    torch.manual_seed(1)
    with torch.device("meta"):
        network = ARTransformer(ARConfig(*SIZES[size], image_tokens=tokens))
    network = network.to_empty(device=CPU)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            module.reset_parameters()
    network.initialise()
    return network.eval().requires_grad_(False)


# --------------------------------------------------------------------- the peer, as published


def positions(ids: Tensor) -> Tensor:
    return torch.arange(ids.shape[1]).repeat(len(ids), 1)


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
        scores = scores.masked_fill(torch.ones(count, count).tril()[None] == 0, -math.inf)
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
    streams = generators(SEED, count)
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
        logits, present = forward(network, x, past)
        past.append(present)
        logits = logits.float() / 1.0
        cut = logits.clone()
        cut[cut < logits.topk(TOP_K).values[:, -1:]] = -math.inf
        p = F.softmax(cut, dim=-1)
        drawn = torch.stack(
            [torch.multinomial(row, 1, generator=g) for row, g in zip(p, streams, strict=True)]
        )
        tokens = drawn if tokens is None else torch.cat([tokens, drawn], dim=1)
    return tokens


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
    model.eval()

    def work(_: ARTransformer, prompt: Tensor, count: int) -> Tensor:
        streams, drawn = generators(SEED, count), torch.multinomial

        def of_streams(p: Tensor, num_samples: int) -> Tensor:
            rows = zip(p, streams, strict=True)
            return torch.stack([drawn(row, num_samples, generator=g) for row, g in rows])

        with mock.patch("torch.multinomial", of_streams):
            return sampling(
                model,
                prompt.repeat_interleave(count, dim=0),
                top_k=TOP_K,
                is_tqdm=False,
                use_fp16=False,
                max_seq_len=config.image_tokens,
            )

    return work, model.head_img


def ours(network: ARTransformer, prompt: Tensor, count: int) -> Tensor:
    return sample_tokens(
        network,
        prompt,
        generators=generators(SEED, count),
        top_k=TOP_K,
        device=CPU,
        dtype=network.pos_emb_img.weight.dtype,
    )


def in_dtype(network: ARTransformer, dtype: torch.dtype) -> ARTransformer:
    """The same weights in ``dtype``; the network itself where it has that."""
    if network.pos_emb_img.weight.dtype == dtype:
        return network
    with torch.device("meta"):
        other = ARTransformer(network.config)
    weights = {key: tensor.to(dtype) for key, tensor in network.state_dict().items()}
    other.load_state_dict(weights, assign=True)
    return other.eval().requires_grad_(False)


# ------------------------------------------------------------------------------------- measuring


def make_prompt() -> Tensor:
    return torch.randint(16384, (1, 64), generator=torch.Generator().manual_seed(2))


def print_memory(network: ARTransformer, count: int) -> None:
    """Peak memory of ``count`` candidates, and what of it weights, keys and values take."""
    tokens, took = measure(CPU, lambda: ours(network, make_prompt(), count))
    config, size = network.config, network.pos_emb_img.weight.element_size()
    weights = sum(p.numel() for p in network.parameters()) * size / MIB
    positions = config.context + config.image_tokens * count
    cached = 2 * config.layers * config.width * positions * size / MIB
    print(
        f"{count} candidates of {tokens.shape[1]} tokens in {took['s']:.0f} s: peak"
        f" {took['peak_mib']:.0f} MiB; weights {weights:.0f}, keys and values {cached:.0f}, the"
        f" rest, with Python and torch, {took['peak_mib'] - weights - cached:.0f}"
    )


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
    prompt = make_prompt()
    logits: dict[str, Tensor] = {}  # of each side's last token
    seen: list[Tensor] = []
    hooks = [
        head.register_forward_hook(lambda *call: seen.__setitem__(slice(None), [call[2]]))
        for head in {own.head_img, peer[1]}
    ]

    def sampled(side: str, work: Work, with_: ARTransformer) -> Tensor:
        tokens = work(with_, prompt, count)
        logits[side] = seen[-1]
        return tokens

    found, tokens = alternate(
        f"{name}, batch {count}",
        {
            "ours": partial(sampled, "ours", ours, own),
            "peer": partial(sampled, "peer", peer[0], network),
        },
        CPU,
        args.runs,
        warm=args.size == "small",
    )
    for hook in hooks:
        hook.remove()
    differing = int((tokens["ours"] != tokens["peer"]).sum())
    if differing and own is network:
        raise SystemExit(f"{differing} of {tokens['ours'].numel()} tokens differ at batch {count}")
    work = f"{name}, {args.tokens} tokens, batch {count}"
    row = {"work": work + (", ours bf16" if own is not network else ""), "size": args.size}
    difference = (logits["ours"].float() - logits["peer"]).abs().max().item()
    return row | found | {"differing_tokens": differing, "max_abs_diff": difference}


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
    parser.add_argument("--memory", type=int, metavar="N", help="N candidates' peak memory only")
    parser.add_argument("--json", type=Path, help="write the rows here")
    args = parser.parse_args()
    args.device = "cpu"
    torch.set_num_threads(args.threads)
    print(machine(args), flush=True)

    network = make(args.size, args.tokens)
    own = in_dtype(network, getattr(torch, args.dtype))
    if args.memory:
        del network
        print_memory(own, args.memory)
        return
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

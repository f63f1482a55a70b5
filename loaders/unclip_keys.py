"""Original unCLIP priors as keys and config of diffusers' class.

What the layout is, read in ``models/prior_model.py`` and ``modules/xf.py`` of the repository that
the system's record names (``readme``): a transformer whose qkv rows are interleaved per head, and
the statistics of the image embedding in a file of their own. Sizes are read off the shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .files.catalogue import System
from .files.checkpoint import CheckpointError, check_inside, read_object
from .guided_diffusion import HEAD_DIM, State, Tensors, check_heads, strip, unlace

STATS = "ViT-L-14_stats.th"

SCHEDULE: dict[str, Any] = {
    # The original clamps the prior's x0 at 10 (prior_model.py); diffusers' JSON says 5.
    "prediction_type": "sample",
    "variance_type": "fixed_small_log",
    "clip_sample": True,
    "clip_sample_range": 10.0,
    "num_train_timesteps": 1000,
}
"""The original's schedule as diffusers' UnCLIPScheduler would write it."""

PRIOR = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "clip_img_proj": "proj_in",
    "text_emb_proj": "embedding_proj",
    "text_enc_proj": "encoder_hidden_states_proj",
    "final_ln": "norm_out",
    "out_proj": "proj_to_clip_embeddings",
}
PRIOR_BLOCK = {
    "ln_1": "norm1",
    "ln_2": "norm3",
    "attn.c_proj": "attn1.to_out.0",
    "mlp.c_fc": "ff.net.0.proj",
    "mlp.c_proj": "ff.net.2",
}
PRIOR_BARE = {"positional_embedding": "positional_embedding", "prd_emb": "prd_embedding"}


def convert_prior(
    state: State,
    stats: tuple[torch.Tensor, torch.Tensor],
    name: str,
    system: System,
    head_dim: int = HEAD_DIM,
) -> tuple[dict[str, Any], Tensors]:
    """Config and keys of diffusers' PriorTransformer.

    Args:
        state: ``state_dict`` of ``prior-ckpt-step=*.ckpt``.
        stats: mean and standard deviation of the image embedding.
        name: the file, for messages; system: whose it is, for them too.
        head_dim: width of an attention head.

    Raises:
        CheckpointError: keys missing or left over, or statistics of another width.
    """
    keys = strip(state, "model.", name, f"{system.title} prior", system.readme)
    width, clip_dim = keys.peek("clip_img_proj.weight").shape
    check_heads(width, head_dim, name)
    out = keys.pairs("", "", PRIOR)
    out |= {new: keys.take(old) for old, new in PRIOR_BARE.items()}
    layers = 0
    while keys.has(f"transformer.resblocks.{layers}.ln_1.weight"):
        old, new = f"transformer.resblocks.{layers}.", f"transformer_blocks.{layers}."
        out |= keys.pairs(old, new, PRIOR_BLOCK)
        for leaf in ("weight", "bias"):
            rows = unlace(keys.take(f"{old}attn.c_qkv.{leaf}"), 3, head_dim)
            out |= {f"{new}attn1.to_{q}.{leaf}": r for q, r in zip("qkv", rows, strict=True)}
        layers += 1
    keys.finish()
    mean, std = stats
    if mean.numel() != clip_dim or std.numel() != clip_dim:
        raise CheckpointError(
            f"'{name}' speaks a {clip_dim}-dimensional embedding, but its {STATS} holds"
            f" {mean.numel()} numbers. Use the statistics that were published with it"
        )
    out |= {"clip_mean": mean.reshape(1, -1), "clip_std": std.reshape(1, -1)}
    config = {
        "num_attention_heads": width // head_dim,
        "attention_head_dim": head_dim,
        "num_layers": layers,
        "embedding_dim": clip_dim,
        "num_embeddings": out["positional_embedding"].shape[1] - 4,
        "additional_embeddings": 4,
    }
    return config, out


def read_stats(
    beside: Path, folders: tuple[Path, ...], system: System
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation from ``ViT-L-14_stats.th`` beside a prior, or in ``folders``.

    Raises:
        CheckpointError: not there, or no pair of vectors.
    """
    found = [beside.parent / STATS]
    for root in folders:
        found += sorted(root.glob(f"**/{STATS}"))
    path = next((file for file in found if file.is_file()), None)
    if path is None:
        raise CheckpointError(
            f"'{beside}' needs {STATS} (mean and deviation of the image embedding) beside it, and"
            f" it is missing. Download it from {system.readme}, or use `{system.download}`"
        )
    check_inside(path, folders)
    value = read_object(path)
    if (
        not isinstance(value, (tuple, list))
        or len(value) != 2
        or not all(isinstance(part, torch.Tensor) for part in value)
        or value[0].numel() != value[1].numel()
    ):
        raise CheckpointError(f"'{path}' holds no (mean, std) pair. Download it again")
    if not all(bool(torch.isfinite(part).all()) for part in value):
        raise CheckpointError(f"'{path}' holds NaN or infinite numbers. Download it again")
    return value[0].detach().flatten(), value[1].detach().flatten()

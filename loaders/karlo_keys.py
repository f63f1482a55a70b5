"""Karlo's original checkpoints (kakaobrain/karlo) as keys and configs of diffusers' classes.

What the original layout is, read in kakaobrain/karlo (``karlo/models``, ``karlo/modules/unet.py``):
guided-diffusion's U-Nets, and layers that turn both embeddings into what they are conditioned on.
"""

from __future__ import annotations

from typing import Any

from .guided_diffusion import HEAD_DIM, State, Taker, Tensors, convert_unet, strip

README = "kakaobrain/karlo's README"
"""Where the originals are linked, for messages."""

DECODER_SCHEDULE: dict[str, Any] = {
    "prediction_type": "epsilon",
    "variance_type": "learned_range",
    "clip_sample": True,
    "clip_sample_range": 1.0,
    "num_train_timesteps": 1000,
}
"""The decoder's schedule of configs/*.yaml as diffusers' UnCLIPScheduler would write it."""

UPSCALER_SCHEDULE = {**DECODER_SCHEDULE, "variance_type": "fixed_small_log"}
"""The same of super-resolution."""

TEXT_PROJ = {
    "text_seq_proj.0": "encoder_hidden_states_proj",
    "text_seq_proj.1": "text_encoder_hidden_states_norm",
    "clip_tok_proj": "clip_extra_context_tokens_proj",
    "text_feat_proj": "embedding_proj",
    "clip_emb": "clip_image_embeddings_project_to_time_embeddings",
}
TEXT_PROJ_BARE = {"cf_param": "learned_classifier_free_guidance_embeddings"}


def convert_decoder(
    state: State, name: str, head_dim: int = HEAD_DIM
) -> tuple[dict[str, Any], Tensors, dict[str, Any], Tensors]:
    """Configs and keys of diffusers' UNet2DConditionModel and of the text projection.

    Args:
        state: ``state_dict`` of ``decoder-ckpt-step=*.ckpt``.
        name: the file, for messages.
        head_dim: width of an attention head.

    Returns:
        ``(unet config, unet keys, projection config, projection keys)``.

    Raises:
        CheckpointError: keys missing or left over.
    """
    keys = strip(state, "model.", name, "Karlo decoder", README)
    projection = keys.pairs("", "", TEXT_PROJ)
    projection |= {new: keys.take(old) for old, new in TEXT_PROJ_BARE.items()}
    config, unet = convert_unet(keys, head_dim)
    config |= {"class_embed_type": "identity", "sample_size": 64}
    context = projection["encoder_hidden_states_proj.weight"].shape[0]
    if config.get("cross_attention_dim") != context:
        raise keys.foreign(["encoder_kv of the text projection's width"], "lacks")
    tokens = projection["clip_extra_context_tokens_proj.weight"].shape[0]
    projection_config = {
        "clip_extra_context_tokens": tokens // context,
        "clip_embeddings_dim": projection["embedding_proj.weight"].shape[1],
        "time_embed_dim": projection["embedding_proj.weight"].shape[0],
        "cross_attention_dim": context,
    }
    keys.finish()
    return config, unet, projection_config, projection


def convert_upscaler(
    state: State, name: str
) -> tuple[dict[str, Any], Tensors, dict[str, Any], Tensors]:
    """Configs and keys of diffusers' UNet2DModel for the first steps and for the last.

    Args:
        state: ``state_dict`` of ``improved-sr-ckpt-step=*.ckpt``.
        name: the file, for messages.

    Returns:
        ``(first config, first keys, last config, last keys)``.

    Raises:
        CheckpointError: keys missing or left over.
    """
    prefixes = ("model_first_steps.", "model_last_step.")
    others = [key for key in state if not key.startswith(prefixes)]
    if others:
        raise Taker({}, name, "Karlo super-resolution", README).foreign(others, "holds unknown")
    out: list[Any] = []
    for prefix in prefixes:
        own = {k: v for k, v in state.items() if k.startswith(prefix)}
        keys = strip(own, prefix, name, "Karlo super-resolution", README)
        config, tensors = convert_unet(keys, HEAD_DIM)
        config |= {"add_attention": False, "sample_size": 256}
        keys.finish()
        out += [config, tensors]
    return out[0], out[1], out[2], out[3]

"""Kandinsky 2.1's original checkpoints (ai-forever/Kandinsky-2) as keys of diffusers' classes.

The decoder's U-Net is guided-diffusion's, as Karlo's is, with bare keys and five layers of its own
for text and image; the MoVQ has taming's VQGAN layout with spatial norms. Both read in
``kandinsky2/model/text2im_model2_1.py`` and ``kandinsky2/vqgan``. Sizes are read off the shapes.
"""

from __future__ import annotations

from typing import Any

from .karlo_original import HEAD_DIM, State, Taker, Tensors, convert_unet
from .vqgan import GROUPS, convert_vqgan

SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "linear",
    "clip_sample": False,
    "set_alpha_to_one": False,
    "steps_offset": 1,
    "prediction_type": "epsilon",
}
"""configs.py's diffusion and the DDIM sampler of ``model/samplers.py`` in diffusers' words."""

CONDITIONING = {
    "to_model_dim_n": "encoder_hid_proj.text_proj",
    "clip_to_seq": "encoder_hid_proj.image_embeds",
    "proj_n": "add_embedding.text_proj",
    "ln_model_n": "add_embedding.text_norm",
    "img_layer": "add_embedding.image_proj",
}


def convert_decoder(
    state: State, name: str, head_dim: int = HEAD_DIM
) -> tuple[dict[str, Any], Tensors]:
    """Config and keys of diffusers' UNet2DConditionModel.

    Args:
        state: of ``decoder_fp16.ckpt`` or ``inpainting_fp16.ckpt``.
        name: the file, for messages.
        head_dim: width of an attention head.

    Raises:
        CheckpointError: keys missing or left over.
    """
    keys = Taker(dict(state), name, "Kandinsky 2.1 decoder", "ai-forever/Kandinsky-2's README")
    tensors = keys.pairs("", "", CONDITIONING)
    config, unet = convert_unet(keys, head_dim)
    keys.finish()
    config |= {
        "sample_size": 64,
        "encoder_hid_dim": tensors["encoder_hid_proj.text_proj.weight"].shape[1],
        "encoder_hid_dim_type": "text_image_proj",
        "addition_embed_type": "text_image",
    }
    return config, unet | tensors


def convert_movq(state: State, name: str, groups: int = GROUPS) -> tuple[dict[str, Any], Tensors]:
    """Config and keys of diffusers' VQModel with spatial norms.

    Args:
        state: of ``movq_final.ckpt``.
        name: the file, for messages.
        groups: of the encoder's norms; shapes cannot tell them.

    Raises:
        CheckpointError: a key that tells a size is missing.
    """
    config, tensors = convert_vqgan(state, name, groups)
    return config | {"norm_type": "spatial"}, tensors

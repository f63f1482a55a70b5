"""Kandinsky 2.1's original checkpoints (ai-forever/Kandinsky-2) as keys of diffusers' classes.

The decoder's U-Net is guided-diffusion's, with bare keys and five layers of its own
for text and image; the MoVQ has taming's VQGAN layout with spatial norms. Both read in
``kandinsky2/model/text2im_model2_1.py`` and ``kandinsky2/vqgan``. Sizes are read off the shapes.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from ..samplers.kandinsky_schedule import LatentSchedule, last_sums, up_to_share, whole_strides
from ..samplers.parts.schedule import sums
from .guided_diffusion import HEAD_DIM, State, Taker, Tensors, convert_unet
from .taming import GROUPS, convert_vqgan

README = "ai-forever/Kandinsky-2's README"
"""Where the originals are linked, for messages."""

START_BETAS = 0.0001, 0.02
"""Of what noises a picture to begin with, ``q_sample`` of ``utils.py``: not the diffusion's."""

DDIM_SAMPLER = LatentSchedule(
    ancestral=False,
    learned_range=False,
    double_tables=True,
    spacing=whole_strides,
    offset=1,
    strided=False,
    thresholding=False,
    begin=up_to_share,
    start_betas=START_BETAS,
    final_one=False,
)
"""configs.py's diffusion under ``DDIMSampler`` of ``model/samplers.py``."""

P_SAMPLER = LatentSchedule(
    double_tables=True,
    spacing=sums,
    clip_range=2.0,
    clip_first=True,
    largest=math.inf,
    known_in_x0=True,
    begin=last_sums,
    start_betas=START_BETAS,
)
"""``p_sample_loop`` of ``model/gaussian_diffusion.py``, ancestral with learned variance: x0 clamped
to +-2, what inpainting knows put in, and then thresholded. The original takes sample 0's threshold
for the whole batch; here each picture has its own, so that it does not depend on the others."""

SAMPLERS = {
    "ddim_sampler": DDIM_SAMPLER,
    "plms_sampler": replace(DDIM_SAMPLER, multistep=True),
    "p_sampler": P_SAMPLER,
}
"""The original's samplers by its own names; without one it takes the first."""

CONDITIONING = {
    "to_model_dim_n": "encoder_hid_proj.text_proj",
    "clip_to_seq": "encoder_hid_proj.image_embeds",
    "proj_n": "add_embedding.text_proj",
    "ln_model_n": "add_embedding.text_norm",
    "img_layer": "add_embedding.image_proj",
}


def schedule_of(sampler: str, published: LatentSchedule | None = None) -> LatentSchedule:
    """The constants of one of :data:`SAMPLERS`.

    Args:
        published: a hub folder's own, whose betas, and whose start from a picture, are the
            decoder's whatever samples it.
    """
    own = SAMPLERS[sampler]
    if published is None:
        return own
    return replace(
        own,
        beta_start=published.beta_start,
        beta_end=published.beta_end,
        beta_schedule=published.beta_schedule,
        start_betas=published.start_betas,
        num_train_timesteps=published.num_train_timesteps,
    )


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
    keys = Taker(dict(state), name, "Kandinsky 2.1 decoder", README)
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
    cure = f"Use the movq_final.ckpt that {README} links to"
    config, tensors = convert_vqgan(state, name, groups, cure)
    return config | {"norm_type": "spatial"}, tensors

"""Running diffusers' U-Nets over a whole schedule, with nothing computed twice.

What does not change over the steps is computed once: every residual block's projection of the time
embedding, for all steps together, and the keys and values of the conditioning. Everything else
calls diffusers' own leaf modules, which a host may have swapped for ones that move, cast or patch
their weights. A U-Net built of other blocks is called as it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_BLOCKS = {
    "ResnetDownsampleBlock2D",
    "SimpleCrossAttnDownBlock2D",
    "UNetMidBlock2D",
    "UNetMidBlock2DSimpleCrossAttn",
    "ResnetUpsampleBlock2D",
    "SimpleCrossAttnUpBlock2D",
    "DownBlock2D",
    "CrossAttnDownBlock2D",
    "UNetMidBlock2DCrossAttn",
    "UpBlock2D",
    "CrossAttnUpBlock2D",
}
# What the latent decoders have beside: an embedding added to the time's, and image tokens.
_ADDED = (None, "image", "image_hint", "text_image", "text_time")
_PROJECTED = (None, "image_proj", "text_image_proj")


def _blocks(unet: nn.Module) -> list[nn.Module]:
    middle = [] if unet.mid_block is None else [unet.mid_block]  # some have none
    return [*unet.down_blocks, *middle, *unet.up_blocks]


def _attentions(block: nn.Module) -> list[nn.Module | None]:
    """The attention beside each residual block; None where there is none."""
    found = list(getattr(block, "attentions", None) or [])
    return found or [None] * len(block.resnets)


def _resnets(unet: nn.Module) -> list[nn.Module]:
    found = []
    for block in _blocks(unet):
        found += block.resnets
        for name in ("downsamplers", "upsamplers"):
            found += [r for r in getattr(block, name, None) or [] if hasattr(r, "time_emb_proj")]
    return found


def _transformer_blocks(unet: nn.Module) -> list[nn.Module]:
    found: list[nn.Module] = []
    for block in _blocks(unet):
        for attention in _attentions(block):
            found += getattr(attention, "transformer_blocks", [])
    return found


def _is_known_transformer(transformer: nn.Module) -> bool:
    """Whether this is SDXL's: linear projections around self- and cross-attention and a GEGLU."""
    return (
        type(transformer).__name__ == "Transformer2DModel"
        and transformer.is_input_continuous
        and transformer.use_linear_projection
        and all(
            block.norm_type == "layer_norm"
            and block.pos_embed is None
            and block.attn2 is not None
            and not block.only_cross_attention
            and type(block.ff.net[0]).__name__ == "GEGLU"
            and all(
                type(a.processor).__name__ == "AttnProcessor2_0"
                and not (a.group_norm or a.spatial_norm or a.norm_cross)
                and not (a.norm_q or a.norm_k or a.residual_connection)
                and a.rescale_output_factor == 1
                for a in (block.attn1, block.attn2)
            )
            for block in transformer.transformer_blocks
        )
    )


def is_known(unet: nn.Module) -> bool:
    """Whether this U-Net is built of the blocks, and only those, that `Run` knows."""
    config = getattr(unet, "config", None)
    if config is None or any(type(block).__name__ not in _BLOCKS for block in _blocks(unet)):
        return False
    resnets = all(
        type(r).__name__ == "ResnetBlock2D"
        and r.time_emb_proj is not None
        and r.time_embedding_norm in ("default", "scale_shift")
        for r in _resnets(unet)
    )
    attentions = all(
        a is None
        or _is_known_transformer(a)
        or (
            type(a.processor).__name__.startswith("AttnAddedKVProcessor")
            and not a.norm_cross
            and not a.only_cross_attention
        )
        for block in _blocks(unet)
        for a in _attentions(block)
    )
    return (
        resnets
        and attentions
        and not config.center_input_sample
        and config.time_embedding_type == "positional"
        and config.class_embed_type in (None, "identity")
        and not getattr(config, "class_embeddings_concat", False)
        and getattr(config, "addition_embed_type", None) in _ADDED
        and getattr(config, "encoder_hid_dim_type", None) in _PROJECTED
        and getattr(unet, "time_embed_act", None) is None
        and unet.conv_norm_out is not None
        and not unet.training
    )


class Run:
    """One U-Net over one schedule; called with a picture and the index of the step.

    Args:
        unet: diffusers' ``UNet2DConditionModel`` or ``UNet2DModel``, see :func:`is_known`.
        timesteps: the schedule, first step first.
        context: tokens to attend to ``[R, L, C]``; extra: added to the time embedding ``[R, T]``;
            mask: of the context ``[R, L]`` bool.
    """

    def __init__(
        self,
        unet: nn.Module,
        timesteps: Sequence[float],
        context: Tensor | None = None,
        extra: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> None:
        self.unet, self.timesteps = unet, timesteps
        # Tokens to attend to [R, L, C], what is added to the time embedding [R, T], mask [R, L].
        self.context, self.extra, self.mask = context, extra, mask
        self.times: dict[nn.Module, Tensor] = {}  # of each residual block [steps, R or 1, C]
        self.added: dict[nn.Module, tuple[Tensor, Tensor]] = {}  # keys and values of the context
        self.biases: dict[int, Tensor] = {}  # attention mask by number of pixels

    def _prepare(self, x: Tensor) -> None:
        """Compute what does not depend on the picture, on the device and in the dtype of `x`."""
        unet = self.unet
        steps = torch.tensor(self.timesteps, device=x.device)
        embedding = unet.time_embedding(unet.time_proj(steps).to(x.dtype))[:, None]
        if self.extra is not None:
            embedding = embedding + self.extra.to(x.dtype)[None]
        self.times = {
            r: r.time_emb_proj(embedding if r.skip_time_act else r.nonlinearity(embedding))
            for r in _resnets(unet)
        }
        if self.context is not None:
            for attention in (a for b in _blocks(unet) for a in _attentions(b) if a is not None):
                if hasattr(attention, "add_k_proj"):
                    self._hold(attention, attention.add_k_proj, attention.add_v_proj)
            for block in _transformer_blocks(unet):
                self._hold(block.attn2, block.attn2.to_k, block.attn2.to_v)

    def _hold(self, attention: nn.Module, key: nn.Module, value: nn.Module) -> None:
        """Keep the context's keys and values, which no step changes."""
        self.added[attention] = tuple(
            self._heads(attention, project(self.context)) for project in (key, value)
        )

    @torch.no_grad()
    def __call__(self, x: Tensor, index: int) -> Tensor:
        """``[R, C, h, w]`` at step ``index`` → the network's answer ``[R, C', h, w]``."""
        if not self.times:
            self._prepare(x)
        unet = self.unet
        x = unet.conv_in(x)
        skips = [x]
        for block in unet.down_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                x = self._attend(attention, self._resnet(resnet, x, index))
                skips.append(x)
            for resample in block.downsamplers or ():
                x = self._resample(resample, x, index)
                skips.append(x)
        if unet.mid_block is not None:
            first, *rest = unet.mid_block.resnets
            x = self._resnet(first, x, index)
            for resnet, attention in zip(rest, unet.mid_block.attentions, strict=True):
                x = self._resnet(resnet, self._attend(attention, x), index)
        for block in unet.up_blocks:
            for resnet, attention in zip(block.resnets, _attentions(block), strict=True):
                x = self._resnet(resnet, torch.cat([x, skips.pop()], dim=1), index)
                x = self._attend(attention, x)
            for resample in block.upsamplers or ():
                # An odd side halved and doubled is one longer than the skip beside it.
                size = skips[-1].shape[2:] if skips else None
                x = self._resample(resample, x, index, size)
        return unet.conv_out(unet.conv_act(unet.conv_norm_out(x)))

    def _resample(
        self, block: nn.Module, x: Tensor, index: int, size: torch.Size | None = None
    ) -> Tensor:
        """Half or twice the size: by a residual block, or by SDXL's convolution."""
        if block in self.times:
            return self._resnet(block, x, index)
        double = (2 * x.shape[2], 2 * x.shape[3])
        return block(x) if size in (None, double) else block(x, size)

    def _resnet(self, block: nn.Module, x: Tensor, index: int) -> Tensor:
        """A residual block with the time embedding of this step."""
        time = self.times[block][index]
        hidden = block.nonlinearity(block.norm1(x))
        for resample in (block.upsample, block.downsample):
            if resample is not None:
                x, hidden = resample(x), resample(hidden)
        hidden = block.conv1(hidden)
        if block.time_embedding_norm == "default":
            hidden = block.norm2(hidden + time[:, :, None, None])
        else:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)
            hidden = block.norm2(hidden) * (1 + scale) + shift
        hidden = block.conv2(block.nonlinearity(hidden))
        if block.conv_shortcut is not None:
            x = block.conv_shortcut(x)
        hidden = hidden + x
        return hidden if block.output_scale_factor == 1 else hidden / block.output_scale_factor

    def _heads(self, attention: nn.Module, x: Tensor) -> Tensor:
        """``[R, tokens, C]`` to ``[R, heads, tokens, C / heads]``."""
        return x.unflatten(2, (attention.heads, -1)).transpose(1, 2)

    def _attend(self, attention: nn.Module | None, x: Tensor) -> Tensor:
        """Attention of the pixels to the context and to themselves."""
        if attention is None:
            return x
        if hasattr(attention, "transformer_blocks"):
            return self._transform(attention, x)
        tokens = x.flatten(2).transpose(1, 2)
        normed = attention.group_norm(x).flatten(2).transpose(1, 2)
        query, key, value = (
            self._heads(attention, project(normed))
            for project in (attention.to_q, attention.to_k, attention.to_v)
        )
        added_key, added_value = self.added[attention]
        pixels = tokens.shape[1]
        if self.mask is not None and pixels not in self.biases:
            bias = (1 - self.mask.to(x.dtype)) * -10000.0
            self.biases[pixels] = F.pad(bias, (0, pixels))[:, None, None]
        out = F.scaled_dot_product_attention(
            query,
            torch.cat([added_key, key], dim=2),
            torch.cat([added_value, value], dim=2),
            attn_mask=self.biases.get(pixels),
        )
        out = attention.to_out[0](out.transpose(1, 2).flatten(2)) + tokens
        return out.transpose(1, 2).unflatten(2, x.shape[2:])

    def _transform(self, transformer: nn.Module, x: Tensor) -> Tensor:
        """SDXL's transformer: self-attention, attention to the text, a gated layer; L times."""
        tokens = transformer.proj_in(transformer.norm(x).flatten(2).transpose(1, 2))
        for block in transformer.transformer_blocks:
            own, text = block.attn1, block.attn2
            normed = block.norm1(tokens)
            query, key, value = (
                self._heads(own, project(normed)) for project in (own.to_q, own.to_k, own.to_v)
            )
            tokens = self._joined(own, query, key, value) + tokens
            query = self._heads(text, text.to_q(block.norm2(tokens)))
            tokens = self._joined(text, query, *self.added[text]) + tokens
            gated, gate = block.ff.net[0].proj(block.norm3(tokens)).chunk(2, dim=-1)
            tokens = block.ff.net[2](F.gelu(gate).mul_(gated)) + tokens
        tokens = transformer.proj_out(tokens)
        return tokens.transpose(1, 2).unflatten(2, x.shape[2:]) + x

    def _joined(self, attention: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = F.scaled_dot_product_attention(query, key, value)
        return attention.to_out[0](out.transpose(1, 2).flatten(2))

"""VQGAN: pictures to codes and back. LATENT holds the codebook's entries, found again as codes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..edges import check_image, latent_of
from ..host import host, io
from ..networks.mindalle_vqgan import HELD_DECODING, codes_of, decode, embeddings, encode
from ..samplers.parts.chunks import in_chunks
from .pictures import fit, from_image, to_image

CODES = "A picture's codes as text, a line for each row of the grid, for Preview as Text."


class VQGANEncode(io.ComfyNode):
    """A picture's codes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtVQGANEncode",
            display_name="VQGAN Encode",
            category="PriorArt/encode",
            description="Turns pictures into codes as published: resized and cropped to the size"
            " that the model was made for, then the nearest entries of the codebook. Native VAE"
            " Encode takes pictures of any size.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load VQGAN."),
                io.Image.Input(
                    "image",
                    tooltip="Pictures of any size. What is not square or has another size is"
                    " resized and cropped, with a warning.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="For AR Complete, AR Score and VAE Decode."
                ),
                io.String.Output(display_name="codes", is_output_list=True, tooltip=CODES),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, image: Any) -> io.NodeOutput:
        codes, network = encode_image(vae, image, "image")
        return io.NodeOutput(to_latent(network, codes), as_text(codes))


class VQGANDecode(io.ComfyNode):
    """The picture of codes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PriorArtVQGANDecode",
            display_name="VQGAN Decode",
            category="PriorArt/sample",
            description="Finds the codes nearest to a latent and decodes them, some pictures at a"
            " time, as many as memory allows. Native VAE Decode gives the same pictures.",
            inputs=[
                io.Vae.Input("vae", tooltip="From Load VQGAN."),
                io.Latent.Input("samples", tooltip="From AR Sample, VQGAN Encode or VAE Encode."),
            ],
            outputs=[
                io.Image.Output(display_name="image", tooltip="The pictures."),
                io.String.Output(display_name="codes", is_output_list=True, tooltip=CODES),
            ],
        )

    @classmethod
    def execute(cls, vae: Any, samples: dict) -> io.NodeOutput:
        latent = latent_of(samples, "samples")
        managed, _ = host.open_vqgan(vae)
        network, device, _ = host.use(managed)
        codes = codes_of(network, latent.to(device), "samples")
        return io.NodeOutput(decode_codes(vae, codes), as_text(codes))


def encode_image(vae: Any, image: torch.Tensor, name: str) -> tuple[torch.Tensor, nn.Module]:
    """Codes ``[B, h, w]`` of an IMAGE, fitted to the VQGAN, and the network on its device."""
    check_image(image, name)
    managed, vqgan = host.open_vqgan(vae)
    pixels = from_image(fit(image, vqgan.image_size, name))
    network, device, dtype = host.use(managed, memory_required=_bytes(pixels[0, 0].numel()))
    codes = in_chunks(
        lambda rows: encode(network, pixels[rows].to(device, dtype)),
        len(pixels),
        _at_once(pixels[0, 0].numel()),
    )
    return torch.cat(codes), network


def decode_codes(vae: Any, codes: torch.Tensor) -> torch.Tensor:
    """IMAGE of codes ``[B, h, w]``, in chunks that fit into memory."""
    managed, vqgan = host.open_vqgan(vae)
    pixels = codes[0].numel() * vqgan.factor**2
    network, device, _ = host.use(managed, memory_required=_bytes(pixels))
    update = host.progress(len(codes))

    def work(rows: slice) -> torch.Tensor:
        part = codes[rows].to(device)
        image = host.offload(to_image(decode(network, part).float()))
        update(rows.start + len(part))
        return image

    return torch.cat(in_chunks(work, len(codes), _at_once(pixels)))


def to_latent(network: nn.Module, codes: torch.Tensor) -> dict[str, torch.Tensor]:
    """LATENT of codes ``[B, h, w]`` on the network's device."""
    return {"samples": host.offload(embeddings(network, codes).float())}


def as_text(codes: torch.Tensor) -> list[str]:
    """Codes ``[B, h, w]`` as one text a picture, a line a row."""
    return ["\n".join(" ".join(map(str, row)) for row in picture) for picture in codes.tolist()]


def _bytes(pixels: int) -> int:
    return HELD_DECODING * pixels * 4


def _at_once(pixels: int) -> int:
    """How many pictures of so many pixels fit into the memory that is free."""
    return max(1, host.free_memory() // _bytes(pixels))

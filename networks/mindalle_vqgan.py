"""minDALL-E's VQGAN as functions: pictures to codes, codes to embeddings, embeddings to pictures.

The network is diffusers' ``VQModel``; what is here is the arithmetic of the published tokenizer
around it (kakaobrain/minDALL-E, ``dalle/models/stage1/vqgan.py``). LATENT holds the embeddings of
the codes; codes are found again with :func:`codes_of`, so nothing that travels beside a LATENT can
go stale. Pictures are ``[B, 3, H, W]`` in -1..1 and may lie a little outside after decoding.
"""

from __future__ import annotations

import torch
from torch import nn

from ..edges import EdgeError
from . import autoencoder

REFINED = 8
"""How many near entries :func:`codes_of` measures exactly."""


@torch.no_grad()
def encode(network: nn.Module, pictures: torch.Tensor) -> torch.Tensor:
    """Codes ``[B, h, w]`` long of pictures, the published argmin.

    Each picture is measured alone: its codes do not depend on the batch, and the distances of one
    picture (16 MB at the published size) are all that is held.

    Args:
        network: a ``VQModel``.
        pictures: ``[B, 3, H, W]`` in -1..1, in the network's dtype; H and W multiples of the
            network's factor.
    """
    rows = network.quant_conv(network.encoder(pictures))
    book = _book(network, rows.device)
    return torch.stack([_distances(row, book).argmin(1).view(row.shape[1:]) for row in rows])


def embeddings(network: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    """Codebook entries ``[B, D, h, w]`` of codes ``[B, h, w]``, in the codebook's dtype.

    Raises:
        EdgeError: codes that the codebook does not have.
    """
    book = network.quantize.embedding.weight
    if codes.numel() and not (int(codes.min()) >= 0 and int(codes.max()) < book.shape[0]):
        raise EdgeError(
            f"codes from {int(codes.min())} to {int(codes.max())} do not fit this VQGAN, which has"
            f" {book.shape[0]}: they are of a transformer of another model"
        )
    return network.quantize.embedding(codes).permute(0, 3, 1, 2).contiguous()


@torch.no_grad()
def codes_of(network: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Codes ``[B, h, w]`` of the nearest codebook entries of ``latent`` ``[B, D, h, w]``.

    Embeddings of codes give those codes: the usual formula's rounding could confuse close entries,
    so the eight that it finds nearest are measured again by their difference. The lowest code wins
    between equal entries.

    Raises:
        EdgeError: another number of channels: a LATENT of another system.
    """
    book = _book(network, latent.device)
    if latent.ndim != 4 or latent.shape[1] != book.shape[1]:
        raise EdgeError(
            f"a LATENT of shape {list(latent.shape)} is not this VQGAN's, which is"
            f" [B, {book.shape[1]}, h, w]: codebook embeddings"
        )
    codes = []
    for row in latent.float():
        vectors = row.flatten(1).T
        near = _distances(row, book).topk(min(REFINED, len(book)), largest=False).indices
        near = near.sort(1).values
        exact = (book[near] - vectors[:, None]).square().sum(2)
        codes.append(near.gather(1, exact.argmin(1, keepdim=True)).view(row.shape[1:]))
    return torch.stack(codes)


@torch.no_grad()
def decode(network: nn.Module, codes: torch.Tensor) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]`` of codes ``[B, h, w]``; the caller decides how many at once.

    Raises:
        EdgeError: codes that the codebook does not have.
    """
    return decode_embeddings(network, embeddings(network, codes))


@torch.no_grad()
def decode_embeddings(network: nn.Module, latent: torch.Tensor) -> torch.Tensor:
    """Pictures ``[B, 3, H, W]`` of embeddings ``[B, D, h, w]`` as they are, codebook or not."""
    return autoencoder.decode(network.decoder, network.post_quant_conv(latent))


class LatentVQGAN(nn.Module):
    """A VQGAN with the two methods that a host's VAE calls: LATENT is the embeddings of codes."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def encode(self, pictures: torch.Tensor) -> torch.Tensor:
        """Embeddings ``[B, D, h, w]`` of the codes of pictures ``[B, 3, H, W]`` in -1..1."""
        return embeddings(self.network, encode(self.network, pictures))

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Pictures ``[B, 3, H, W]`` of the codes nearest to ``latent`` ``[B, D, h, w]``."""
        return decode(self.network, codes_of(self.network, latent))


def _book(network: nn.Module, device: torch.device) -> torch.Tensor:
    """The codebook where the rows are: a host short of memory leaves it behind."""
    return network.quantize.embedding.weight.to(device, torch.float32)


def _distances(row: torch.Tensor, book: torch.Tensor) -> torch.Tensor:
    """Squared distances ``[h*w, N]`` of one ``[D, h, w]`` to every entry, as published."""
    vectors = row.float().flatten(1).T
    return vectors.square().sum(1, keepdim=True) + book.square().sum(1) - 2 * (vectors @ book.T)

"""Which nodes are ComfyUI's own: ``native_nodes.txt`` lists the ids that v0.33.0 and v0.3.64
register without custom nodes (``/object_info``, entries whose ``python_module`` is not a custom
node's)."""

from __future__ import annotations

from pathlib import Path

TITLES = {
    "LoadImage": "Load Image",
    "SaveImage": "Save Image",
    "PreviewImage": "Preview Image",
    "PreviewAny": "Preview as Text",
    "EmptyLatentImage": "Empty Latent Image",
    "SetLatentNoiseMask": "Set Latent Noise Mask",
    "VAELoader": "Load VAE",
    "VAEDecode": "VAE Decode",
    "VAEDecodeTiled": "VAE Decode (Tiled)",
    "VAEEncode": "VAE Encode",
    "CLIPTextEncode": "CLIP Text Encode (Prompt)",
    "CLIPVisionEncode": "CLIP Vision Encode",
    "ConditioningAverage": "Conditioning (Average)",
    "ImageBatch": "Batch Images (DEPRECATED)",
    "ImageCompositeMasked": "Image Composite Masked",
    "LatentBlend": "Latent Blend",
    "LatentComposite": "Latent Composite",
    "LatentBatch": "Batch Latents (DEPRECATED)",
    "PrimitiveInt": "Int",
}
"""What v0.33.0's editor calls those of its nodes that the runner has, where it is not the id."""

NATIVE_NODES = frozenset(
    Path(__file__).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
)
"""Every id."""

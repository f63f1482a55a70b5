"""Kandinsky 2.1's text model: XLM-RoBERTa and a projection into CLIP's space.

No library has it outside of a pipeline. Source: FreddeFrallan/Multilingual-CLIP; diffusers
``pipelines/kandinsky/text_encoder.py`` for the layout of the files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import Linear


@dataclass(frozen=True)
class TextOutput:
    """Last hidden states ``[B, L, W]`` and projected text embeddings ``[B, D]``."""

    last_hidden_state: torch.Tensor
    text_embeds: torch.Tensor


class MultilingualCLIP(nn.Module):
    """XLM-RoBERTa (transformers' ``XLMRobertaModel``), its masked mean projected."""

    reads_mask = True

    def __init__(self, transformer: nn.Module, width: int, dim: int, config: Any) -> None:
        super().__init__()
        self.config = config
        self.transformer = transformer
        self.LinearTransformation = Linear(width, dim)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> TextOutput:
        """Encode token ids ``[B, L]`` whose mask ``[B, L]`` is 1 on all but padding."""
        hidden = self.transformer(input_ids=input_ids, attention_mask=attention_mask)[0]
        weights = attention_mask.to(hidden)[:, :, None]
        mean = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
        return TextOutput(hidden, self.LinearTransformation(mean))

"""The host's TorchCompileModel on every native MODEL of the pack, inside the host's own Python.

Started like in_process.py, whose start of the host and helpers it uses. What compiles is not asked
here but whether the picture is the same; so the cheapest backends do, and Inductor runs once.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import koala_in_process as koala
from in_process import (
    COMFY,
    FOLDER,
    close,
    comfy,
    core,
    decoder_inputs,
    host,
    load,
    native_sample,
    report,
    tiny,
    torch,
)
from kandinsky_in_process import decoder, ksampler, sampler_custom, sides
from torch._dynamo.utils import counters

from prior_art.host.comfyui import koala as comfy_koala
from prior_art.samplers.kandinsky_schedule import published_sigmas


def compiled(model: Any, backend: str = "eager") -> Any:
    """A MODEL behind the host's node."""
    torch._dynamo.reset()
    counters.clear()
    return core("TorchCompileModel", model=model, backend=backend)[0]


def graphs() -> int:
    """How many pieces were compiled since :func:`compiled`."""
    return counters["stats"]["unique_graphs"]


def karlos_decoder() -> None:
    model = host.wrap("decoder", load("decoder"))
    prompts = decoder_inputs(model)[:2]
    wanted = native_sample(model, *prompts)
    close(native_sample(compiled(model, "aot_eager"), *prompts), wanted, 1e-5)
    assert graphs() == 1, counters["graph_break"]


def kandinskys_decoders() -> None:
    for mode in ("inpaint", "depth"):
        depth = torch.rand(1, 64, 64, 3) if mode == "depth" else None
        model, prompts = host.wrap("latent_decoder", decoder(mode)), sides(depth)
        wanted = ksampler(model, *prompts)
        close(ksampler(compiled(model), *prompts), wanted, 1e-4)
        assert graphs() == 1, counters["graph_break"]


def kandinskys_learned_variance_gets_out() -> None:
    """The host's node takes the options of the first call for those of all: here one without our
    sampler's sheet, then one side of the guidance at a time."""
    model, prompts = host.wrap("latent_decoder", decoder()), sides()
    schedule = model.model.loaded.schedule
    sigmas = published_sigmas(schedule, 4, 1.0)
    fast = compiled(model)
    ksampler(fast, *prompts)
    for bytes_needed in (0, 1e30):  # both sides at once, one after the other
        with mock.patch.object(model.model, "memory_required", lambda *a, n=bytes_needed, **k: n):
            wanted = sampler_custom(model, *prompts, sigmas)[0]["samples"]
            found = sampler_custom(fast, *prompts, sigmas)[0]["samples"]
        close(found, wanted, 1e-4)


def a_koala_of_the_hosts_class() -> None:
    model, clip, _ = koala.load("koala-700m")
    prompts = koala.said(clip), koala.said(clip, koala.NEGATIVE)
    attention = comfy.ldm.modules.attention
    pytorchs = attention.attention_pytorch  # as on a GPU; the other asks for free memory
    with mock.patch.object(attention, "optimized_attention", pytorchs):
        wanted = koala.ksampler(model, *prompts)
        close(koala.ksampler(compiled(model), *prompts), wanted, 1e-3)


def a_koala_adopted_by_the_host() -> None:
    _, clip, _ = koala.load("koala-1b")
    model = host.wrap("koala_unet", koala.unet("koala-1b"), latent_rgb_factors=None)
    assert isinstance(model.model, comfy_koala.AdoptedSDXL)
    prompts = koala.said(clip), koala.said(clip, koala.NEGATIVE)
    wanted = koala.ksampler(model, *prompts)
    close(koala.ksampler(compiled(model), *prompts), wanted, 1e-3)
    assert graphs() == 1, counters["graph_break"]


def inductor_compiles_one_where_a_compiler_is() -> None:
    if shutil.which("g++") is None:
        return
    loaded = decoder()
    config = dict(loaded.network.config) | {
        "block_out_channels": (32,),
        "down_block_types": ("ResnetDownsampleBlock2D",),
        "mid_block_type": None,
        "up_block_types": ("ResnetUpsampleBlock2D",),
    }
    smaller = type(loaded.network).from_config(config).eval().requires_grad_(False)
    model, prompts = host.wrap("latent_decoder", replace(loaded, network=smaller)), sides()
    wanted = ksampler(model, *prompts, steps=2)
    close(ksampler(compiled(model, "inductor"), *prompts, steps=2), wanted, 1e-3)
    assert graphs() == 1, counters["graph_break"]


CHECKS = {
    check.__name__: check
    for check in (
        karlos_decoder,
        kandinskys_decoders,
        kandinskys_learned_variance_gets_out,
        a_koala_of_the_hosts_class,
        a_koala_adopted_by_the_host,
        inductor_compiles_one_where_a_compiler_is,
    )
}

if __name__ == "__main__":
    assert Path(COMFY).is_dir()
    tiny.tiny_karlo(FOLDER / "tiny")
    tiny.tiny_koala(FOLDER / "tiny")
    tiny.tiny_kandinsky(FOLDER / "tiny-kandinsky")
    report(CHECKS)

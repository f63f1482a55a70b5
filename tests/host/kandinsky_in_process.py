"""Kandinsky's checks inside the host's own Python: its decoders and MoVQ under native nodes.

Started like in_process.py, whose start of the host and helpers it uses.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from in_process import (
    COMFY,
    FOLDER,
    close,
    comfy,
    comfy_memory,
    core,
    find_source,
    host,
    nodes,
    report,
    tiny,
    torch,
)

from prior_art.edges import EdgeError
from prior_art.loaders import kandinsky
from prior_art.networks import kandinsky_movq as movq
from prior_art.nodes.kandinsky import KandinskyConditioning, KandinskyDecoder
from prior_art.samplers.kandinsky import (
    Canvas,
    Condition,
    Known,
    known_mask,
    sample_from_sigmas,
    sample_latents,
)
from prior_art.samplers.kandinsky_schedule import published_sigmas
from prior_art.samplers.parts.noise import Noise, generators
from prior_art.samplers.parts.sampling import Sampling

PLACE = {"device": torch.device("cpu"), "dtype": torch.float32}


def decoder(mode: str = "decoder", dtype: torch.dtype = torch.float32):
    return kandinsky.load_latent_decoder(source(mode, "latent_decoder"), dtype)


def source(mode: str, stage: str):
    return find_source(f"tiny-kandinsky/{mode}", stage, host.model_folders())


def vae():
    return host.wrap("movq", kandinsky.load_movq(source("decoder", "movq")))


def embedding(rows: int = 1, seed: int = 0):
    noise = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, tiny.DIM, generator=noise)
    return host.clip_vision_output(values, embedding_space="custom-32d", made_by="a test")


def sides(depth: torch.Tensor | None = None):
    return KandinskyConditioning.execute(embedding(), embedding(seed=9), depth).args


def empty(size: int = 8, batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 4, size, size)}


def ksampler(model, positive, negative, latent=None, sampler="euler", steps=4, denoise=1.0):
    latent = latent or empty()
    (out,) = nodes.KSampler().sample(
        model, 5, steps, 3.0, sampler, "normal", positive, negative, latent, denoise
    )
    return out["samples"]


def sampler_custom(model, positive, negative, sigmas):
    """The host's SamplerCustom with our SAMPLER; both of its latents."""
    return core(
        "SamplerCustom",
        model=model,
        add_noise=True,
        noise_seed=7,
        cfg=4.0,
        positive=positive,
        negative=negative,
        sampler=host.wrap("latent_sampler", sample_from_sigmas),
        sigmas=sigmas,
        latent_image=empty(),
    )


# -- the decoder as a MODEL ------------------------------------------------------------------------


def leaves_are_the_hosts() -> None:
    for mode in ("decoder", "inpaint", "depth"):
        loaded = decoder(mode)
        rest = comfy_memory.swap_leaves(loaded.network)
        assert not rest, rest


def ksampler_runs_it() -> None:
    """Native nodes only after the loader: KSampler with many samplers, VAEDecode."""
    model = host.wrap("latent_decoder", decoder())
    sampling = model.get_model_object("model_sampling")
    alphas = model.model.loaded.schedule.alphas_cumprod()
    close(sampling.sigma_max, ((1 - alphas[-1]) / alphas[-1]) ** 0.5, 1e-3)
    positive, negative = sides()
    latents = ksampler(model, positive, negative, empty(batch=2))
    assert latents.shape == (2, 4, 8, 8) and latents.isfinite().all() and latents.std() > 0.05
    (picture,) = nodes.VAEDecode().decode(vae(), {"samples": latents})
    assert picture.shape == (2, 64, 64, 3) and picture.min() >= 0 and picture.max() <= 1
    for sampler in ("dpmpp_2m", "ddim", "euler_ancestral", "uni_pc", "lcm"):
        assert ksampler(model, positive, negative, sampler=sampler).isfinite().all(), sampler
    started = ksampler(model, positive, negative, {"samples": latents[:1]}, denoise=0.5)
    assert (started - latents[:1]).abs().max() > 1e-3


def network_call_is_the_librarys() -> None:
    loaded = decoder()
    model = host.wrap("latent_decoder", loaded)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    embeds = torch.cat([embedding().image_embeds, embedding(seed=1).image_embeds])
    native = model.model.diffusion_model(x, torch.tensor([500.0, 500.0]), context=embeds[:, None])
    own = loaded.network(x, 500, None, added_cond_kwargs={"image_embeds": embeds}).sample
    close(native, own[:, :4], 1e-5)


def lora_changes_it() -> None:
    loaded = decoder()
    model = host.wrap("latent_decoder", loaded)
    positive, negative = sides()
    plain = ksampler(model, positive, negative)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if k.startswith("lora_unet_down_blocks_0") and "conv1" in k)
    weight = model.model.state_dict()[keys[name]]
    noise = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1, generator=noise),
        f"{name}.lora_down.weight": torch.randn(2, *weight.shape[1:], generator=noise),
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert (ksampler(patched, positive, negative) - plain).abs().max() > 1e-3
    ours = our_decoder(patched)
    assert (our_decoder(model) - ours).abs().max() > 1e-3, "our sampler missed the LoRA"
    close(ksampler(model, positive, negative), plain, 1e-6)


def our_decoder(model, **changes):
    inputs = {"width": 64, "height": 64, "seed": 3, "steps": 3, "cfg": 4.0, "batch_size": 1}
    inputs |= {"image_embeds": embedding(), "negative_image_embeds": embedding(seed=9)}
    return KandinskyDecoder.execute(model=model, **inputs | changes).args[0]["samples"]


def native_decoding_cuts_an_originals_picture() -> None:
    """VAE Decode and its tiled form, but not what other nodes have made of the latents."""
    exact = host.wrap("latent_decoder", replace(decoder(), exact=True))
    sized = {"width": 100, "height": 50}
    latents = our_decoder(exact, **sized)
    coder = vae()
    (whole,) = nodes.VAEDecode().decode(coder, {"samples": latents * 1})
    (cut,) = nodes.VAEDecode().decode(coder, {"samples": latents})
    assert whole.shape == (1, 64, 128, 3)
    close(cut, whole[:, :50, :100], 1e-5)
    (tiled,) = nodes.VAEDecodeTiled().decode(coder, {"samples": latents}, 512, 64)
    assert tiled.shape == cut.shape
    published = our_decoder(host.wrap("latent_decoder", decoder()), **sized)
    (rounded,) = nodes.VAEDecode().decode(coder, {"samples": published})
    assert rounded.shape == whole.shape


def native_masks_and_patches() -> None:
    """A noise mask keeps its part on the text-to-image decoder too; ModelSamplingDiscrete works."""
    model = host.wrap("latent_decoder", decoder())
    positive, negative = sides()
    noise = torch.Generator().manual_seed(1)
    known = torch.randn(1, 4, 8, 8, generator=noise)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    (masked,) = nodes.SetLatentNoiseMask().set_mask({"samples": known}, mask)
    made = ksampler(model, positive, negative, masked)
    close(made[..., :3], known[..., :3], 1e-5)
    assert (made[..., 5:] - known[..., 5:]).abs().max() > 1e-2
    (patched,) = core("ModelSamplingDiscrete", model=model, sampling="lcm", zsnr=False)
    assert ksampler(patched, positive, negative, sampler="lcm").isfinite().all()


# -- the published sampler as a SAMPLER ------------------------------------------------------------


def published_sampler() -> None:
    """SamplerCustom with our SAMPLER and SIGMAS is the published sampler, on the same noise."""
    loaded = decoder()
    model = host.wrap("latent_decoder", loaded)
    positive, negative = sides()
    sigmas = published_sigmas(host.open("latent_decoder", model)[1].schedule, 6, 1.0)
    out, _ = sampler_custom(model, positive, negative, sigmas)
    # Below the model's last sigma the host starts at noise * sigma, without signal.
    scale = float(sigmas[0] / (1 + sigmas[0] ** 2).sqrt())
    first = [scale * torch.randn(1, 4, 8, 8, generator=torch.manual_seed(7))]

    class HostsNoise(Noise):
        """The host's first draw, then our sampler's own."""

        def normal(self, shape, device=None):
            return first.pop() if first else super().normal(shape, device)

    wanted = sample_latents(
        loaded.network,
        loaded.schedule,
        Condition(embedding().image_embeds),
        Condition(embedding(seed=9).image_embeds),
        Canvas((8, 8)),
        Sampling(HostsNoise(generators(8, 1)), **PLACE, num_inference_steps=6),
    )
    close(out["samples"], wanted, 1e-4)


# -- inpainting and depth --------------------------------------------------------------------------


def native_inpainting_sees_the_mask() -> None:
    loaded = decoder("inpaint")
    model = host.wrap("latent_decoder", loaded)
    positive, negative = sides()
    known = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(1, 64, 64)
    mask[:, :32, :32] = 1
    (masked,) = nodes.SetLatentNoiseMask().set_mask({"samples": known}, mask)
    concat = []
    inner = model.model.diffusion_model
    forward = inner.forward
    inner.forward = lambda x, t, **kw: (concat.append(x[:, 4:]), forward(x, t, **kw))[1]
    made = ksampler(model, positive, negative, masked)
    del inner.forward
    stays = known_mask(mask, (8, 8))
    for seen in concat:
        close(seen[:1], torch.cat([known * stays, stays], 1), 1e-5)
    assert made.isfinite().all()
    close(made[..., 6:, 6:], known[..., 6:, 6:], 1e-5)
    whole = ksampler(model, positive, negative)  # no mask: all is painted
    assert whole.isfinite().all()
    image = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(2))
    (masked,) = nodes.VAEEncodeForInpaint().encode(vae(), image, mask, grow_mask_by=0)
    assert ksampler(model, positive, negative, masked).isfinite().all()
    ours = sample_latents(
        loaded.network,
        loaded.schedule,
        Condition(embedding().image_embeds),
        Condition(embedding(seed=9).image_embeds),
        Canvas((8, 8), known=Known(known, stays)),
        Sampling(Noise.seeded(1, 1), **PLACE, num_inference_steps=3),
    )
    assert ours.isfinite().all()


def native_depth_reaches_the_network() -> None:
    model = host.wrap("latent_decoder", decoder("depth"))
    noise = torch.Generator().manual_seed(1)
    near, far = (
        ksampler(model, *sides(depth))
        for depth in (torch.rand(1, 64, 64, 3, generator=noise), torch.zeros(1, 100, 80, 3))
    )
    assert (near - far).abs().max() > 1e-3
    try:
        ksampler(model, *sides())
    except EdgeError as error:
        assert "no depth map" in str(error)
    else:
        raise AssertionError("a depth decoder ran without depth")


def half_precision_is_near() -> None:
    exact = our_decoder(host.wrap("latent_decoder", decoder()), steps=1)
    half = our_decoder(host.wrap("latent_decoder", decoder(dtype=torch.float16)), steps=1)
    close(half, exact, 0.05 * exact.abs().max().item())


def text_prompts_are_refused() -> None:
    model = host.wrap("latent_decoder", decoder())
    prompt = [[torch.zeros(1, 77, 768), {"pooled_output": torch.zeros(1, 768)}]]
    for positive, negative in ((prompt, sides()[1]), (sides()[0], prompt)):
        try:
            ksampler(model, positive, negative)
        except EdgeError as error:
            assert "Kandinsky Conditioning" in str(error)
        else:
            raise AssertionError("a text prompt was taken for an image embedding")
    try:
        host.open("decoder", model)
    except EdgeError as error:
        assert "Karlo" in str(error)
    else:
        raise AssertionError("a Kandinsky decoder was taken for Karlo's")


# -- the MoVQ as a VAE -----------------------------------------------------------------------------


def native_vae_nodes() -> None:
    loaded = kandinsky.load_movq(source("decoder", "movq"))
    native = host.wrap("movq", loaded)
    assert isinstance(native, comfy.sd.VAE)
    image = torch.rand(2, 64, 128, 3, generator=torch.Generator().manual_seed(0))
    (coded,) = nodes.VAEEncode().encode(native, image)
    close(coded["samples"], movq.encode(loaded.network, image.movedim(-1, 1) * 2 - 1), 1e-5)
    (decoded,) = nodes.VAEDecode().decode(native, coded)
    own = movq.decode(loaded.network, coded["samples"])
    close(decoded, own.add(1).div(2).clamp(0, 1).movedim(1, -1), 1e-5)
    mask = torch.zeros(1, 64, 128)
    mask[:, :32] = 1
    (masked,) = nodes.VAEEncodeForInpaint().encode(native, image, mask, grow_mask_by=6)
    assert masked["samples"].shape == coded["samples"].shape and "noise_mask" in masked
    large = {"samples": torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(2))}
    (whole,) = nodes.VAEDecode().decode(native, large)
    (tiled,) = nodes.VAEDecodeTiled().decode(native, large, 128, overlap=64)
    assert tiled.shape == whole.shape == (1, 256, 256, 3)
    half = host.wrap("movq", kandinsky.load_movq(source("decoder", "movq"), torch.float16))
    close(nodes.VAEDecode().decode(half, coded)[0], decoded, 0.1)
    try:
        host.open("vqgan", native)
    except EdgeError as error:
        assert "Load VQGAN" in str(error)
    else:
        raise AssertionError("a MoVQ was taken for a VQGAN")


def tiled_decode_agrees_away_from_the_seams() -> None:
    """1024 pixels of the family's shapes: a tile has statistics of its own, so not to the bit."""
    from prior_art.shapes.grammar import draw_prompts
    from prior_art.shapes.pictures import draw

    native = host.wrap("movq", kandinsky.load_movq(find_source("shapes-kandinsky", "movq", [])))
    cells = [torch.tensor(list(draw(scene).getdata())) for scene in draw_prompts(256, 1)]
    cells = torch.stack(cells).view(16, 16, 64, 64, 3).float() / 255
    image = cells.permute(0, 2, 1, 3, 4).reshape(1, 1024, 1024, 3)
    (coded,) = nodes.VAEEncode().encode(native, image)
    (whole,) = nodes.VAEDecode().decode(native, coded)
    (tiled,) = nodes.VAEDecodeTiled().decode(native, coded, 512, overlap=64)
    assert tiled.shape == whole.shape == (1, 1024, 1024, 3)
    apart = (tiled - whole).abs()
    # Tiles of 512 that overlap by 64 begin at 0, 448 and 512.
    inside = apart[:, 64:384, 64:384]
    assert inside.mean() < 0.02 and inside.quantile(0.99) < 0.15, (inside.mean(), apart.mean())


def headless_ksampler_is_the_hosts() -> None:
    """The runner's own KSampler and SamplerCustom give what the host's give."""
    from prior_art.headless import core_sampling
    from prior_art.host.embedded import door as embedded

    loaded = decoder()
    model, other = host.wrap("latent_decoder", loaded), embedded.wrap("latent_decoder", decoder())
    positive, negative = sides()
    known = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    mask = torch.zeros(1, 64, 64)
    mask[:, :, 32:] = 1
    (masked,) = nodes.SetLatentNoiseMask().set_mask({"samples": known}, mask)
    for latent_image, scheduler, denoise, cfg in (
        (empty(batch=2), "normal", 1.0, 3.0),
        (empty(), "simple", 1.0, 1.0),
        ({"samples": known}, "normal", 0.5, 3.0),
        (masked, "simple", 1.0, 3.0),
    ):
        given = ("euler", scheduler, positive, negative, latent_image, denoise)
        (native,) = nodes.KSampler().sample(model, 5, 4, cfg, *given)
        (ours,) = core_sampling.KSampler.execute(other, 5, 4, cfg, *given).args
        # Untrained networks: what they paint is large, and so is rounding.
        close(ours["samples"], native["samples"], 1e-5 * float(native["samples"].abs().max()))
    sigmas = published_sigmas(host.open("latent_decoder", model)[1].schedule, 6, 1.0)
    given = (positive, negative)
    native, _ = sampler_custom(model, *given, sigmas)
    ours, _ = core_sampling.SamplerCustom.execute(
        other,
        True,
        7,
        4.0,
        *given,
        embedded.wrap("latent_sampler", sample_from_sigmas),
        sigmas,
        empty(),
    ).args
    close(ours["samples"], native["samples"], 1e-4)


def embeddings_are_kept_in_the_hosts_folders() -> None:
    import folder_paths

    from prior_art.nodes.embeddings import LoadEmbeddings, SaveEmbeddings

    SaveEmbeddings.execute(embedding(2), "kept", "a note")
    file = Path(folder_paths.get_output_directory()) / "image_embeds" / "kept.safetensors"
    assert file.is_file()
    found, note = LoadEmbeddings.execute("kept.safetensors").args
    assert torch.equal(found.image_embeds, embedding(2).image_embeds)
    assert (found.embedding_space, note) == ("custom-32d", "a note")


# -- beyond Kandinsky ------------------------------------------------------------------------------


def prior_drives_native_sdxl() -> None:
    """A 1280-d embedding through native unCLIPConditioning into a tiny SDXL."""
    import comfy.model_base
    import comfy.supported_models

    config = comfy.supported_models.SDXL(
        {
            "model_channels": 32,
            "in_channels": 4,
            "out_channels": 4,
            "num_res_blocks": [1, 1],
            "channel_mult": [1, 2],
            "transformer_depth": [0, 1],
            "transformer_depth_output": [0, 0, 1, 1],
            "transformer_depth_middle": 1,
            "context_dim": 2048,
            "adm_in_channels": 2816,
            "num_head_channels": 16,
            "num_classes": "sequential",
            "use_linear_in_transformer": True,
            "use_spatial_transformer": True,
            "image_size": 32,
            "use_temporal_attention": False,
            "legacy": False,
            "dtype": torch.float32,
        }
    )
    model = config.get_model({}, device=torch.device("cpu"))
    with torch.no_grad():
        tiny.randomise(model.diffusion_model)
    patcher = comfy.model_patcher.ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    text = [[torch.randn(1, 77, 2048), {"pooled_output": torch.randn(1, 1280)}]]
    made = []
    for seed in (0, 1):
        noise = torch.Generator().manual_seed(seed)
        output = host.clip_vision_output(
            torch.randn(1, 1280, generator=noise), embedding_space="laion-vit-bigg-14"
        )
        (positive,) = nodes.unCLIPConditioning().apply_adm(text, output, 1.0, 0.0)
        made.append(ksampler(patcher, positive, text, steps=2))
    assert all(part.isfinite().all() for part in made)
    assert (made[0] - made[1]).abs().max() > 1e-4, "the embedding has no influence"


CHECKS = {
    check.__name__: check
    for check in (
        leaves_are_the_hosts,
        ksampler_runs_it,
        network_call_is_the_librarys,
        lora_changes_it,
        native_decoding_cuts_an_originals_picture,
        native_masks_and_patches,
        published_sampler,
        native_inpainting_sees_the_mask,
        native_depth_reaches_the_network,
        half_precision_is_near,
        text_prompts_are_refused,
        native_vae_nodes,
        tiled_decode_agrees_away_from_the_seams,
        headless_ksampler_is_the_hosts,
        embeddings_are_kept_in_the_hosts_folders,
        prior_drives_native_sdxl,
    )
}

if __name__ == "__main__":
    assert Path(COMFY).is_dir()
    tiny.tiny_kandinsky(FOLDER / "tiny-kandinsky")
    report(CHECKS)

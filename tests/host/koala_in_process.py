"""KOALA's checks inside the host's own Python: the host's SDXL classes, ours and diffusers' agree.

Started like in_process.py, whose start of the host and helpers it uses.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from pathlib import Path
from unittest import mock

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
from prior_art.host.comfyui import koala as comfy_koala
from prior_art.host.comfyui import koala_view
from prior_art.loaders import koala
from prior_art.loaders.clip import tokenize
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.networks.koala import prepare_sdxl
from prior_art.networks.koala_vae import LatentKL
from prior_art.nodes.koala import OWN, KoalaInfo, KoalaSample, KoalaTextEncode, LoadKoala
from prior_art.samplers.koala import LATENT_SCALE, encode_text_pair, sample_koala
from prior_art.samplers.parts.noise import Noise
from prior_art.samplers.parts.sampling import Sampling

PROMPT, NEGATIVE = "the red cat", "worst quality, low quality"
KINDS = ("koala-1b", "koala-700m", "sdxl")


def load(name: str = "koala-1b"):
    """MODEL, CLIP and VAE, as a user loads them, but that the MODEL is of the host's own class.

    Tiny widths are not in the host's tables, so its class is built by hand.
    """
    _, clip, vae = LoadKoala.execute(f"tiny/{name}", "fp32", koala.ANY_SDXL, OWN, OWN, OWN).args
    loaded = unet(name)
    settings = host_config(loaded.network.config)
    names = comfy.utils.unet_to_diffusers(settings)
    config = comfy.supported_models.SDXL(settings)
    config.unet_config = settings  # the host's class wants heads of 64 channels
    config.set_inference_dtype(torch.float32, None)
    tensors = loaded.network.state_dict()
    converted = {names[key]: tensor for key, tensor in tensors.items() if key in names}
    model = config.get_model(converted, "")
    model.load_model_weights(converted, "")
    device = comfy.model_management.get_torch_device()
    patcher = comfy_memory.patcher_of(model, device, torch.device("cpu"))
    patcher.set_attachments(comfy_koala.FACTS, koala.facts_of(loaded, None))
    patcher.set_attachments(comfy_memory.VIEW, koala_view.View())
    return patcher, clip, vae


def host_config(config) -> dict:
    """A diffusers U-Net's config in the host's words (its ``UNetModel``'s arguments)."""
    widths, layers = config.block_out_channels, config.layers_per_block
    depths = config.transformer_layers_per_block
    per_level = [
        depth if "CrossAttn" in kind else 0
        for kind, depth in zip(config.down_block_types, depths, strict=True)
    ]
    return {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": config.projection_class_embeddings_input_dim,
        "in_channels": config.in_channels,
        "out_channels": config.out_channels,
        "model_channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "num_res_blocks": [layers] * len(widths),
        "transformer_depth": [depth for depth in per_level for _ in range(layers)],
        "transformer_depth_output": [d for d in per_level for _ in range(layers + 1)],
        "transformer_depth_middle": per_level[-1] if config.mid_block_type else -2,
        "use_linear_in_transformer": True,
        "context_dim": config.cross_attention_dim,
        "num_head_channels": widths[-1] // config.attention_head_dim[-1],
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }


def source(name: str, stage: str):
    return find_source(f"tiny/{name}", stage, host.model_folders())


def unet(name: str) -> koala.KoalaUNet:
    return koala.load_unet(source(name, "koala_unet"), wanted=koala.ANY_SDXL)


def said(clip, text: str = PROMPT, side: int = 64):
    return KoalaTextEncode.execute(clip, text, side, side, 0, 0, 0, 0).args[0]


def ours(text: str = PROMPT):
    """The prompt through transformers' towers."""
    pair = koala.load_text_encoders(source("koala-1b", "koala_text"))
    ids = [tokenize(t, [text], cleaned=False)[0] for t in (pair.tokenizer, pair.second_tokenizer)]
    return encode_text_pair(pair.first, pair.second, *ids)


def empty(batch: int = 1) -> dict:
    return {"samples": torch.zeros(batch, 4, 8, 8)}


def ksampler(model, positive, negative, latent=None, sampler="euler", steps=5):
    (out,) = nodes.KSampler().sample(
        model, 5, steps, 3.0, sampler, "normal", positive, negative, latent or empty(), 1.0
    )
    return out["samples"]


def koala_sample(model, clip, **changes):
    inputs = {"width": 64, "height": 96, "seed": 3, "steps": 5, "cfg": 7.5, "batch_size": 2}
    inputs |= {"timestep_spacing": "as published", "negative": said(clip, NEGATIVE)}
    inputs |= {"positive": said(clip)} | changes
    return KoalaSample.execute(model=model, **inputs).args[0]["samples"]


def long_native_prompts_are_sampled() -> None:
    """The host's encoders make chunks of 77 tokens of a long prompt; to attention a shorter one
    that is repeated is the same."""
    model, clip, _ = load()
    (long,) = nodes.CLIPTextEncode().encode(clip, "the red cat, " * 60)
    (short,) = nodes.CLIPTextEncode().encode(clip, NEGATIVE)
    ((hidden, extra),) = short
    times = long[0][0].shape[1] // hidden.shape[1]
    assert times > 1 and hidden.shape[1] == 77
    wanted = koala_sample(
        model, clip, positive=long, negative=[[torch.cat([hidden] * times, 1), extra]]
    )
    got = koala_sample(model, clip, positive=long, negative=short)
    assert (got - wanted).abs().max() < 1e-3 * wanted.abs().max()


# -- the host's classes give our networks' numbers -------------------------------------------------


def text_encoders_are_the_librarys() -> None:
    _, clip, _ = load()
    for text in ("", PROMPT, NEGATIVE, "a cat " * 60):
        wanted, found = ours(text), host.open("koala_text", clip)[1].encode(text)
        close(found.hidden, wanted.hidden, 1e-5)
        close(found.pooled, wanted.pooled, 1e-5)
    (native,) = nodes.CLIPTextEncode().encode(clip, PROMPT)
    close(native[0][0], ours().hidden, 1e-5)
    close(native[0][1]["pooled_output"], ours().pooled, 1e-5)
    sizes = {"width": 64, "height": 96, "crop_w": 1, "crop_h": 2}
    sizes |= {"target_width": 3, "target_height": 4}
    (native,) = core("CLIPTextEncodeSDXL", clip=clip, text_g=PROMPT, text_l=PROMPT, **sizes)
    (mine,) = KoalaTextEncode.execute(clip, PROMPT, **sizes).args
    assert {k: v for k, v in native[0][1].items() if k != "pooled_output"} == {
        k: int(v) for k, v in mine[0][1].items() if k != "pooled_output"
    }


def vae_nodes() -> None:
    _, _, vae = load()
    coder = LatentKL(koala.load_vae(source("koala-1b", "koala_vae")).network)
    latent = torch.randn(2, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    (picture,) = nodes.VAEDecode().decode(vae, {"samples": latent})
    close(picture.movedim(-1, 1), (coder.decode(latent) / 2 + 0.5).clamp(0, 1), 1e-5)
    (tiled,) = nodes.VAEDecodeTiled().decode(vae, {"samples": latent}, 64, 16)
    assert tiled.shape == picture.shape
    (encoded,) = nodes.VAEEncode().encode(vae, picture)
    assert encoded["samples"].shape == latent.shape


def published_vae_is_the_hosts() -> None:
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    config = tiny.KL | {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2}
    network = AutoencoderKL(**config).eval().requires_grad_(False)
    vae = host.wrap("koala_vae", koala.SDXLVAE(network, "a test"))
    assert type(vae.first_stage_model).__module__.startswith("comfy.")
    latent = torch.randn(1, 4, 4, 4)
    close(
        vae.decode(latent).movedim(-1, 1),
        (LatentKL(network).decode(latent) / 2 + 0.5).clamp(0, 1),
        1e-4,
    )


def sampler_is_the_librarys() -> None:
    """The published sampler over the host's U-Net and over diffusers' is one."""
    for name in KINDS:
        model, clip, _ = load(name)
        loaded = unet(name)
        wanted = sample_koala(
            partial(prepare_sdxl, loaded.network),
            loaded.schedule,
            ours(),
            ours(NEGATIVE),
            (12, 8),
            Sampling(Noise.seeded(3, 2), torch.device("cpu"), torch.float32, 5),
        )
        sized = [said(clip, text) for text in (PROMPT, NEGATIVE)]
        for conditioning in sized:
            for key in ("height", "target_height"):
                conditioning[0][1][key] = 96.0
        made = koala_sample(model, clip, positive=sized[0], negative=sized[1])
        close(made * LATENT_SCALE, wanted * LATENT_SCALE, 1e-4)
        assert made.std() > 0.5


def ksampler_is_the_pipelines() -> None:
    """Native KSampler, euler/normal, beside diffusers' pipeline on its noise and noise levels.

    The host rounds each level to a whole timestep, the pipeline interpolates between two, so they
    agree to 0.01 where latents reach 46 (0.004 was seen).
    """
    for name in KINDS[:2]:
        model, clip, _ = load(name)
        made = ksampler(model, said(clip), said(clip, NEGATIVE))
        sigmas = comfy.samplers.calculate_sigmas(
            model.get_model_object("model_sampling"), "normal", 5
        )
        pipe = tiny.koala_pipeline(FOLDER / "tiny" / name)
        theirs = pipe(
            PROMPT,
            negative_prompt=NEGATIVE,
            sigmas=sigmas.tolist(),
            guidance_scale=3.0,
            height=64,
            width=64,
            latents=torch.randn(1, 4, 8, 8, generator=torch.manual_seed(5)),
            output_type="latent",
        ).images
        close(made * LATENT_SCALE, theirs, 0.01)


def headless_ksampler_is_the_hosts() -> None:
    from prior_art.headless import core_sampling
    from prior_art.host.embedded import door as embedded

    for name in KINDS[:2]:
        model, clip, _ = load(name)
        positive, negative = said(clip), said(clip, NEGATIVE)
        own = embedded.wrap("koala_unet", unet(name), latent_rgb_factors=None)
        known = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)) * 7
        mask = torch.zeros(1, 64, 64)
        mask[:, :, 32:] = 1
        (masked,) = nodes.SetLatentNoiseMask().set_mask({"samples": known}, mask)
        for latent in (empty(2), masked):
            for scheduler in ("normal", "simple"):
                shared = (5, 5, 3.0, "euler", scheduler, positive, negative, latent, 1.0)
                (wanted,) = nodes.KSampler().sample(model, *shared)
                found = core_sampling.KSampler.execute(own, *shared).args[0]
                close(found["samples"] * LATENT_SCALE, wanted["samples"] * LATENT_SCALE, 1e-3)


# -- native nodes on the model ---------------------------------------------------------------------


def native_samplers_run_it() -> None:
    model, clip, _ = load("koala-700m")
    positive, negative = said(clip), said(clip, NEGATIVE)
    for sampler in ("dpmpp_2m", "ddim", "euler_ancestral", "uni_pc", "lcm"):
        assert ksampler(model, positive, negative, sampler=sampler).isfinite().all(), sampler


def with_lora(model):
    """The MODEL with a LoRA of one attention's queries."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if k.startswith("lora_unet_down_blocks_1") and "attn1_to_q" in k)
    weight = model.model.state_dict()[keys[name]]
    noise = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, generator=noise),
        f"{name}.lora_down.weight": torch.randn(2, weight.shape[1], generator=noise),
    }
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def lora_changes_both_samplers() -> None:
    model, clip, _ = load()
    positive, negative = said(clip), said(clip, NEGATIVE)
    plain, published = ksampler(model, positive, negative), koala_sample(model, clip)
    patched = with_lora(model)
    assert (ksampler(patched, positive, negative) - plain).abs().max() > 1e-3
    assert (koala_sample(patched, clip) - published).abs().max() > 1e-3
    close(ksampler(model, positive, negative), plain, 1e-5)


def it_runs_as_the_librarys_network_where_nothing_hangs_on_it() -> None:
    """On a card KOALA Sample runs diffusers' network of the host's weights: the same latents, and
    what native nodes hang on the host's network still counts."""
    ran: list[torch.nn.Module] = []

    def counted(network, *rest):
        ran.append(network)
        return prepare_sdxl(network, *rest)

    def sample(model) -> torch.Tensor:
        return koala_sample(model, clip, steps=2, batch_size=1) * LATENT_SCALE

    for name in KINDS[1:]:
        model, clip, _ = load(name)
        (freed,) = core("FreeU_V2", model=model, b1=1.3, b2=1.4, s1=0.9, s2=0.2)
        patched, exchanged = with_lora(model), model.clone()
        last = "diffusion_model.out.2.weight"
        weight = torch.nn.Parameter(2 * exchanged.get_model_object(last), requires_grad=False)
        exchanged.add_object_patch(last, weight)
        kinds = model, freed, patched, exchanged
        plain, free, lora, twice = (sample(kind) for kind in kinds)
        ran.clear()
        with (
            mock.patch.object(koala_view, "DEVICES", ("cpu",)),
            mock.patch.object(comfy_koala, "prepare_sdxl", counted),
        ):
            for kind, wanted, runs in (
                (model, plain, 1),
                (model, plain, 2),
                (freed, free, 2),
                (patched, lora, 3),
                (model, plain, 4),
                (exchanged, twice, 5),
                (model, plain, 6),
            ):
                close(sample(kind), wanted, 1e-4)
                assert len(ran) == runs, f"{name}: {len(ran)} for {runs}"
            assert ran[0] is ran[1], "made anew for the same weights"
            out = model.model.diffusion_model.out
            hook = out.register_forward_hook(lambda *called: called[-1] * 0)
            assert (sample(model) - plain).abs().max() > 1e-3
            hook.remove()
            kept = weakref.ref(ran.pop())
            ran.clear()
            model.detach()
            assert kept() is None, "it outlives the weights that it was made of"


def control_of(name: str):
    """A ControlNet of random weights in the shape of a U-Net, as the host has it."""
    settings = host_config(unet(name).network.config) | {"hint_channels": 3}
    for key in ("out_channels", "transformer_depth_output"):
        del settings[key]
    network = comfy.cldm.cldm.ControlNet(
        **settings, operations=comfy.ops.disable_weight_init, dtype=torch.float32
    )
    torch.manual_seed(0)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, 0.0, 0.05)
    device = comfy.model_management.get_torch_device()
    return comfy.controlnet.ControlNet(network, load_device=device)


def controlnet_of_its_shape_steers_it() -> None:
    """One made for SDXL has residuals for more blocks than a KOALA: the host says so, and goes on
    without them."""
    model, clip, vae = load()
    sides = [said(clip), said(clip, NEGATIVE)]
    plain, hint = ksampler(model, *sides), torch.rand(1, 64, 64, 3)
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        for name, complains in (("koala-1b", False), ("sdxl", True)):
            heard.clear()
            steered = nodes.ControlNetApplyAdvanced().apply_controlnet(
                *sides, control_of(name), hint, 1.0, 0.0, 1.0, vae
            )
            made = ksampler(model, *steered)
            assert (made - plain).abs().max() * LATENT_SCALE > 1e-3, name
            said_no = any("control could not be applied" in line for line in heard)
            assert said_no == complains, (name, heard[:3])
    finally:
        logging.getLogger().removeHandler(handler)


def previews_have_the_vaes_colours() -> None:
    model, _, _ = LoadKoala.execute("tiny/koala-1b", "fp32", koala.ANY_KOALA, OWN, OWN, OWN).args
    latents = model.get_model_object("latent_format")
    assert len(latents.latent_rgb_factors) == 4 and len(latents.latent_rgb_factors_bias) == 3
    assert latents.scale_factor == LATENT_SCALE


def embedded_family_runs_in_the_hosts_model() -> None:
    """Its widths are not for the host's classes; its numbers are the same."""
    for name in ("koala-700m", "koala-1b"):
        where = find_source(f"shapes-{name}", "koala_unet", [])
        loaded, vae = koala.load_unet(where), koala.load_vae(where)
        model, clip, coder = LoadKoala.execute(
            f"shapes-{name}", "fp32", koala.ANY_KOALA, OWN, OWN, OWN
        ).args
        pair = koala.load_text_encoders(where)
        texts = []
        for text in ("a large red circle on a blue background", ""):
            ids = [
                tokenize(t, [text], cleaned=False)[0]
                for t in (pair.tokenizer, pair.second_tokenizer)
            ]
            texts.append(encode_text_pair(pair.first, pair.second, *ids))
        wanted = sample_koala(
            partial(prepare_sdxl, loaded.network),
            loaded.schedule,
            *texts,
            (8, 8),
            Sampling(Noise.seeded(3, 2), torch.device("cpu"), torch.float32, 25),
        )
        sides = [said(clip, text) for text in ("a large red circle on a blue background", "")]
        made = koala_sample(model, clip, positive=sides[0], negative=sides[1], height=64, steps=25)
        close(made * LATENT_SCALE, wanted * LATENT_SCALE, 1e-3)
        (picture,) = nodes.VAEDecode().decode(coder, {"samples": wanted})
        own = (LatentKL(vae.network).decode(wanted) / 2 + 0.5).clamp(0, 1)
        close(picture.movedim(-1, 1), own, 1e-5)
        from prior_art.headless import core_sampling
        from prior_art.host.embedded import door as embedded

        headless = embedded.wrap("koala_unet", koala.load_unet(where), latent_rgb_factors=None)
        shared = (5, 5, 7.5, "euler", "normal", *sides, empty(2), 1.0)
        (native,) = nodes.KSampler().sample(model, *shared)
        found = core_sampling.KSampler.execute(headless, *shared).args[0]
        close(found["samples"] * LATENT_SCALE, native["samples"] * LATENT_SCALE, 1e-3)
        keys = comfy.lora.model_lora_keys_unet(model.model, {})
        assert any(key.startswith("lora_unet_down_blocks_1_attentions") for key in keys)


def image_embeddings_take_the_pooled_prompts_place() -> None:
    """unCLIPConditioning: headless as in the host, on the embedded family; others are refused."""
    from prior_art.headless import core_sampling
    from prior_art.host.embedded import door as embedded

    name = "shapes-koala-700m"
    model, clip, _ = LoadKoala.execute(name, "fp32", koala.ANY_KOALA, OWN, OWN, OWN).args
    where = find_source(name, "koala_unet", [])
    headless = embedded.wrap("koala_unet", koala.load_unet(where), latent_rgb_factors=None)
    sides = [said(clip, text) for text in ("a large red circle on a blue background", "")]

    def carrying(dim: int, noise: float):
        embeds = torch.randn(1, dim, generator=torch.Generator().manual_seed(2))
        output = host.clip_vision_output(embeds, embedding_space="shapes-vit-g", made_by="a test")
        return nodes.unCLIPConditioning().apply_adm(sides[0], output, 0.9, noise)[0]

    (plain,) = nodes.KSampler().sample(model, 5, 5, 7.5, "euler", "normal", *sides, empty(), 1.0)
    for noise in (0.0, 0.4):
        shared = (5, 5, 7.5, "euler", "normal", carrying(96, noise), sides[1], empty(), 1.0)
        (native,) = nodes.KSampler().sample(model, *shared)
        found = core_sampling.KSampler.execute(headless, *shared).args[0]
        close(found["samples"] * LATENT_SCALE, native["samples"] * LATENT_SCALE, 1e-3)
        assert (native["samples"] - plain["samples"]).abs().max() * LATENT_SCALE > 0.1
    for call in (
        lambda: ksampler(model, carrying(64, 0.0), sides[1]),
        lambda: koala_sample(model, clip, positive=carrying(96, 0.0)),
    ):
        try:
            call()
        except EdgeError as error:
            assert "image embedding" in str(error)
        else:
            raise AssertionError("not refused")


# -- what is known of a model ----------------------------------------------------------------------


def facts_of_a_model_from_any_loader() -> None:
    for name in KINDS:
        model, _, _ = load(name)
        known = host.open("koala_unet", model)[1]
        model.attachments.clear()
        told = host.open("koala_unet", model)[1]
        assert (known.variant, known.widths, known.schedule) == (
            told.variant,
            told.widths,
            told.schedule,
        ), name
    assert "mid block: yes" in KoalaInfo.execute(model).args[1]


def published_size_through_the_hosts_detection() -> None:
    """KOALA-700M of its published widths, and no word of the mid block that it has not."""
    from diffusers import UNet2DConditionModel

    config = tiny.KOALA | tiny.KOALAS["koala-700m"]
    config |= {"block_out_channels": koala.WIDTHS, "attention_head_dim": (5, 10, 20)}
    config |= {"cross_attention_dim": 2048, "projection_class_embeddings_input_dim": 2816}
    with torch.device("meta"):
        network = UNet2DConditionModel(**config | {"transformer_layers_per_block": (1, 2, 5)})
    nothing = torch.zeros((), dtype=torch.float16)
    tensors = {k: nothing.expand(v.shape) for k, v in network.state_dict().items()}
    network.load_state_dict(tensors, assign=True)
    variant = koala.variant_of(network, torch.float16)
    loaded = koala.KoalaUNet(network, koala.EulerSchedule(), variant, "a test")
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(handler)
    try:
        model = host.wrap("koala_unet", loaded, latent_rgb_factors=None)
    finally:
        logging.getLogger().removeHandler(handler)
    assert type(model.model.model_config).__name__ == "KOALA_700M"
    assert not any("mid_block" in line or "missing" in line for line in heard), heard
    model.attachments.clear()
    assert host.open("koala_unet", model)[1].variant == variant


def other_models_are_refused() -> None:
    from types import SimpleNamespace

    _, clip, vae = load()
    for call in (
        lambda: host.open("koala_unet", SimpleNamespace(model=None))[1],
        lambda: host.open("koala_text", SimpleNamespace(tokenizer=None)),
    ):
        try:
            call()
        except EdgeError as error:
            assert "Load KOALA" in str(error)
        else:
            raise AssertionError("not refused")
    assert clip is not None and vae is not None


def files_of_the_hosts_folders() -> None:
    """A VAE of another family and encoders that are not SDXL's are refused by name."""
    from safetensors.torch import save_file

    for kind, name, tensors, words in (
        ("vae", "flux.safetensors", {"decoder.conv_in.weight": torch.zeros(8, 16, 3, 3)}, "16"),
        ("vae", "other.safetensors", {"x": torch.zeros(1)}, "no autoencoder"),
    ):
        folder = FOLDER.parent / kind
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, folder / name)
        assert name in host.model_files(kind), host.model_files(kind)
        try:
            host.load_files("koala_vae", name)
        except CheckpointError as error:
            assert name in str(error) and words in str(error), error
        else:
            raise AssertionError("not refused")


CHECKS = {
    check.__name__: check
    for check in (
        text_encoders_are_the_librarys,
        vae_nodes,
        published_vae_is_the_hosts,
        sampler_is_the_librarys,
        ksampler_is_the_pipelines,
        headless_ksampler_is_the_hosts,
        native_samplers_run_it,
        long_native_prompts_are_sampled,
        lora_changes_both_samplers,
        it_runs_as_the_librarys_network_where_nothing_hangs_on_it,
        controlnet_of_its_shape_steers_it,
        previews_have_the_vaes_colours,
        embedded_family_runs_in_the_hosts_model,
        image_embeddings_take_the_pooled_prompts_place,
        facts_of_a_model_from_any_loader,
        published_size_through_the_hosts_detection,
        other_models_are_refused,
        files_of_the_hosts_folders,
    )
}

if __name__ == "__main__":
    assert Path(COMFY).is_dir()
    tiny.tiny_koala(FOLDER / "tiny")
    report(CHECKS)

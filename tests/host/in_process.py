"""Checks that run inside the host's own Python, without its server.

Started by test_in_process.py as ``<host's python> in_process.py <ComfyUI folder> <work folder>``;
prints one JSON object, check name to "ok" or the traceback.
"""

from __future__ import annotations

import asyncio
import functools
import gc
import importlib.util
import json
import sys
import traceback
import weakref
from collections.abc import Callable
from pathlib import Path
from unittest import mock

PACK = Path(__file__).resolve().parents[2]


def start_host(comfy: Path) -> None:
    """Import ComfyUI for the CPU and the pack as ``prior_art`` in it."""
    sys.path.insert(0, str(comfy))
    sys.argv = sys.argv[:1]
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(WORK)
    import comfy.sd

    for name, path in (("prior_art", PACK), ("tiny", PACK / "tests" / "tiny.py")):
        if path.is_dir():
            spec = importlib.util.spec_from_file_location(
                name, path / "__init__.py", submodule_search_locations=[str(path)]
            )
        else:
            spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)


COMFY, WORK = Path(sys.argv[1]), Path(sys.argv[2])
start_host(COMFY)

import comfy.lora  # noqa: E402
import comfy.model_management as memory  # noqa: E402
import comfy.sample  # noqa: E402
import comfy.samplers  # noqa: E402
import comfy.sd  # noqa: E402
import comfy.utils  # noqa: E402
import tiny  # noqa: E402
import torch  # noqa: E402

import nodes  # noqa: E402
from prior_art.edges import EdgeError, conditioning_to_text  # noqa: E402
from prior_art.host import host  # noqa: E402
from prior_art.host.comfyui import memory as comfy_memory  # noqa: E402
from prior_art.loaders import karlo, mindalle, unclip  # noqa: E402
from prior_art.loaders.clip import tokenize  # noqa: E402
from prior_art.loaders.files.catalogue import find_source  # noqa: E402
from prior_art.loaders.files.libraries import require  # noqa: E402
from prior_art.networks import mindalle_vqgan as vq  # noqa: E402
from prior_art.samplers import clip as clip_sampler  # noqa: E402
from prior_art.samplers.karlo import sample_decoder, upscale  # noqa: E402
from prior_art.samplers.mindalle import Draw, log_probabilities, sample_tokens  # noqa: E402
from prior_art.samplers.parts.noise import Noise  # noqa: E402
from prior_art.samplers.parts.sampling import Sampling  # noqa: E402
from prior_art.samplers.prior import sample_prior  # noqa: E402

# tiny.py imports transformers straight; the pack's way of it copes with a broken torchaudio.
require("transformers", "CLIPTextModelWithProjection", "CLIPVisionModelWithProjection")

FOLDER = WORK / "models" / "prior_art"
LOADERS = {
    "text_encoder": unclip.load_text_encoder,
    "image_encoder": unclip.load_image_encoder,
    "prior": unclip.load_prior,
    "decoder": karlo.load_decoder,
    "upscaler": karlo.load_upscaler,
    "vqgan": mindalle.load_vqgan,
    "ar_transformer": mindalle.load_transformer,
}
MINDALLE = ("vqgan", "ar_transformer")


@functools.cache
def core_nodes() -> dict[str, type]:
    """Every node of the host by its id; their modules change from release to release."""
    asyncio.run(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return nodes.NODE_CLASS_MAPPINGS


def core(name: str, **inputs) -> tuple:
    """What a node of the host gives, of whichever of its node APIs it is."""
    kind = core_nodes()[name]
    made = getattr(kind(), kind.FUNCTION)(**inputs)
    return getattr(made, "args", made)


def load(stage: str, dtype: torch.dtype = torch.float32):
    name = "tiny-mindalle" if stage in MINDALLE else "tiny"
    return LOADERS[stage](find_source(name, stage, host.model_folders()), dtype)


def close(a: torch.Tensor, b: torch.Tensor, tolerance: float) -> None:
    difference = (a.float() - b.float()).abs().max().item()
    assert difference <= tolerance, f"differ by {difference}, tolerated {tolerance}"


def run_stage(stage: str, loaded, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """One output of a stage's network through the sampler that the nodes use."""
    cpu, network = torch.device("cpu"), loaded.network
    noise = torch.Generator().manual_seed(1)
    if stage == "text_encoder":
        ids, mask, _ = tokenize(loaded.tokenizer, ["a small red circle"])
        return clip_sampler.encode_text(network, ids, mask, loaded.space, cpu, dtype).pooled
    if stage == "image_encoder":
        pixels = loaded.preprocess(torch.rand(1, 40, 50, 3, generator=noise))
        return clip_sampler.encode_image(network, pixels, cpu, dtype)
    if stage == "vqgan":
        picture = torch.rand(1, 3, 32, 32, generator=noise).to(dtype) * 2 - 1
        codes = torch.arange(64).view(1, 8, 8) % loaded.codes
        return torch.cat([network.encoder(picture).flatten(), vq.decode(network, codes).flatten()])
    if stage == "ar_transformer":
        ids = mindalle.tokenize(loaded.tokenizer, ["red cat"], loaded.config.text_tokens).ids
        place = {"device": cpu, "dtype": dtype}
        tokens = sample_tokens(network, ids, Draw(Noise.seeded(3, 2), **place, temperature=0))
        fixed = torch.arange(64).view(1, 64) % loaded.config.image_vocab
        each = [log_probabilities(network, ids, t, **place) for t in (fixed, fixed.expand(2, -1))]
        assert tokens.shape == (2, 64)
        return torch.cat(each)
    if stage == "upscaler":
        image = torch.rand(1, 3, loaded.low_size, loaded.low_size, generator=noise) * 2 - 1
        sampling = Sampling(Noise.seeded(3, 1), cpu, dtype, 2)
        return upscale(network, loaded.schedule, image, sampling)
    text = text_encoding("a small red circle")
    sampling = Sampling(Noise.seeded(3, 1), cpu, dtype, 3)
    if stage == "prior":
        return sample_prior(network, loaded.schedule, text, text, sampling)
    embeds = torch.randn(1, loaded.space.dim, generator=noise)
    return sample_decoder(network, loaded.schedule, embeds, text, text, sampling)


def text_encoding(prompt: str):
    loaded = load("text_encoder")
    ids, mask, _ = tokenize(loaded.tokenizer, [prompt])
    return clip_sampler.encode_text(
        loaded.network, ids, mask, loaded.space, torch.device("cpu"), torch.float32
    )


def swap_check(stage: str) -> Callable[[], None]:
    def check() -> None:
        loaded = load(stage)
        before = run_stage(stage, loaded)
        leaves = [m for m in loaded.network.modules() if type(m).__module__.startswith("torch.nn")]
        leaves = [m for m in leaves if any(True for _ in m.parameters(recurse=False))]
        assert leaves, "a network without leaves proves nothing"
        rest = comfy_memory.swap_leaves(loaded.network)
        assert all(hasattr(m, "comfy_cast_weights") for m in leaves), "a leaf was left"
        for name in rest:
            module = loaded.network.get_submodule(name)
            assert list(module.children()), f"{name}: {type(module)} is an unknown leaf"
        close(run_stage(stage, loaded), before, 0.0)
        assert comfy_memory.swap_leaves(loaded.network) == rest, "not idempotent"

    return check


def run_once(stage: str, loaded, dtype: torch.dtype) -> torch.Tensor:
    """One call of a picture network; its sampler would clamp and amplify every rounding."""
    noise = torch.Generator().manual_seed(1)
    if stage == "upscaler":
        x = torch.randn(1, 6, loaded.high_size, loaded.high_size, generator=noise)
        return loaded.network.first(x.to(dtype), 500).sample
    text = text_encoding("a small red circle")
    size = loaded.network.unet.config.sample_size
    x = torch.randn(1, 3, size, size, generator=noise).to(dtype)
    embeds = torch.randn(1, loaded.space.dim, generator=noise)
    parts = (part.to(dtype) for part in (embeds, text.pooled, text.hidden))
    context, labels = loaded.network.text_proj(*parts)
    return loaded.network.unet(x, 500, context, class_labels=labels).sample


def half_check(stage: str) -> Callable[[], None]:
    def check() -> None:
        once = stage in ("decoder", "upscaler")
        exact = (run_once if once else run_stage)(stage, load(stage), torch.float32)
        loaded = load(stage, torch.float16)
        managed = host.manage(loaded.network)
        network, device, dtype = host.use(managed)
        assert (network, device.type, dtype) == (loaded.network, "cpu", torch.float32)
        assert comfy_memory.weight_dtype(network) == torch.float16
        half = (run_once if once else run_stage)(stage, loaded, dtype)
        assert half.dtype == torch.float32
        close(half, exact, 0.02 * exact.abs().max().item())
        if once:
            assert run_stage(stage, loaded, dtype).isfinite().all()

    return check


def partial_check(stage: str) -> Callable[[], None]:
    """A load with room for a part of the network only, as on a small GPU."""

    def check() -> None:
        loaded = load(stage)
        before = run_stage(stage, loaded)
        managed = host.manage(loaded.network)
        patcher = managed.patcher
        patcher.load(torch.device("cpu"), lowvram_model_memory=patcher.model_size() // 3)
        assert patcher.model.model_lowvram, "nothing was left behind"
        close(run_stage(stage, loaded), before, 1e-6)
        patcher.detach()
        close(run_stage(stage, loaded), before, 1e-6)

    return check


def decoder_inputs(model):
    clip = host.wrap("text_encoder", load("text_encoder"))
    (positive,) = nodes.CLIPTextEncode().encode(clip, "a small red circle")
    (negative,) = nodes.CLIPTextEncode().encode(clip, "")
    space = host.open("decoder", model)[1].space
    embeds = torch.randn(1, space.dim, generator=torch.Generator().manual_seed(1))
    output = host.clip_vision_output(embeds, embedding_space=space.name, made_by="test")
    (positive,) = nodes.unCLIPConditioning().apply_adm(positive, output, 1.0, 0.0)
    return positive, negative, output


def native_sample(model, positive, negative, seed=5, steps=4, cfg=3.0, batch=1, sampler="euler"):
    size = model.model.network.unet.config.sample_size
    latent = {"samples": torch.zeros(batch, 4, size, size)}  # native Empty Latent Image
    (out,) = nodes.KSampler().sample(
        model, seed, steps, cfg, sampler, "normal", positive, negative, latent
    )
    return out["samples"]


def native_ksampler() -> None:
    model = host.wrap("decoder", load("decoder"))
    sampling = model.get_model_object("model_sampling")
    assert abs(float(sampling.sigma_max) - 20292) < 50, float(sampling.sigma_max)
    positive, negative, _ = decoder_inputs(model)
    seen = []
    inner = model.model.diffusion_model
    forward = inner.forward
    inner.forward = lambda x, t, **kw: (seen.append(t.tolist()), forward(x, t, **kw))[1]
    picture = native_sample(model, positive, negative, batch=2)
    del inner.forward
    assert picture.shape[1] == 3
    assert picture.isfinite().all()
    assert picture.abs().max() <= 1.0
    assert picture.std() > 0.01
    times = sorted({t for row in seen for t in row}, reverse=True)
    assert times == [999, 666, 333, 0], times
    for sampler in ("dpmpp_2m", "ddim", "euler_ancestral", "uni_pc"):
        other = native_sample(model, positive, negative, sampler=sampler)
        assert other.isfinite().all(), sampler
        assert other.abs().max() <= 1.05, sampler


def native_matches_ours() -> None:
    """The native network call equals our sampler's prediction of the noise."""
    loaded = load("decoder")
    model = host.wrap("decoder", loaded)
    positive, _negative, output = decoder_inputs(model)
    conds = model.model.extra_conds(
        prompt_type="positive",
        cross_attn=positive[0][0],
        device=torch.device("cpu"),
        **positive[0][1],
    )
    conds = {key: cond.cond for key, cond in conds.items()}
    assert torch.equal(conds["image_embeds"], output.image_embeds)
    size = loaded.network.unet.config.sample_size
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([500.0])
    context = conds.pop("c_crossattn")
    native = model.model.diffusion_model(x, t, context=context, **conds)
    text = conditioning_to_text(positive, loaded.space, "positive")
    hidden, time = loaded.network.text_proj(output.image_embeds, text.pooled, text.hidden)
    mask = torch.cat([torch.ones(1, hidden.shape[1] - 77, dtype=torch.bool), text.mask], 1)
    own = loaded.network.unet(x, 500, hidden, class_labels=time, attention_mask=mask).sample
    close(native, own[:, :3], 1e-6)
    # The unconditional half, and strengths on the way from there to the embedding.
    learned = loaded.network.text_proj.learned_classifier_free_guidance_embeddings.reshape(1, -1)
    side = model.model._image_embeds
    entry = {"clip_vision_output": output, "strength": 1.0, "noise_augmentation": 0.0}
    close(side([], "negative"), learned, 0.0)
    close(
        side([{**entry, "strength": 0.25}], "x"), learned * 0.75 + conds["image_embeds"] / 4, 1e-6
    )
    close(side([entry, entry], "positive"), output.image_embeds, 1e-6)


def lora_changes_the_decoder() -> None:
    loaded = load("decoder")
    model = host.wrap("decoder", loaded)
    positive, negative, _ = decoder_inputs(model)
    plain = native_sample(model, positive, negative)
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if k.startswith("lora_unet_down_blocks_0") and "conv1" in k)
    weight = model.model.state_dict()[keys[name]]
    noise = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1, generator=noise),
        f"{name}.lora_down.weight": torch.randn(2, *weight.shape[1:], generator=noise),
    }
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)
    assert patched.patches, "no key of the LoRA fitted"
    changed = native_sample(patched, positive, negative)
    assert (changed - plain).abs().max() > 1e-3, "the LoRA changed nothing"
    managed, loaded = host.open("decoder", patched)
    network, _, _ = host.use(managed)
    ours = run_stage("decoder", loaded)
    assert network is loaded.network
    host.use(host.open("decoder", model)[0])
    assert (run_stage("decoder", loaded) - ours).abs().max() > 1e-4, "our sampler missed the LoRA"
    close(native_sample(model, positive, negative), plain, 1e-6)


def native_text_encode() -> None:
    loaded = load("text_encoder")
    clip = host.wrap("text_encoder", loaded)
    for prompt in ("", "a small red circle on a blue background", "word " * 100):
        (conditioning,) = nodes.CLIPTextEncode().encode(clip.clone(), prompt)
        want = text_encoding(prompt)
        got = conditioning_to_text(conditioning, loaded.space, "positive")
        close(got.hidden, want.hidden, 0.0)
        close(got.pooled, want.pooled, 0.0)
        assert torch.equal(got.mask, want.mask)
    managed, loaded = host.open("text_encoder", clip.clone())
    tokenizer, space = loaded.tokenizer, loaded.space
    assert (tokenizer, space) == (loaded.tokenizer, loaded.space)
    assert host.use(managed)[0] is loaded.network
    keys = comfy.lora.model_lora_keys_clip(clip.cond_stage_model, {})
    assert any(key.startswith("lora_te_text_model_encoder_layers_0") for key in keys), list(keys)
    assert clip.get_sd()


def native_vision_encode() -> None:
    loaded = load("image_encoder")
    vision = host.wrap("image_encoder", loaded)
    image = torch.rand(2, 40, 60, 3, generator=torch.Generator().manual_seed(0))
    (output,) = nodes.CLIPVisionEncode().encode(vision, image, "center")
    managed, loaded = host.open("image_encoder", vision)
    preprocess, space = loaded.preprocess, loaded.space
    network, device, dtype = host.use(managed)
    close(
        output.image_embeds,
        clip_sampler.encode_image(network, preprocess(image), device, dtype),
        0.0,
    )
    assert output.embedding_space == space.name
    assert output.penultimate_hidden_states.shape == output.last_hidden_state.shape
    (squeezed,) = nodes.CLIPVisionEncode().encode(vision, image, "none")
    assert (squeezed.image_embeds - output.image_embeds).abs().max() > 1e-5


def native_vae_nodes() -> None:
    """The host's own nodes on a VQGAN: codes and pictures as our network functions give them."""
    loaded = load("vqgan")
    vae = host.wrap("vqgan", loaded)
    assert isinstance(vae, comfy.sd.VAE)
    image = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    (latent,) = nodes.VAEEncode().encode(vae, image)
    codes = vq.encode(loaded.network, image.movedim(-1, 1) * 2 - 1)
    assert len(codes.unique()) > 4
    assert torch.equal(latent["samples"], vq.embeddings(loaded.network, codes))
    assert torch.equal(vq.codes_of(loaded.network, latent["samples"]), codes)
    (decoded,) = nodes.VAEDecode().decode(vae, latent)
    close(decoded, vq.decode(loaded.network, codes).add(1).div(2).clamp(0, 1).movedim(1, -1), 1e-6)
    noise = torch.randn(latent["samples"].shape, generator=torch.Generator().manual_seed(1))
    near = {"samples": latent["samples"] + 0.02 * noise}
    close(nodes.VAEDecode().decode(vae, near)[0], decoded, 0.0)
    # A picture that is no multiple of the factor is cut, a large one goes through in tiles.
    (cut,) = nodes.VAEEncode().encode(vae, image[:, :30, :31])
    assert cut["samples"].shape == (2, loaded.channels, 7, 7)
    large = torch.rand(1, 128, 96, 3, generator=torch.Generator().manual_seed(2))
    (whole,) = nodes.VAEEncode().encode(vae, large)
    (tiled,) = nodes.VAEDecodeTiled().decode(vae, whole, 64, overlap=16)
    assert tiled.shape == large.shape and tiled.isfinite().all()
    assert (tiled - nodes.VAEDecode().decode(vae, whole)[0]).abs().mean() < 0.1
    (once,) = nodes.VAEDecodeTiled().decode(vae, latent, 512, overlap=64)
    close(once, decoded, 1e-5)
    (pieces,) = nodes.VAEEncodeTiled().encode(vae, large, 64, 16)
    assert pieces["samples"].shape == whole["samples"].shape
    managed, facts = host.open("vqgan", vae)
    network, _, dtype = host.use(managed)
    assert (network, facts, dtype) == (loaded.network, loaded, torch.float32)
    assert vae.get_sd()
    half = host.wrap("vqgan", load("vqgan", torch.float16))
    assert nodes.VAEDecode().decode(half, latent)[0].dtype == torch.float32
    close(nodes.VAEDecode().decode(half, latent)[0], decoded, 0.1)
    foreign = {"samples": torch.zeros(1, 4, 8, 8)}
    try:
        nodes.VAEDecode().decode(vae, foreign)
    except EdgeError as error:
        assert "[1, 4, 8, 8]" in str(error)
    else:
        raise AssertionError("a LATENT of another system was decoded")


def native_noise_mask_is_completed() -> None:
    """Set Latent Noise Mask says what AR Complete draws anew; LATENT goes on to native nodes."""
    from prior_art.nodes.mindalle import ARComplete, LoadARTransformer, LoadVQGAN, VQGANEncode

    (vae,) = LoadVQGAN.execute("tiny-mindalle", "auto").args
    (model,) = LoadARTransformer.execute("tiny-mindalle", "auto").args
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(0))
    latent, _ = VQGANEncode.execute(vae, image).args
    mask = torch.zeros(1, 32, 32)
    mask[:, 16:, 8:] = 1
    (latent,) = nodes.SetLatentNoiseMask().set_mask(latent, mask)
    draw = {"seed": 3, "candidates": 4, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    completed, pictures, weights = ARComplete.execute(
        model, vae, latent, "red", 2, image=image, **draw
    ).args
    network = host.use(host.open("vqgan", vae)[0])[0]
    codes = [vq.codes_of(network, part["samples"]) for part in (latent, completed)]
    same = (codes[0] == codes[1]).flatten(1)
    kept = torch.nn.functional.max_pool2d(mask, 4).flatten() == 0
    assert same[:, kept].all() and not same[:, ~kept].all()
    assert len(weights) == 2 and weights[0] >= weights[1]
    close(pictures[:, :15], image[:, :15].expand(2, -1, -1, -1), 0.0)
    assert nodes.VAEDecode().decode(vae, completed)[0].shape == (2, 32, 32, 3)


def foreign_inputs_are_refused() -> None:
    class Foreign:
        model = None
        cond_stage_model = None

    for stage in ("decoder", "text_encoder", "image_encoder", "vqgan"):
        try:
            host.open(stage, Foreign())
        except EdgeError as error:
            assert "Load" in str(error)
        else:
            raise AssertionError(f"{stage} took a foreign object")
    model = host.wrap("decoder", load("decoder"))
    _positive, negative, _ = decoder_inputs(model)
    stranger = host.clip_vision_output(torch.randn(1, 1280))
    (wrong,) = nodes.unCLIPConditioning().apply_adm(negative, stranger, 1.0, 0.0)
    try:
        native_sample(model, wrong, negative)
    except EdgeError as error:
        assert "1280" in str(error), error
    else:
        raise AssertionError("a 1280-d embedding went into the decoder")


def nothing_is_kept() -> None:
    """An edge that leaves the host's cache takes its network along."""
    model = host.wrap("decoder", load("decoder"))
    positive, negative, _ = decoder_inputs(model)
    native_sample(model, positive, negative)
    patched = model.clone()
    native_sample(patched, positive, negative)
    prior = host.manage(load("prior").network)
    vae = host.wrap("vqgan", load("vqgan"))
    vae.encode(torch.zeros(1, 32, 32, 3))
    host.use(prior, beside=[host.open("vqgan", vae)[0]])
    alive = [weakref.ref(one) for one in (model.model, prior.patcher.model, vae.first_stage_model)]
    del model, patched, prior, vae, positive, negative
    assert (
        not any(ref() is not None for ref in alive)
        or not gc.collect()
        or not any(ref() is not None for ref in alive)
    ), "a network outlives its edge"
    memory.cleanup_models_gc()
    assert not any(loaded.is_dead() for loaded in memory.current_loaded_models)


def interrupts_stop_within_one_step() -> None:
    """Each sampling node, told to stop during step 3 of 20, takes no fourth step.

    Counted where nodes tell of a step: what the host shows of them is its own affair, newer hosts
    leave most out.
    """
    from prior_art.edges import Prior, Transformer, Upscaler
    from prior_art.nodes.karlo import KarloDecoder, KarloUpscale
    from prior_art.nodes.mindalle import ARSample
    from prior_art.nodes.unclip import PriorSample, TextEncode

    prior, upscaler = load("prior"), load("upscaler")
    sizes = upscaler.low_size, upscaler.high_size
    text = TextEncode.execute(host.wrap("text_encoder", load("text_encoder")), "a bird").args[0]
    common = {"seed": 1, "steps": 20}
    guided = {**common, "positive": text, "negative": text, "cfg": 4.0, "batch_size": 1}
    embeds = host.clip_vision_output(
        torch.zeros(1, prior.space.dim), embedding_space=prior.space.name
    )
    writer = load("ar_transformer")
    stages = (
        (
            ARSample,
            {
                "ar_transformer": Transformer(
                    host.manage(writer.network), writer.tokenizer, writer.config, writer.name
                ),
                "vae": host.wrap("vqgan", load("vqgan")),
                "text": "red",
                "seed": 1,
                "candidates": 1,
                "top_k": 0,
                "top_p": 1.0,
                "temperature": 1.0,
            },
        ),
        (
            PriorSample,
            {**guided, "prior": Prior(host.manage(prior.network), prior.schedule, prior.space)},
        ),
        (
            KarloDecoder,
            {**guided, "model": host.wrap("decoder", load("decoder")), "image_embeds": embeds},
        ),
        (
            KarloUpscale,
            {
                **common,
                "upscaler": Upscaler(host.manage(upscaler.network), upscaler.schedule, *sizes),
                "image": torch.zeros(1, sizes[0], sizes[0], 3),
            },
        ),
    )
    tell = comfy.utils.ProgressBar.update_absolute
    for node, inputs in stages:
        seen = []

        def told(bar, value, *more, seen=seen, **others):
            seen.append(value)
            if value == 3:
                memory.interrupt_current_processing(True)
            tell(bar, value, *more, **others)

        try:
            with mock.patch.object(comfy.utils.ProgressBar, "update_absolute", told):
                node.execute(**inputs)
        except memory.InterruptProcessingException:
            assert seen == [1, 2, 3], f"{node.__name__} went on: {seen}"
        else:
            raise AssertionError(f"{node.__name__} did not stop")
        finally:
            memory.interrupt_current_processing(False)


def schema_arguments_are_fitted() -> None:
    io = host.io
    number = io.Int.Input("n", default=1, min=0, max=4, advanced=True, never_heard_of=1)
    assert number.as_dict()["max"] == 4
    schema = io.Schema(node_id="X", inputs=[number], outputs=[], search_aliases=["y"])
    assert schema.node_id == "X"
    assert io.Custom("UNCLIP_PRIOR").Output("p").io_type == "UNCLIP_PRIOR"
    assert not hasattr(io, "SomethingOfTomorrow")


def folders_and_dtypes() -> None:
    import folder_paths

    assert FOLDER in host.model_folders()
    extra = WORK / "elsewhere"
    folder_paths.add_model_folder_path("prior_art", str(extra))
    assert extra in host.model_folders()
    folder_paths.folder_names_and_paths["prior_art"][0].remove(str(extra))
    assert host.pick_dtype("fp16", "prior") == torch.float16
    assert host.pick_dtype("auto", "prior") == torch.float32
    assert host.pick_dtype("auto", "text_encoder") == torch.float32
    host.warn("a warning outside of a run")


STAGES = tuple(LOADERS)
CHECKS: dict[str, Callable[[], None]] = {
    **{f"swap_{stage}": swap_check(stage) for stage in STAGES},
    **{f"half_{stage}": half_check(stage) for stage in STAGES},
    **{f"partial_{stage}": partial_check(stage) for stage in STAGES},
    **{
        check.__name__: check
        for check in (
            schema_arguments_are_fitted,
            folders_and_dtypes,
            native_ksampler,
            native_matches_ours,
            lora_changes_the_decoder,
            native_text_encode,
            native_vision_encode,
            native_vae_nodes,
            native_noise_mask_is_completed,
            foreign_inputs_are_refused,
            interrupts_stop_within_one_step,
            nothing_is_kept,
        )
    },
}


def report(checks: dict[str, Callable[[], None]]) -> None:
    """Run the checks and print what each said."""
    results = {}
    with torch.inference_mode():
        for name, check in checks.items():
            try:
                check()
                results[name] = "ok"
            except Exception:
                results[name] = traceback.format_exc()
    print(json.dumps(results))


if __name__ == "__main__":
    tiny.tiny_karlo(FOLDER / "tiny")
    tiny.tiny_mindalle(FOLDER / "tiny-mindalle")
    report(CHECKS)

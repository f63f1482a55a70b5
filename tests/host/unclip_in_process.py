"""Karlo's prior into native Stable unCLIP, checked inside the host's own Python.

Started like in_process.py, whose start of the host and helpers it uses.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from in_process import COMFY, FOLDER, close, comfy, core, host, nodes, report, tiny, torch

from prior_art.edges import EdgeError
from prior_art.loaders.files.checkpoint import CheckpointError
from prior_art.nodes.unclip import (
    LoadImageNormalizer,
    LoadPrior,
    LoadTextEncoder,
    PriorSample,
    TextEncode,
)

PROMPT, SEED, LEVEL, STEPS, CFG = "the red cat", 5, 0.3, 5, 3.0
NORMAL = "normalizer"


def unclip_pipeline(folder: Path) -> Any:
    """diffusers' StableUnCLIPPipeline: a tiny Karlo's prior, a tiny Stable Diffusion behind it."""
    import diffusers
    from diffusers.pipelines.stable_diffusion import StableUnCLIPImageNormalizer
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTextModelWithProjection,
        CLIPTokenizer,
    )

    torch.manual_seed(0)
    prior = diffusers.PriorTransformer.from_pretrained(folder / "prior")
    dim = prior.config.embedding_dim
    normalizer = StableUnCLIPImageNormalizer(embedding_dim=dim)
    normalizer.mean.data, normalizer.std.data = torch.randn(1, dim), torch.rand(1, dim) + 0.5
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    text = CLIPTextModelWithProjection.from_pretrained(folder / "text_encoder")
    own = CLIPTextConfig.from_dict(text.config.to_dict() | {"hidden_size": 64})
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(4, 8),
        cross_attention_dim=64,
        use_linear_projection=True,
        class_embed_type="projection",
        projection_class_embeddings_input_dim=2 * dim,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
    betas["timestep_spacing"] = "leading"  # whose first latents are scaled as the host's
    pipe = diffusers.StableUnCLIPPipeline(
        prior_tokenizer=tokenizer,
        prior_text_encoder=text,
        prior=prior,
        prior_scheduler=diffusers.UnCLIPScheduler.from_pretrained(folder / "prior_scheduler"),
        image_normalizer=normalizer,
        image_noising_scheduler=diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        tokenizer=tokenizer,
        text_encoder=CLIPTextModel(own),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(prediction_type="v_prediction", **betas),
        vae=diffusers.AutoencoderKL(),
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def native(pipe: Any) -> Any:
    """The pipeline's U-Net as the host's own Stable Diffusion 2.1 unCLIP. Its tables do not list
    such widths, so its class is built by hand."""
    dim = pipe.prior.config.embedding_dim
    settings = {
        "use_checkpoint": False,
        "image_size": 32,
        "use_spatial_transformer": True,
        "legacy": False,
        "num_classes": "sequential",
        "adm_in_channels": 2 * dim,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 0],
        "transformer_depth_output": [1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "use_linear_in_transformer": True,
        "context_dim": 64,
        "num_head_channels": 8,
        "use_temporal_attention": False,
        "use_temporal_resblock": False,
    }
    names = comfy.utils.unet_to_diffusers(settings)
    config = comfy.supported_models.SD21UnclipL(settings)
    config.unet_config = settings
    config.noise_aug_config = config.noise_aug_config | {"timestep_dim": dim}
    config.model_type = lambda *_: comfy.model_base.ModelType.V_PREDICTION
    config.set_inference_dtype(torch.float32, None)
    tensors = pipe.unet.state_dict()
    converted = {names[key]: tensor for key, tensor in tensors.items() if key in names}
    assert len(converted) == len(tensors)
    model = config.get_model(converted, "")
    model.load_model_weights(converted, "")
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(model, device, torch.device("cpu"))


def sampled_prior() -> Any:
    """Karlo's prior on the prompt, by our nodes."""
    (clip,) = LoadTextEncoder.execute("tiny", "fp32").args
    (prior,) = LoadPrior.execute("tiny", "fp32").args
    sides = [TextEncode.execute(clip, text).args[0] for text in (PROMPT, "")]
    return PriorSample.execute(prior, *sides, SEED, 5, 4.0, 1).args[0]


def karlos_prior_drives_native_stable_unclip() -> None:
    """Behind the prior all is as in diffusers' StableUnCLIPPipeline on the host's noise and levels:
    its statistics, noise level, v prediction.

    "simple" has levels of whole timesteps, to which the host would round others. (The pipeline's
    own prior loop is not the published one: it steps from t to t - 1.)
    """
    pipe = unclip_pipeline(FOLDER / "tiny")
    write_normalizer(pipe.image_normalizer)
    model, embeds = native(pipe), sampled_prior()
    (patched,) = LoadImageNormalizer.execute(model, NORMAL).args
    hidden, negative = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    (positive,) = nodes.unCLIPConditioning().apply_adm([[hidden, {}]], embeds, 1.0, LEVEL)
    sides = positive, [[negative, {}]]
    latent = {"samples": torch.zeros(1, 4, 8, 8)}

    def ksampler(chosen: Any) -> torch.Tensor:
        shared = (SEED, STEPS, CFG, "euler", "simple", *sides, latent, 1.0)
        (out,) = nodes.KSampler().sample(chosen, *shared)
        return out["samples"] * chosen.get_model_object("latent_format").scale_factor

    sigmas = comfy.samplers.calculate_sigmas(
        model.get_model_object("model_sampling"), "simple", STEPS
    )
    plain_steps, plain_noising = pipe.scheduler.set_timesteps, pipe.noise_image_embeddings
    pipe.scheduler.set_timesteps = lambda *_, **more: plain_steps(sigmas=sigmas.tolist())
    pipe.noise_image_embeddings = lambda image_embeds, noise_level, generator: plain_noising(
        embeds.image_embeds,
        noise_level,
        noise=torch.randn(embeds.image_embeds.shape, generator=torch.manual_seed(SEED - 10)),
    )
    theirs = pipe(
        PROMPT,
        guidance_scale=CFG,
        noise_level=round(999 * LEVEL),
        prior_num_inference_steps=2,
        num_inference_steps=STEPS,
        latents=torch.randn(1, 4, 8, 8, generator=torch.manual_seed(SEED)),
        output_type="latent",
    ).images
    assert theirs.std() > 0.3
    close(ksampler(patched), theirs, 1e-4)
    assert (ksampler(model) - theirs).abs().max() > 0.05, "the statistics changed nothing"


def write_normalizer(normalizer: Any) -> None:
    normalizer.save_pretrained(FOLDER / NORMAL / "image_normalizer")
    index = {"_class_name": "StableUnCLIPPipeline"}
    (FOLDER / NORMAL / "model_index.json").write_text(json.dumps(index))


def headless_latent_nodes_are_the_hosts() -> None:
    from prior_art.headless import core_latents

    torch.manual_seed(0)
    one, two = ({"samples": torch.randn(2, 4, 8, 10)} for _ in range(2))
    patch = {"samples": torch.randn(2, 4, 5, 6)}
    (wanted,) = nodes.LatentBlend().blend(one, two, 0.3)
    close(core_latents.LatentBlend.execute(one, two, 0.3).args[0]["samples"], wanted["samples"], 0)
    (wanted,) = core("LatentBatch", samples1=one, samples2=two)
    close(core_latents.LatentBatch.execute(one, two).args[0]["samples"], wanted["samples"], 0)
    for x, y, feather in ((0, 0, 0), (16, 24, 0), (16, 8, 16), (0, 24, 24), (48, 40, 8)):
        (wanted,) = nodes.LatentComposite().composite(one, patch, x, y, feather=feather)
        made = core_latents.LatentComposite.execute(one, patch, x, y, feather).args[0]
        close(made["samples"], wanted["samples"], 1e-6)


def foreign_models_and_statistics_are_refused() -> None:
    from types import SimpleNamespace

    from safetensors.torch import save_file

    pipe = unclip_pipeline(FOLDER / "tiny")
    write_normalizer(pipe.image_normalizer)
    model, folder = native(pipe), FOLDER / NORMAL / "image_normalizer"
    file = next(folder.glob("*.safetensors"))
    for tensors, chosen, kind, words in (
        ({}, SimpleNamespace(model=None), EdgeError, "unCLIPCheckpointLoader"),
        ({"mean": torch.zeros(1, 8), "std": torch.ones(1, 8)}, model, EdgeError, "8 dimensions"),
        ({"mean": torch.zeros(1, 8), "std": torch.zeros(1, 8)}, model, CheckpointError, "positive"),
        ({"mean": torch.zeros(1, 8)}, model, CheckpointError, "std"),
    ):
        if tensors:
            save_file(tensors, file)
        try:
            LoadImageNormalizer.execute(chosen, NORMAL)
        except kind as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{words}: not refused")


CHECKS = {
    check.__name__: check
    for check in (
        karlos_prior_drives_native_stable_unclip,
        headless_latent_nodes_are_the_hosts,
        foreign_models_and_statistics_are_refused,
    )
}

if __name__ == "__main__":
    assert Path(COMFY).is_dir() and host.NAME == "ComfyUI"
    tiny.tiny_karlo(FOLDER / "tiny")
    report(CHECKS)

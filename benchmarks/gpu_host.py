"""The stages in a real ComfyUI: a process of benchmarks/gpu.py, run by ComfyUI's own Python.

The host is started as its main.py starts it, but for its server: its allocator, its dynamic VRAM,
its memory management. Networks of random weights go through the pack's adapters into the host's
types, as a loader node's do, and are sampled as a stage node samples them: taken out again, put on
the device by the host, told of every step, in inference mode.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gpu_table import Job
from gpu_worker import LATE, check_device, do, parse, watched

PACK = Path(__file__).resolve().parents[1]


def start_host(comfy: Path, device: str, base: str) -> None:
    """ComfyUI as its main.py starts it, and the pack in it."""
    sys.path.insert(0, str(comfy))
    own = ["--disable-all-custom-nodes", "--database-url", "sqlite:///:memory:"]
    sys.argv = ["main.py", "--base-directory", base, *own, *(["--cpu"] if device == "cpu" else [])]
    import comfy.options

    comfy.options.enable_args_parsing()
    import cuda_malloc  # noqa: F401, chooses the allocator, before torch is imported
    import main  # noqa: F401

    spec = importlib.util.spec_from_file_location(
        "prior_art", PACK / "__init__.py", submodule_search_locations=[str(PACK)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["prior_art"] = module
    spec.loader.exec_module(module)


class Hosted:
    """One stage in the host's care.

    Attributes:
        managed: what the host puts on the device; ``activations`` what it makes room for.
        stage: of the benchmarks, whose ``ours`` runs the sampler.
    """

    def __init__(self, stage: Any, managed: Any, activations: int = 0) -> None:
        self.stage, self.managed, self.activations = stage, managed, activations

    def __call__(self, given: Any) -> Any:
        from prior_art.host import host
        from prior_art.nodes.widgets import Bar

        stage = self.stage
        stage.network, stage.device, stage.dtype = host.use(self.managed, self.activations)
        stage.callback = Bar()
        return stage.ours(given)


class HostedKoala(Hosted):
    """The same where the host has a network of its own, and a way to call it."""

    def __init__(self, stage: Any, model: Any, activations: int) -> None:
        from prior_art.host import host

        managed, self.facts = host.open("koala_unet", model)
        super().__init__(stage, managed, activations)

    def __call__(self, given: Any) -> Any:
        from functools import partial

        from prior_art.host import host

        network, _, _ = host.use(self.managed, self.activations)
        self.stage.prepare = partial(self.facts.prepare, network)
        return super().__call__(given)


def in_host(name: str, stage: Any, args: Any) -> Callable[[Any], Any]:
    """A stage of the benchmarks, its network handed to the host as the loader node of it does."""
    from prior_art.host import host
    from prior_art.loaders import kandinsky, karlo, koala
    from prior_art.networks.memory import (
        DECODED_PIXEL,
        DECODER_PIXEL,
        LATENT_PLACE,
        SDXL_PLACE,
        UPSCALER_PIXEL,
    )
    from prior_art.samplers.koala import EulerSchedule

    network, config = stage.network, getattr(stage, "config", {})
    network.to("cpu")  # where a loader leaves it
    places = args.batch * ((args.pixels or 0) // 8) ** 2
    if name == "karlo-decoder":
        model = host.wrap(
            "decoder", karlo.LoadedDecoder(network, stage.schedule, stage.positive.space)
        )
        pixels = args.batch * config["decoder"]["sample_size"] ** 2
        return Hosted(stage, host.open("decoder", model)[0], pixels * DECODER_PIXEL)
    if name == "karlo-sr":
        pixels = args.batch * config["sr"]["sample_size"] ** 2
        return Hosted(stage, host.manage(network), pixels * UPSCALER_PIXEL)
    if name == "kandinsky-decoder":
        space = _space(args)
        loaded = kandinsky.LatentDecoder(network, stage.schedule, space, None, "random")
        model = host.wrap("latent_decoder", loaded)
        return Hosted(stage, host.open("latent_decoder", model)[0], places * LATENT_PLACE)
    if name.startswith("movq"):
        vae = host.wrap("movq", kandinsky.MoVQ(network, 8, 4, "random"))
        return Hosted(stage, host.open("movq", vae)[0], DECODED_PIXEL * 64 * places)
    if name == "koala-700m":
        variant = koala.variant_of(network, stage.dtype)
        loaded = koala.KoalaUNet(network, EulerSchedule(), variant, "random")
        model = host.wrap("koala_unet", loaded, latent_rgb_factors=None)
        return HostedKoala(stage, model, places * SDXL_PLACE)
    return Hosted(stage, host.manage(network))


def _space(args: Any) -> Any:
    from prior_art.edges import SPACES

    return SPACES["laion-vit-bigg-14" if args.size == "published" else "shapes-vit-g"]


class Tokens:
    """minDALL-E's sampler as a stage."""

    def __init__(self, args: Any) -> None:
        import mindalle
        import torch
        from gpu_works import IMAGE_TOKENS, TOKEN_DTYPES

        size = "true" if args.size == "published" else "embedded"
        place = torch.device(args.device)
        made = mindalle.make(size, IMAGE_TOKENS[args.size], place)
        self.network = mindalle.in_dtype(made, TOKEN_DTYPES[args.device])
        self.count = args.batch

    def ours(self, given: Any) -> Any:
        import mindalle

        return mindalle.ours(self.network, mindalle.make_prompt(self.device), self.count)


def measured(job: Job, size: str, device: str) -> dict[str, Any]:
    """What a stage takes in the host: the first run, with loading, and the median of others."""
    import torch
    from gpu_works import DTYPES, given_to, make, runs_for, settings
    from measure import measure

    args = settings(job, size, device, DTYPES[device])
    stage = Tokens(args) if job.name == "mindalle" else make(job.name, args)
    given, place = given_to(job.name, args), torch.device(device)
    run = in_host(job.name, stage, args)
    with torch.inference_mode():
        _, first = measure(place, lambda: run(given))
        _, again = measure(place, lambda: run(given))
        count = runs_for(place, again["s"])
        taken = [measure(place, lambda: run(given))[1]["s"] for _ in range(count)]
    return {"host_first_s": first["s"], "host_s": statistics.median(taken)}


def main() -> None:
    args = parse()
    with tempfile.TemporaryDirectory() as base:
        with watched(args.until - time.time() + LATE):
            start_host(args.comfy, args.device, base)
            import comfy.model_management as memory
            import torch
            from gpu_works import card_is_well, tidy

            check_device(args.device)

        def free() -> None:
            memory.unload_all_models()
            memory.soft_empty_cache()
            tidy(torch.device(args.device))

        do(
            args,
            lambda job: measured(job, args.size, args.device),
            free,
            lambda: card_is_well(args.device),
        )


if __name__ == "__main__":
    main()

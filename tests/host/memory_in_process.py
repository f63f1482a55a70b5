"""What stands between a sampler and the weights in the host, counted on a card that is none.

Started like in_process.py, whose start of the host and helpers it uses; the card is that of
accelerator.py.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

from accelerator import DEVICE, GIB, HAS_DYNAMIC, card, casts
from in_process import (
    COMFY,
    FOLDER,
    WORK,
    close,
    comfy,
    comfy_memory,
    core,
    decoder_inputs,
    host,
    load,
    memory,
    native_sample,
    nodes,
    report,
    run_stage,
    tiny,
    torch,
)
from places_in_process import (
    DECODER,
    KARLO,
    KOALA,
    MINDALLE,
    OWN,
    PRIOR,
    PROMPT,
    Graph,
    pack,
    pictures,
)

from prior_art.edges import EdgeError
from prior_art.networks.leaf import is_bare

CUDA = torch.device("cuda")

ENCODERS = {
    *(pack.LoadTextEncoder, pack.TextEncode, pack.BatchPrompts, pack.LoadImageEncoder),
    *(pack.ImageEncode, pack.ZeroImage, pack.KoalaTextEncode, pack.LoadReranker, pack.CLIPRerank),
}
"""They run once a prompt or picture, and the host computes them in fp32 on whatever weights."""
STEPPING = {
    *(pack.PriorSample, pack.KarloDecoder, pack.KarloUpscale, pack.KandinskyPrior),
    *(pack.KandinskyDecoder, pack.KandinskyInpaint, pack.KandinskyDepth, pack.KoalaSample),
    *(pack.ARSample, pack.ARVariations, pack.ARComplete),
}


class Counted(Graph):
    """Counts each node's casts, and those of its last step."""

    def __init__(self, seen: list) -> None:
        super().__init__()
        self.seen, self.casts, self.last_step = seen, {}, {}

    def run(self, node: type, *args: Any, **inputs: Any) -> tuple:
        tell, at, before = comfy.utils.ProgressBar.update_absolute, [], len(self.seen)

        def told(bar, *args: Any, **kwargs: Any) -> None:
            at.append(len(self.seen))
            tell(bar, *args, **kwargs)

        with mock.patch.object(comfy.utils.ProgressBar, "update_absolute", told):
            outputs = super().run(node, *args, **inputs)
        self.casts[node] = self.casts.get(node, 0) + len(self.seen) - before
        if node in STEPPING:
            self.last_step[node] = at[-1] - at[-2]
        return outputs


def counts(dynamic: bool, half: bool = False) -> Counted:
    with card(dynamic=dynamic, half=half), casts() as seen:
        graph = Counted(seen)
        graph.all_nodes(*pictures())
    return graph


def nothing_is_cast_while_a_network_samples() -> None:
    """No leaf's weights are cast or brought over at a step, whatever the host does by default, and
    in whichever precision."""
    for half in (False, True):
        graph = counts(HAS_DYNAMIC, half)
        busy = {node.__name__: n for node, n in graph.casts.items() if n and node not in ENCODERS}
        assert not busy, busy
        assert graph.last_step.keys() == STEPPING and not any(graph.last_step.values())


def leaf_by_leaf_each_step_would_cast() -> None:
    """What a step costs where a network does not stay: so the count above can fail."""
    if HAS_DYNAMIC:
        with mock.patch.object(comfy_memory, "stays", lambda size, device: False):
            graph = counts(dynamic=True)
        idle = [node.__name__ for node, n in graph.last_step.items() if not n]
        assert graph.last_step.keys() == STEPPING and not idle, idle


def is_whole(patcher: Any) -> bool:
    """Whether a network lies on the card with nothing hung on it."""
    plain = all(
        is_bare(m) and not getattr(m, "comfy_cast_weights", False) for m in patcher.model.modules()
    )
    return plain and patcher.loaded_size() == memory.module_size(patcher.model)


def lora_for(model: Any) -> Any:
    """The MODEL with a LoRA of one convolution."""
    keys = comfy.lora.model_lora_keys_unet(model.model, {})
    name = next(k for k in keys if k.startswith("lora_unet_down_blocks_0") and "conv1" in k)
    weight = model.model.state_dict()[keys[name]]
    noise = torch.Generator().manual_seed(0)
    lora = {
        f"{name}.lora_up.weight": torch.randn(weight.shape[0], 2, 1, 1, generator=noise),
        f"{name}.lora_down.weight": torch.randn(2, *weight.shape[1:], generator=noise),
    }
    return comfy.sd.load_lora_for_models(model, None, lora, 1.0, 0.0)[0]


def native_samplers_cast_nothing() -> None:
    """KSampler on a MODEL, with a LoRA and without, and VAE Decode; the pictures of a CPU."""
    pictures = []
    for place in (nullcontext(), card(dynamic=HAS_DYNAMIC)):
        with place:
            model = host.wrap("decoder", load("decoder"))
            prompts = decoder_inputs(model)[:2]
            vae = host.wrap("vqgan", load("vqgan"))
            latent = {"samples": torch.ones(1, load("vqgan").channels, 8, 8)}
            with casts() as seen:
                made = [native_sample(kind, *prompts) for kind in (model, lora_for(model), model)]
                made += nodes.VAEDecode().decode(vae, latent)
            assert not seen and is_whole(model)
            pictures.append(made)
    for one, other in zip(*pictures, strict=True):
        close(one, other, 1e-5)
    plain, patched, again, _ = pictures[1]
    assert (patched - plain).abs().max() > 1e-3
    close(again, plain, 1e-6)


def native_nodes_run_in_the_precision_of_the_weights() -> None:
    """Nothing casts what a leaf is given, so every native node must give it the weights' dtype."""
    image, _ = pictures()
    with card(dynamic=HAS_DYNAMIC, half=True):
        clip = pack.LoadTextEncoder.execute(KARLO, "auto").args[0]
        vision = pack.LoadImageEncoder.execute(KARLO, "auto").args[0]
        texts = [nodes.CLIPTextEncode().encode(clip, text)[0] for text in (PROMPT, "")]
        (seen,) = nodes.CLIPVisionEncode().encode(vision, image, "center")
        (led,) = nodes.unCLIPConditioning().apply_adm(texts[0], seen, 1.0, 0.0)
        cases = [(pack.LoadDecoder.execute(KARLO, "auto").args[0], led, texts[1])]
        vision = pack.LoadImageEncoder.execute(PRIOR, "auto").args[0]
        (seen,) = nodes.CLIPVisionEncode().encode(vision, image, "center")
        sides = pack.KandinskyConditioning.execute(seen, seen, image).args
        for mode in ("", "-inpaint", "-depth"):
            model = pack.LoadLatentDecoder.execute(f"{DECODER}{mode}", "auto", "published").args[0]
            cases.append((model, *sides))
        model, clip, vae = pack.LoadKoala.execute(KOALA, "auto", "any KOALA", OWN, OWN, OWN).args
        said = [pack.KoalaTextEncode.execute(clip, t, 64, 64, 0, 0, 0, 0).args[0] for t in "ab"]
        cases.append((model, *said))
        latent = {"samples": torch.zeros(1, 4, 8, 8)}
        vaes = [vae, pack.LoadMoVQ.execute(DECODER, "auto").args[0]]
        vaes.append(pack.LoadVQGAN.execute(MINDALLE, "auto").args[0])
        with casts() as cast:
            for model, *prompts in cases:
                assert (model.model.manual_cast_dtype or model.model.get_dtype()) == torch.float16
                settings = (1, 2, 4.0, "euler", "normal")
                (made,) = nodes.KSampler().sample(model, *settings, *prompts, latent)
                assert made["samples"].isfinite().all()
            for vae in vaes:
                (encoded,) = nodes.VAEEncode().encode(vae, image)
                assert nodes.VAEDecode().decode(vae, encoded)[0].isfinite().all()
        assert not cast, {type(leaf).__name__ for leaf in cast}


def what_does_not_fit_or_is_told_to_move_goes_the_hosts_way() -> None:
    wanted = run_stage("prior", load("prior"))
    size = memory.module_size(load("prior").network)
    for total, state in ((size, "NORMAL_VRAM"), (8 * size, "LOW_VRAM"), (8 * size, "NO_VRAM")):
        dynamic = HAS_DYNAMIC and state != "NO_VRAM"  # which switches it off
        with card(total, dynamic=dynamic, state=state):
            loaded = load("prior")
            managed = host.manage(loaded.network)
            assert getattr(managed.patcher, "is_dynamic", bool)() == dynamic
            host.use(managed)
            # The older host leaves 128 MB there in any case.
            assert is_whole(managed.patcher) == (not HAS_DYNAMIC and state != "NO_VRAM")
            close(run_stage("prior", loaded), wanted, 1e-6)


def others_put_ours_out_and_ours_come_back() -> None:
    """Two of ours on a card that holds one, then one that the host brings over leaf by leaf."""
    stages = ("decoder", "upscaler")
    wanted = [run_stage(stage, load(stage)) for stage in stages]
    loaded = [load(stage) for stage in stages]
    sizes = [memory.module_size(one.network) for one in loaded]
    total = int(1.3 * max(sizes))
    assert total < sum(sizes)
    with card(total, dynamic=HAS_DYNAMIC) as found:
        managed = [host.manage(one.network) for one in loaded]
        for i in (0, 1, 0, 1):
            host.use(managed[i])
            assert is_whole(managed[i].patcher) and not is_whole(managed[1 - i].patcher)
            assert sizes[i] <= found.used() <= total
            for stage, one, expected in zip(stages, loaded, wanted, strict=True):
                close(run_stage(stage, one), expected, 1e-6)
        theirs = load("decoder").network
        comfy_memory.prepare(theirs, DEVICE)
        plain = comfy.model_patcher.ModelPatcher
        other = getattr(comfy.model_patcher, "CoreModelPatcher", plain)(
            comfy_memory.Holder(theirs), DEVICE, torch.device("cpu")
        )
        memory.load_models_gpu([other])
        assert not is_whole(managed[1].patcher), "nothing was put out for the host's"
        host.use(managed[1])
        assert is_whole(managed[1].patcher) and found.used() <= total


def recordings_go_before_the_weights() -> None:
    with card() as found, mock.patch.object(comfy_memory, "forget") as forget:

        def dropped() -> int:
            count = forget.call_count
            forget.reset_mock()
            return count

        model = host.wrap("decoder", load("decoder"))
        patched = lora_for(model)
        for kind, again in ((model, False), (model, False), (patched, True), (model, True)):
            host.use(host.open("decoder", kind)[0])
            assert bool(dropped()) == again
        model.partially_unload(model.offload_device, found.used() // 2)
        assert dropped() == 1 and not is_whole(model)
        host.use(host.open("decoder", model)[0])
        assert is_whole(model)
        model.detach()
        assert forget.call_args.args == (model.model,) and dropped()


def convolutions_keep_their_format_and_are_saved_plain() -> None:
    """Channels last once they were on a card of the kind; the numbers stay, on disk too."""
    wanted = run_stage("decoder", load("decoder"))
    reads = "prior_art.networks.leaf._reads_channels_last"
    with card(dynamic=HAS_DYNAMIC), mock.patch(reads, lambda device: True):
        loaded, vae = load("decoder"), host.wrap("vqgan", load("vqgan"))
        before = {k: v.clone() for k, v in loaded.network.state_dict().items()}
        model = host.wrap("decoder", loaded)
        for kind in (model, lora_for(model), model):
            host.use(host.open("decoder", kind)[0])
            assert kind.model.state_dict() and are_channels_last(model.model)
        close(run_stage("decoder", loaded), wanted, 1e-4)
        model.detach()
        assert are_channels_last(model.model)
        assert all(torch.equal(v, before[k]) for k, v in loaded.network.state_dict().items())
        host.use(host.open("vqgan", vae)[0])
        assert are_channels_last(vae.first_stage_model)
        for name, value, network in (
            ("ModelSave", {"model": model}, model.model.diffusion_model),
            ("VAESave", {"vae": vae}, vae.first_stage_model),
        ):
            core(name, filename_prefix=name, **value)
            (file,) = (WORK / "output").glob(f"{name}*.safetensors")
            saved = comfy.utils.load_torch_file(str(file), safe_load=True)
            for key, tensor in network.state_dict().items():
                (found,) = [v for k, v in saved.items() if k == key or k.endswith(f"model.{key}")]
                assert torch.equal(found, tensor) and found.is_contiguous(), key


def are_channels_last(network: torch.nn.Module) -> bool:
    kernels = [p for p in network.parameters() if p.dim() == 4]
    return all(p.is_contiguous(memory_format=torch.channels_last) for p in kernels)


def what_fits_on_no_such_card_is_refused() -> None:
    with card(total=GIB), mock.patch.object(memory, "get_torch_device", lambda: CUDA):
        host.check_room(GIB, "a picture", "lower 'batch_size'")
        try:
            host.check_room(GIB + 1, "64 pictures", "lower 'batch_size'")
        except EdgeError as error:
            assert "64 pictures would take at least 1.1 GB" in str(error), error
        else:
            raise AssertionError("not refused")
    with mock.patch.object(memory, "get_torch_device", lambda: torch.device("xpu")):
        host.check_room(10**18, "a picture", "lower 'batch_size'")  # nobody knows


CHECKS = {
    check.__name__: check
    for check in (
        nothing_is_cast_while_a_network_samples,
        leaf_by_leaf_each_step_would_cast,
        native_samplers_cast_nothing,
        native_nodes_run_in_the_precision_of_the_weights,
        what_does_not_fit_or_is_told_to_move_goes_the_hosts_way,
        others_put_ours_out_and_ours_come_back,
        recordings_go_before_the_weights,
        convolutions_keep_their_format_and_are_saved_plain,
        what_fits_on_no_such_card_is_refused,
    )
}

if __name__ == "__main__":
    assert Path(COMFY).is_dir()
    tiny.tiny_karlo(FOLDER / "tiny")
    tiny.tiny_mindalle(FOLDER / "tiny-mindalle")
    tiny.tiny_kandinsky(FOLDER / "tiny-kandinsky")
    report(CHECKS)

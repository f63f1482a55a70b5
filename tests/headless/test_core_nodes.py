"""The host's own nodes, as the headless runner has them."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from PIL.PngImagePlugin import PngInfo

from prior_art.headless.core_images import ImageBatch, ImageCompositeMasked
from prior_art.headless.core_latents import (
    LatentBatch,
    LatentBlend,
    LatentComposite,
    VAEEncodeForInpaint,
)
from prior_art.headless.core_nodes import (
    LoadImage,
    LoadImageMask,
    PreviewAny,
    PreviewImage,
    SaveImage,
)
from prior_art.headless.core_prompts import ConditioningAverage, UnCLIPConditioning
from prior_art.headless.core_sampling import _drawing, euler
from prior_art.headless.errors import Unsupported
from prior_art.headless.runner import check, node_classes
from prior_art.headless.workflow import WorkflowError
from prior_art.host.embedded.door import session

ALL = node_classes()
SIZES = ("width", "height", "batch_size")
RED, GREEN, BLUE = (255, 0, 0), (0, 255, 0), (0, 0, 255)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "input_folder", tmp_path)
    monkeypatch.setattr(session, "output_folder", tmp_path)
    monkeypatch.setattr(session, "prompt", None)
    monkeypatch.setattr(session, "workflow", None)
    return tmp_path


def load(name):
    return LoadImage.execute(name).args


def levels(image):
    """Of 255, at the top left of each frame."""
    return (image[:, 0, 0] * 255).round().int().tolist()


def test_every_frame_of_an_animation_is_loaded(folder):
    first, *others = (Image.new("RGB", (4, 2), colour) for colour in (RED, GREEN, BLUE))
    first.save(folder / "a.gif", save_all=True, append_images=others, duration=100)
    image, mask = load("a.gif")
    assert image.shape == (3, 2, 4, 3) and mask.shape == (3, 2, 4)
    # FFmpeg's white of a GIF is 65280 of 65535, and its opaque not quite.
    assert levels(image) == [[254, 0, 0], [0, 254, 0], [0, 0, 254]]
    assert mask.unique().tolist() == pytest.approx([1 - 65280 / 65535])


def test_an_animation_without_durations_is_refused_before_anything_runs(folder):
    first, other = Image.new("RGB", (4, 2), RED), Image.new("RGB", (4, 2), BLUE)
    first.save(folder / "a.gif", save_all=True, append_images=[other])
    assert "duration" in LoadImage.validate_inputs("a.gif")
    with pytest.raises(WorkflowError, match=r"'a\.gif', a GIF whose frames have no duration"):
        load("a.gif")


def test_of_a_tiff_the_first_page_is_loaded(folder):
    clear = Image.new("RGBA", (4, 2), (0, 255, 0, 0))
    Image.new("RGB", (4, 2), RED).save(folder / "a.tiff", save_all=True, append_images=[clear])
    image, mask = load("a.tiff")
    assert levels(image) == [[255, 0, 0]] and mask.shape == (1, 64, 64) and not mask.any()


def test_a_transparent_palette_colour_is_masked(folder):
    picture = Image.new("P", (4, 2), 0)
    picture.putpalette([*RED, *BLUE])
    picture.putpixel((1, 0), 1)
    picture.save(folder / "a.png", transparency=1)
    image, mask = load("a.png")
    assert image[0, 0, 0].tolist() == [1, 0, 0]
    assert mask[0, 0].tolist() == [0, 1, 0, 0]


@pytest.mark.parametrize(
    ("name", "order"), [("a.png", "<u2"), ("a.tiff", "<u2"), ("b.tiff", ">u2")]
)
def test_sixteen_bits_keep_their_greys(folder, name, order):
    greys = np.array([[0, 255, 32768, 65535]], dtype=order)
    mode = "I;16B" if order == ">u2" else "I;16"
    Image.frombytes(mode, (4, 1), greys.tobytes()).save(folder / name)
    image, _ = load(name)
    assert (image[0, 0, :, 0] * 65535).round().int().tolist() == greys[0].tolist()


def test_colours_of_a_jpeg_serve_their_block_as_in_ffmpeg(folder):
    rows = np.zeros((16, 16, 3), dtype=np.uint8)
    rows[:, :7] = RED
    Image.fromarray(rows).save(folder / "a.jpg", subsampling=2, quality=95)
    image, _ = load("a.jpg")
    with Image.open(folder / "a.jpg") as smooth:
        smoothed = torch.from_numpy(np.array(smooth)) / 255
    # Columns 6 and 7 share their colour: Pillow would blend it across the edge of the block.
    assert (image[0, 8, 7] - smoothed[8, 7]).abs().max() > 0.05
    pair = image[0, 8, 6:8] - image[0, 8, 6:8].mean(-1, keepdim=True)
    assert (image[0, :, 0] - torch.tensor([1.0, 0, 0])).abs().max() < 0.02 and pair.isfinite().all()


@pytest.mark.parametrize("kind", ["jpeg", "png", "bmp", "tiff"])
def test_a_file_that_is_cut_off_shows_what_is_there(folder, kind):
    rows = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(rows).save(folder / "whole", format=kind)
    data = (folder / "whole").read_bytes()
    (folder / "cut").write_bytes(data[: len(data) // 2])
    whole, part = load("whole")[0], load("cut")[0]
    assert part.shape == whole.shape
    known = slice(56, None) if kind == "bmp" else slice(8)  # BMPs begin at the bottom
    assert torch.equal(part[:, known], whole[:, known]) and not torch.equal(part, whole)
    if kind == "jpeg":
        assert levels(part[:, -1:]) == [[0, 135, 0]]  # FFmpeg's green


@pytest.mark.parametrize("kind", ["profile", "text", "international"])
def test_long_notes_in_a_png_do_no_harm(folder, kind):
    notes = PngInfo()
    if kind == "text":
        notes.add_text("prompt", "x" * 3_000_000, zip=True)
    if kind == "international":
        notes.add_itxt("prompt", "x" * 3_000_000, zip=True)
    profile = {"icc_profile": bytes(3_000_000)} if kind == "profile" else {}
    Image.new("RGB", (4, 2), BLUE).save(folder / "a.png", pnginfo=notes, **profile)
    assert levels(load("a.png")[0]) == [[0, 0, 255]]
    assert not ImageFile.LOAD_TRUNCATED_IMAGES


@pytest.mark.parametrize(("turn", "quarters"), [(1, 0), (3, 2), (5, 3), (6, 3), (7, 1), (8, 1)])
def test_pictures_are_turned_but_not_mirrored(folder, turn, quarters):
    rows = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(rows).save(folder / "a.png", exif=exif)
    found = (load("a.png")[0][0] * 255).round().byte().numpy()
    assert np.array_equal(found, np.rot90(rows, quarters))


def test_what_is_no_picture_is_refused_by_name(folder):
    (folder / "a.png").write_text("nothing")
    assert "'a.png', which is no picture" in LoadImage.validate_inputs("a.png")


def test_a_channel_is_a_mask(folder):
    Image.new("RGBA", (4, 2), (0, 51, 0, 204)).save(folder / "a.png")
    alpha, green = (LoadImageMask.execute("a.png", c).args[0] for c in ("alpha", "green"))
    assert alpha.mean().item() == pytest.approx(0.2) and green.mean().item() == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("prefix", "code"),
    [
        ("%year%-%month%-%day%/pic", "%Y-%m-%d/pic"),
        ("%hour%%minute%%second%_%width%x%height%", "%H%M%S_4x2"),
        # The editor's tokens are the editor's: in an API file they stay, as in the host.
        ("%date:yyyy%_%KSampler.seed%_%date%", "%%date:yyyy%%_%%KSampler.seed%%_%%date%%"),
    ],
)
def test_a_prefix_takes_date_and_size(folder, monkeypatch, prefix, code):
    now = time.struct_time((2024, 3, 5, 17, 8, 9, 1, 65, 0))
    monkeypatch.setattr(time, "localtime", lambda: now)
    [path] = SaveImage.execute(torch.zeros(1, 2, 4, 3), prefix).ui["images"]
    assert path == folder / (time.strftime(code, now) + "_00001_.png")


@pytest.mark.parametrize("prefix", ["", ".", "sub/.."])
def test_a_prefix_without_a_name_stays_in_the_output_folder(folder, monkeypatch, prefix):
    monkeypatch.setattr(session, "output_folder", folder / "output")
    for number in (1, 2):
        [path] = SaveImage.execute(torch.zeros(1, 2, 4, 3), prefix).ui["images"]
        assert path == folder / "output" / f"._{number:05}_.png"


@pytest.mark.parametrize("prefix", ["a\0b", "x" * 300])
def test_a_prefix_that_is_no_files_name_is_named(folder, prefix):
    with pytest.raises(WorkflowError, match=r"cannot be written.*'filename_prefix'"):
        SaveImage.execute(torch.zeros(1, 2, 4, 3), prefix)


def test_an_output_folder_that_is_a_file_is_named(folder, monkeypatch):
    (folder / "file").touch()
    monkeypatch.setattr(session, "output_folder", folder / "file")
    with pytest.raises(WorkflowError, match=r"cannot be written.*--out"):
        SaveImage.execute(torch.zeros(1, 2, 4, 3), "x")


def test_prompts_are_averaged_and_the_shorter_padded():
    to = [[torch.ones(1, 3, 2), {"pooled_output": torch.ones(1, 2), "more": 1}]]
    other = [[torch.full((1, 2, 2), 3.0), {"pooled_output": torch.full((1, 2), 5.0)}]]
    [[hidden, extra]] = ConditioningAverage.execute(to, other, 0.75).args[0]
    assert hidden[0, :, 0].tolist() == [1.5, 1.5, 0.75]
    assert extra["pooled_output"].tolist() == [[2, 2]] and extra["more"] == 1
    assert to[0][1]["pooled_output"].max() == 1


def test_a_longer_prompt_is_cut_and_may_lack_the_pooled_one():
    to, other = [[torch.ones(1, 1, 2), {}]], [[torch.zeros(1, 4, 2), {}]]
    [[hidden, extra]] = ConditioningAverage.execute(to, other, 0.5).args[0]
    assert hidden.tolist() == [[[0.5, 0.5]]] and extra == {}


def test_a_prompt_carries_every_image_embedding_wired_to_it():
    prompt, embeds = [[torch.ones(1, 3, 2), {}]], SimpleNamespace()
    once = UnCLIPConditioning.execute(prompt, embeds, 0.5, 0.1).args[0]
    twice = UnCLIPConditioning.execute(once, embeds, 1.0, 0.0).args[0]
    entry = {"clip_vision_output": embeds, "strength": 0.5, "noise_augmentation": 0.1}
    assert once[0][1]["unclip_conditioning"] == [entry]
    assert [one["strength"] for one in twice[0][1]["unclip_conditioning"]] == [0.5, 1.0]
    assert UnCLIPConditioning.execute(prompt, embeds, 0.0, 0.0).args[0] is prompt
    assert prompt[0][1] == {}


def test_a_batch_crops_and_resizes_the_second_picture():
    wide = torch.zeros(2, 4, 8, 3)
    wide[:, :, 2:6] = 1  # the middle that is left of it
    batch = ImageBatch.execute(torch.zeros(1, 2, 2, 3), wide).args[0]
    assert batch.shape == (3, 2, 2, 3)
    assert batch[0].max() == 0 and batch[1:].min() == 1


def test_a_picture_is_pasted_where_the_mask_says():
    ground, patch = torch.zeros(2, 4, 6, 3), torch.ones(1, 3, 3, 3)
    (plain,) = ImageCompositeMasked.execute(ground, patch, 4, 2, False).args
    assert plain.sum() == 2 * 2 * 2 * 3 and plain[:, 2:, 4:].min() == 1  # cut at the border
    mask = torch.zeros(1, 2, 3)
    mask[:, :, 0] = 1
    (masked,) = ImageCompositeMasked.execute(ground, patch, 0, 0, True, mask).args
    assert masked.shape == ground.shape and ground.max() == 0
    assert masked[:, :, 0].min() == 1 and masked[:, :, 4:].max() == 0
    # As in the host: as many as there are grounds.
    assert ImageCompositeMasked.execute(ground[:1], patch.repeat(3, 1, 1, 1), 0, 0, False).args[
        0
    ].shape == (1, 4, 6, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [("a", "a"), (2, "2"), (0.5, "0.5"), (None, "None"), ({"\u00e4": 1}, '{\n    "\u00e4": 1\n}')],
)
def test_any_value_is_shown_as_text(value, text):
    shown = PreviewAny.execute(value)
    assert shown.ui == {"text": [text]} and shown.args == (text,)


def test_a_tensor_is_shown_with_six_numbers_of_each_edge():
    shown = PreviewAny.execute(torch.arange(2000.0)).ui["text"][0]
    assert shown.count(",") == 12 and "5.0000e+00," in shown and "1.9940e+03," in shown
    assert str(torch.arange(2000.0)).count(",") == 6  # torch's own way is as it was


def test_a_second_latent_is_cropped_and_resized():
    one, wide = {"samples": torch.zeros(1, 4, 8, 8)}, {"samples": torch.zeros(1, 4, 4, 8)}
    wide["samples"][..., 2:6] = 1  # the middle that is left of it
    made = LatentBatch.execute(one, wide).args[0]
    assert made["samples"][1].min() == 1 and made["batch_index"] == [0, 0]
    blended = LatentBlend.execute(one, wide, 0.25).args[0]["samples"]
    assert blended.mean().item() == pytest.approx(0.75, abs=0.1)


def test_latents_of_different_systems_are_not_mixed():
    one, two = {"samples": torch.zeros(1, 4, 8, 8)}, {"samples": torch.zeros(1, 3, 8, 8)}
    for node, more in ((LatentBlend, (0.5,)), (LatentBatch, ())):
        with pytest.raises(WorkflowError, match="do not go together"):
            node.execute(one, two, *more)


def test_pasting_at_the_edge_and_beyond_changes_nothing():
    ground, patch = torch.zeros(1, 4, 6, 3), torch.ones(1, 3, 3, 3)
    for x, y in ((6, 0), (0, 4), (600, 2), (3, 900)):
        assert not ImageCompositeMasked.execute(ground, patch, x, y, False).args[0].any()
    latents = {"samples": torch.zeros(1, 1, 4, 8)}, {"samples": torch.ones(1, 1, 4, 4)}
    for feather in (0, 16):
        assert not LatentComposite.execute(*latents, 64, 0, feather).args[0]["samples"].any()
    with pytest.raises(WorkflowError, match="at x 80, y 0 cannot be pasted"):
        LatentComposite.execute(*latents, 80, 0, 0)


def test_a_pasted_latent_fades_towards_inner_edges():
    ground, patch = {"samples": torch.zeros(1, 1, 4, 8)}, {"samples": torch.ones(1, 1, 4, 4)}
    made = LatentComposite.execute(ground, patch, 32, 0, 16).args[0]["samples"]
    assert made[0, 0, 0].tolist() == [0, 0, 0, 0, 0.5, 1, 1, 1] and ground["samples"].max() == 0


def _only_comfyui(nodes: dict, reads: str) -> str:
    """Why the runner refuses a prompt before anything runs."""
    with pytest.raises(Unsupported) as refused:
        check(nodes | {"9": {"class_type": "PreviewAny", "inputs": {"source": [reads, 0]}}}, ALL)
    return str(refused.value)


@pytest.mark.parametrize("kind", ["KSampler", "KSamplerAdvanced", "SamplerCustom"])
def test_karlo_under_a_native_sampler_is_refused_before_anything_runs(kind):
    model, text = {"source": "shapes-karlo", "dtype": "fp32"}, {"text": "", "clip": ["2", 0]}
    nodes = {
        "1": {"class_type": "PriorArtLoadDecoder", "inputs": model},
        "2": {"class_type": "PriorArtLoadTextEncoder", "inputs": model},
        "3": {"class_type": "CLIPTextEncode", "inputs": text},
        "4": {"class_type": "EmptyLatentImage", "inputs": dict.fromkeys(SIZES, 64)},
        "5": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "euler"}},
        "6": {
            "class_type": "BasicScheduler",
            "inputs": {"model": ["7", 0], "scheduler": "simple", "steps": 2, "denoise": 1.0},
        },
        "7": {"class_type": "PriorArtLoadKoala", "inputs": {"source": "shapes-koala-1b"}},
    }
    wires = {"model": ["1", 0], "positive": ["3", 0], "negative": ["3", 0]}
    wires |= {"latent_image": ["4", 0], "sampler": ["5", 0], "sigmas": ["6", 0]}
    schema = ALL[kind].define_schema()
    inputs = {s.id: wires.get(s.id, s.default()) for s in schema.inputs}
    defaults = ALL["PriorArtLoadKoala"].define_schema().inputs
    nodes["7"]["inputs"] = {s.id: s.default() for s in defaults}
    said = _only_comfyui(nodes | {"8": {"class_type": kind, "inputs": inputs}}, "8")
    assert "node 8" in said and kind in said and "ComfyUI" in said


@pytest.mark.parametrize("text", ["a embedding:style cat", "(embedding:style:1.2)"])
def test_a_textual_inversion_for_koala_is_refused_before_anything_runs(text):
    defaults = {s.id: s.default() for s in ALL["PriorArtLoadKoala"].define_schema().inputs}
    encode = {"class_type": "CLIPTextEncode", "inputs": {"text": text, "clip": ["1", 1]}}
    koala = {"class_type": "PriorArtLoadKoala", "inputs": defaults}
    assert "embedding:style" in _only_comfyui({"1": koala, "2": encode}, "2")
    karlo = {"source": "shapes-karlo", "dtype": "fp32"}
    encode["inputs"]["clip"] = ["1", 0]
    shown = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}}
    plain = {"class_type": "PriorArtLoadTextEncoder", "inputs": karlo}
    assert check({"1": plain, "2": encode, "9": shown}, ALL)[0] == ["1", "2", "9"]


def test_samplers_without_noise_take_the_largest_seed():
    """A sampler draws when it needs noise: the largest seed has no next one."""
    x = torch.zeros(1, 4, 2, 2)
    draw = _drawing(x, 2**64 - 1)
    euler(lambda x, sigma: x * 0, x, [1.0, 0.0], draw, lambda step, x0: None)
    assert torch.equal(_drawing(x, 6)(), torch.randn(x.shape, generator=torch.manual_seed(7)))


@pytest.mark.parametrize("prefix", ["", ".", "a/..", "./", "a/../"])
def test_a_prefix_without_a_name_stays_in_the_folder(folder, prefix):
    [path] = SaveImage.execute(torch.zeros(1, 2, 4, 3), prefix).ui["images"]
    # ComfyUI calls the file so.
    assert path.name == "._00001_.png" and path.parent == folder.resolve()
    with pytest.raises(WorkflowError, match="leads out of the output folder"):
        SaveImage.execute(torch.zeros(1, 2, 4, 3), "..")


def test_nothing_is_saved_through_a_linked_folder(folder, tmp_path_factory):
    theirs = tmp_path_factory.mktemp("theirs")
    for name in ("previews", "mine"):
        (folder / name).symlink_to(theirs)
    with pytest.raises(WorkflowError, match="leads out of the output folder"):
        PreviewImage.execute(torch.zeros(1, 2, 4, 3))
    with pytest.raises(WorkflowError, match="leads out of the output folder"):
        SaveImage.execute(torch.zeros(1, 2, 4, 3), "mine/x")
    assert not list(theirs.iterdir())


def test_a_picture_is_saved_whole_or_not_at_all(folder, monkeypatch):
    def half(self, file, *args, **kwargs):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(WorkflowError, match=r"No space.*--out"):
        SaveImage.execute(torch.zeros(1, 2, 4, 3), "x")
    assert not list(folder.glob("*x*"))


def test_what_is_called_a_picture_starts_no_program(folder, monkeypatch):
    (folder / "cute.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n"
    )
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("it ran"))
    assert "'cute.png', which is no picture" in LoadImage.validate_inputs("cute.png")
    os.mkfifo(folder / "pipe.png")
    with pytest.raises(WorkflowError, match="no such file"):
        LoadImage.execute("pipe.png")


def test_other_counts_of_masks_than_pictures_are_refused_to_encode():
    vae = SimpleNamespace(factor=8, encode=lambda pixels: pixels.movedim(-1, 1)[:, :, ::8, ::8])
    pixels = torch.rand(2, 16, 16, 3)
    for masks in (1, 2):
        made = VAEEncodeForInpaint.execute(pixels, vae, torch.ones(masks, 16, 16), 0).args[0]
        assert made["samples"].shape[0] == 2 and (made["samples"] == 0.5).all()
    with pytest.raises(WorkflowError, match="'mask' holds 3 masks for 2 pictures"):
        VAEEncodeForInpaint.execute(pixels, vae, torch.ones(3, 16, 16), 0)

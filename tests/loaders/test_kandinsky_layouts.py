"""Folders as users have them: originals beside a text encoder, combined pipelines, hub caches."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prior_art.edges import UserError
from prior_art.loaders import clip, kandinsky, koala, sentencepiece, unclip
from prior_art.loaders.files.catalogue import find_source, list_sources
from prior_art.loaders.files.checkpoint import CheckpointError

from .. import tiny
from . import karlo_originals as originals

pytestmark = pytest.mark.usefixtures("alone")


def names(stage: str, *folders: Path) -> list[str]:
    return [source.name for source in list_sources(stage, folders)]


def says(folder: Path, file: str = "config.json", **values: Any) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text(json.dumps(values))


# -- the original's own folder -------------------------------------------------------------------


@pytest.fixture
def original(tmp_path: Path) -> Path:
    """What get_kandinsky2 of the original repository downloads, by name."""
    root = tmp_path / "2_1"
    says(root / "text_encoder", model_type="xlm-roberta", architectures=["XLMRobertaModel"])
    for name in ("prior_fp16", "decoder_fp16", "inpainting_fp16", "movq_final"):
        (root / f"{name}.ckpt").touch()
    (root / "ViT-L-14_stats.th").touch()
    return root


@pytest.mark.parametrize("root", ["inside", "above"])
def test_a_text_encoder_hides_nothing_beside_it(original: Path, root: str) -> None:
    folder, lead = (original, "") if root == "inside" else (original.parent, "2_1/")
    assert names("mclip", folder) == ["2_1"]
    assert names("prior", folder) == [f"{lead}prior_fp16.ckpt"]
    assert names("movq", folder) == [f"{lead}movq_final.ckpt"]
    decoders = [f"{lead}decoder_fp16.ckpt", f"{lead}inpainting_fp16.ckpt"]
    assert names("latent_decoder", folder) == decoders


def test_nor_below_it(original: Path) -> None:
    says(original / "deeper" / "movq", _class_name="VQModel")
    says(original / "text_encoder" / "movq", _class_name="VQModel")
    assert names("movq", original) == ["deeper", "movq_final.ckpt"]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"architectures": ["MultilingualCLIP"]}, True),
        ({"model_type": "xlm-roberta"}, True),
        ({"model_type": "xlm-roberta", "architectures": ["XLMRobertaForMaskedLM"]}, True),
        ({"model_type": "xlm-roberta", "architectures": []}, True),
        ({"model_type": "M-CLIP", "architectures": ["MultilingualCLIP"]}, True),
        ({"model_type": "bert", "architectures": ["BertModel"]}, False),
        ({"model_type": ["xlm-roberta"]}, False),
        ({}, False),
    ],
)
def test_the_text_encoder_is_recognised_by_what_its_config_says(
    tmp_path: Path, config: dict, found: bool
) -> None:
    says(tmp_path / "some" / "text_encoder", **config)
    assert names("mclip", tmp_path) == (["some"] if found else [])


# -- its tokenizer ---------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    out = b""
    while number > 127:
        out, number = out + bytes([number & 127 | 128]), number >> 7
    return out + bytes([number])


def text(number: int, value: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(value)) + value


PIECES = ["<unk>", "<s>", "</s>", "\u2581a", "\u2581red", "\u2581cat", "\u2581", *"abcdert"]


def model(pieces: list[str] = PIECES) -> bytes:
    """A sentencepiece model as its packages write it, with fields that are not needed too."""
    data = b""
    for place, piece in enumerate(pieces):
        score = b"\x15" + struct.pack("<f", -1.0 if len(piece) > 1 else -9.0)
        kind = b"\x18\x02" if place == 0 else b"\x18\x03" if place < 3 else b""
        data += text(1, text(1, piece.encode()) + score + kind)
    return data + text(2, b"\x18\x01") + text(3, text(1, b"identity") + b"\x18\x01")


def test_a_sentencepiece_model_alone_is_a_tokenizer(tmp_path: Path) -> None:
    """Ids as fairseq counts them: <s> 0, <pad> 1, </s> 2, <unk> 3, then the file's pieces."""
    file = tmp_path / sentencepiece.FILE
    file.write_bytes(model())
    tokenizer = sentencepiece.read_xlmr_tokenizer(file)
    ids = {piece: place + 1 for place, piece in enumerate(PIECES) if place > 2}
    red, a, cat = (ids[f"\u2581{word}"] for word in ("red", "a", "cat"))
    assert tokenizer("a  red\tcat").input_ids == [0, a, red, cat, 2]
    assert tokenizer("").input_ids == [0, 2]
    assert tokenizer("bad").input_ids == [0, ids["\u2581"], ids["b"], ids["a"], ids["d"], 2]
    assert tokenizer("\u732b").input_ids == [0, ids["\u2581"], 3, 2]
    padded = tokenizer(["a", "a red cat"], padding=True)
    assert padded.input_ids[0] == [0, a, 2, 1, 1] and padded.attention_mask[0] == [1, 1, 1, 0, 0]
    assert (len(tokenizer), tokenizer.mask_token_id) == (len(PIECES) + 2, len(PIECES) + 1)
    assert tokenizer.decode([0, a, red, 2], skip_special_tokens=True) == "a red"


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", model()[:40], model(PIECES[1:]), b"\xff" * 40, text(1, text(1, b"\xff"))],
)
def test_a_damaged_sentencepiece_model_is_named(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / sentencepiece.FILE
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match=re.escape(str(file))):
        sentencepiece.read_xlmr_tokenizer(file)


def test_the_text_encoder_loads_with_a_sentencepiece_model_alone(tmp_path: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    from prior_art.networks.kandinsky_mclip import MultilingualCLIP

    torch.manual_seed(0)
    folder = tmp_path / "2_1" / "text_encoder"
    folder.mkdir(parents=True)
    (folder / sentencepiece.FILE).write_bytes(model())
    sizes = {"hidden_size": 64, "num_attention_heads": 1, "num_hidden_layers": 1}
    sizes |= {"intermediate_size": 96, "max_position_embeddings": 90, "type_vocab_size": 1}
    settings = XLMRobertaConfig(**sizes, vocab_size=len(PIECES) + 2)
    tower = MultilingualCLIP(XLMRobertaModel(settings), 64, 40, settings).eval()
    torch.save(tower.state_dict(), folder / "pytorch_model.bin")
    # What AutoConfig reads, of any class and without the projection's sizes.
    says(folder, **settings.to_dict() | {"architectures": ["XLMRobertaModel"]})
    loaded = kandinsky.load_mclip(find_source("2_1", "mclip", [tmp_path]))
    assert loaded.space.dim == 40
    ids = loaded.tokenizer(["a red cat"], return_tensors="pt")
    with torch.no_grad():
        wanted, found = (
            network(ids.input_ids, ids.attention_mask) for network in (tower, loaded.network)
        )
    torch.testing.assert_close(found.text_embeds, wanted.text_embeds)
    (folder / sentencepiece.FILE).unlink()
    with pytest.raises(CheckpointError, match=r"neither tokenizer\.json nor sentencepiece"):
        kandinsky.load_mclip(find_source("2_1", "mclip", [tmp_path]))


# -- whose ViT-L-14.pt -----------------------------------------------------------------------------

KARLO, KANDINSKY = "prior-ckpt-step=01000000-of-01000000.ckpt", "decoder_fp16.ckpt"


@pytest.mark.parametrize(
    ("beside", "found"),
    [
        ([KARLO], {"ViT-L-14.pt": "karlo"}),
        ([KANDINSKY], {"ViT-L-14.pt": "kandinsky-prior"}),
        (["movq_final.ckpt"], {"ViT-L-14.pt": "kandinsky-prior"}),
        ([], {"ViT-L-14.pt": "karlo", "ViT-L-14.pt (Kandinsky 2.1)": "kandinsky-prior"}),
        (
            [KARLO, KANDINSKY],
            {"ViT-L-14.pt": "karlo", "ViT-L-14.pt (Kandinsky 2.1)": "kandinsky-prior"},
        ),
    ],
)
def test_what_lies_beside_it_says_whose_clip_it_is(
    tmp_path: Path, beside: list[str], found: dict[str, str]
) -> None:
    for name in ["ViT-L-14.pt", *beside]:
        (tmp_path / name).touch()
    for stage in ("text_encoder", "image_encoder"):
        assert {s.name: s.system for s in list_sources(stage, [tmp_path])} == found
        for name, system in found.items():
            assert find_source(name, stage, [tmp_path]).system == system


def by_torchvision(picture: Image.Image, size: int) -> np.ndarray:
    """Resize and CenterCrop as OpenAI's preprocessing composes them."""
    width, height = picture.size
    if width <= height:
        picture = picture.resize((size, int(size * height / width)), Image.Resampling.BICUBIC)
    else:
        picture = picture.resize((int(size * width / height), size), Image.Resampling.BICUBIC)
    top, left = (round((side - size) / 2.0) for side in picture.size[::-1])
    return np.asarray(picture)[top : top + size, left : left + size]


@pytest.mark.parametrize("shape", [(50, 90), (90, 50), (32, 39), (71, 32), (33, 33)])
def test_kandinskys_original_crops_where_karlos_squashes(
    tmp_path: Path, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    state = originals.scramble(originals.OriginalClip(99), 1).state_dict()
    for folder, other in (("karlo", KARLO), ("kandinsky", KANDINSKY)):
        (tmp_path / folder).mkdir()
        torch.save(state, tmp_path / folder / "ViT-L-14.pt")
        (tmp_path / folder / other).touch()
    eight = np.random.default_rng(1).integers(0, 256, (*shape, 3), dtype=np.uint8)
    image = torch.from_numpy(eight)[None].float() / 255

    def prepared(folder: str) -> np.ndarray:
        source = find_source(f"{folder}/ViT-L-14.pt", "image_encoder", [tmp_path])
        return unclip.load_image_encoder(source, head_dim=16).preprocess(image)[0].numpy()

    def normalised(pixels: np.ndarray) -> np.ndarray:
        return ((pixels / 255 - clip.MEAN) / clip.STD).transpose(2, 0, 1)

    picture = Image.fromarray(eight)
    cropped = normalised(by_torchvision(picture, 32))
    squashed = normalised(np.asarray(picture.resize((32, 32), Image.Resampling.BICUBIC)))
    np.testing.assert_allclose(prepared("kandinsky"), cropped, atol=1e-6)
    np.testing.assert_allclose(prepared("karlo"), squashed, atol=1e-6)


# -- combined pipelines, other pipelines, hub caches -----------------------------------------------


@pytest.mark.parametrize("version", ["V22", ""])
@pytest.mark.parametrize("mode", ["", "Img2Img", "Inpaint"])
def test_a_combined_folder_is_prior_and_decoder(tmp_path: Path, version: str, mode: str) -> None:
    says(
        tmp_path / "both",
        "model_index.json",
        _class_name=f"Kandinsky{version}{mode}CombinedPipeline",
    )
    parts = ["unet", "movq", *(["text_encoder"] if not version else [])]
    for name in (*parts, "prior_prior", "prior_text_encoder", "prior_image_encoder"):
        says(tmp_path / "both" / name)
    for stage in ("prior", "text_encoder", "image_encoder", "latent_decoder", "movq"):
        assert names(stage, tmp_path) == ["both"], stage
    assert names("mclip", tmp_path) == ([] if version else ["both"])
    assert find_source("both", "prior", [tmp_path]).prefix == "prior_"
    assert find_source("both", "movq", [tmp_path]).prefix == ""
    with pytest.raises(UserError, match="holds no upscaler"):
        find_source("both", "upscaler", [tmp_path])


def test_a_combined_folder_loads_as_the_two_do(tmp_path: Path) -> None:
    apart = tiny.tiny_kandinsky(tmp_path / "apart")
    both = tmp_path / "models" / "both"
    shutil.copytree(apart / "decoder", both)
    for part in (apart / "prior").iterdir():
        if part.is_dir():
            shutil.copytree(part, both / f"prior_{part.name}")
    says(both, "model_index.json", _class_name="KandinskyV22CombinedPipeline")

    def source(stage: str) -> Any:
        return find_source("both", stage, [both.parent])

    def own(part: str, stage: str) -> Any:
        return find_source(part, stage, [apart])

    for load, part, stage in (
        (unclip.load_prior, "prior", "prior"),
        (unclip.load_text_encoder, "prior", "text_encoder"),
        (unclip.load_image_encoder, "prior", "image_encoder"),
        (kandinsky.load_latent_decoder, "decoder", "latent_decoder"),
        (kandinsky.load_movq, "decoder", "movq"),
    ):
        found, wanted = load(source(stage)), load(own(part, stage))
        theirs = wanted.network.state_dict()
        for key, tensor in found.network.state_dict().items():
            assert torch.equal(tensor, theirs[key]), key
        assert getattr(found, "schedule", 0) == getattr(wanted, "schedule", 0)
    shutil.rmtree(both / "prior_tokenizer")
    with pytest.raises(CheckpointError, match="lacks the folder 'prior_tokenizer'"):
        unclip.load_text_encoder(source("text_encoder"))


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("StableDiffusionXLPipeline", True),
        ("StableDiffusionXLImg2ImgPipeline", True),
        ("StableDiffusionXLInpaintPipeline", True),
        ("StableDiffusionXLControlNetPipeline", True),
        ("StableDiffusionXLPAGImg2ImgPipeline", True),
        ("StableDiffusionXLAdapterPipeline", True),
        ("StableDiffusionXLInstructPix2PixPipeline", False),
        ("StableDiffusionPipeline", False),
    ],
)
def test_a_koala_may_be_saved_as_any_of_sdxls_pipelines(
    tmp_path: Path, name: str, found: bool
) -> None:
    says(tmp_path / "koala", "model_index.json", _class_name=name)
    for part in ("unet", "text_encoder", "vae"):
        says(tmp_path / "koala" / part)
    for stage in ("koala_unet", "koala_text", "koala_vae"):
        assert names(stage, tmp_path) == (["koala"] if found else [])


@pytest.mark.parametrize("above", ["", "huggingface/hub", "cache/huggingface/hub"])
def test_a_hub_cache_is_found_from_above_it(tmp_path: Path, above: str) -> None:
    model = tmp_path / above / "models--kandinsky-community--kandinsky-2-2-decoder"
    says(model / "blobs", "1", _class_name="KandinskyV22Pipeline")
    for revision in ("abc", "def"):
        says(model / "snapshots" / revision / "movq")
        (model / "snapshots" / revision / "model_index.json").symlink_to("../../blobs/1")
    found = names("movq", tmp_path)
    lead = (Path(above) / model.name).as_posix()
    assert found == [f"{lead}/snapshots/abc", f"{lead}/snapshots/def"]
    says(model / "snapshots" / "abc" / "x" / "models--org--name" / "plain" / "movq")
    assert names("movq", tmp_path) == found  # no cache, whatever it is called


def test_an_inpainting_unet_of_sdxl_is_refused(tmp_path: Path) -> None:
    tiny.tiny_koala(tmp_path)
    folder = next(tmp_path.glob("*/unet")).parent
    config = json.loads((folder / "unet" / "config.json").read_text())
    says(folder / "unet", **config | {"in_channels": 9})
    with pytest.raises(CheckpointError, match="9 input channels"):
        koala.load_unet(find_source(folder.name, "koala_unet", [tmp_path]), wanted=koala.ANY_SDXL)

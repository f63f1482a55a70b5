"""Where weights come from: the embedded family, hub folders, original checkpoint files.

Finding is cheap (no weight file is opened) and stays inside the model folders: whatever a link
leads out of them is not listed. What a stage needs is told by the tables below, one entry per
system.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from .checkpoint import STEMS, inside

EMBEDDED_ROOT = Path(__file__).resolve().parent.parent / "shapes" / "weights"
DEPTH = 4
"""How deep below a model folder sources are looked for (a hub cache needs 3)."""


class SourceError(ValueError):
    """A source that is not there; the message says what was asked, what is there and the cure."""


@dataclass(frozen=True)
class Source:
    """One place where the weights of some stages of a system are.

    Attributes:
        name: what the loader nodes' combo shows.
        kind: embedded family, folder, or file (an original checkpoint, or an archive).
        path: the folder, or the file.
        system: a key of :data:`SYSTEMS`.
        stages: what can be loaded from it.
        folders: the model folders that no link in it may leave; empty for the embedded family.
    """

    name: str
    kind: Literal["embedded", "folder", "checkpoint"]
    path: Path
    system: str
    stages: frozenset[str]
    folders: tuple[Path, ...] = ()


@dataclass(frozen=True)
class System:
    """How the sources of one system are recognised.

    Attributes:
        pipelines: ``_class_name`` in ``model_index.json``.
        components: stage to (component folder, class in its ``config.json``); ``""`` is the
            folder itself.
        checkpoints: original file name pattern to the stages in that file.
        originals: stage to a file of an original folder, which alone makes it a source.
        indexed: only a folder with a ``model_index.json`` is one: another system has components of
            the same names.
        own: stage to a weight file of our own layout, and the class in the ``config.json`` there.
        embedded: name of each embedded member and its folder under ``shapes/weights``.
        download: the command that fetches it; empty where there is none.
        place: what to do instead of that command.
    """

    pipelines: frozenset[str] = frozenset()
    components: dict[str, tuple[str, str]] = field(default_factory=dict)
    checkpoints: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = ()
    originals: dict[str, str] = field(default_factory=dict)
    indexed: bool = False
    own: dict[str, tuple[str, str]] = field(default_factory=dict)
    embedded: tuple[tuple[str, str], ...] = ()
    download: str = ""
    place: str = ""

    @property
    def cure(self) -> str:
        """How to get the published weights."""
        return self.place or f"Get the published weights with `{self.download}`"


STAGES: dict[str, tuple[str, ...]] = {
    "karlo": ("text_encoder", "image_encoder", "prior", "decoder", "upscaler"),
    "mindalle": ("vqgan", "ar_transformer"),
    "kandinsky-prior": ("text_encoder", "image_encoder", "prior"),
    "kandinsky": ("latent_decoder", "movq", "mclip"),
    "koala": ("koala_unet", "koala_text", "koala_vae"),
    "clip": ("reranker",),
    "stable-unclip": ("image_normalizer",),
}

TOWERS = frozenset({"text_encoder", "image_encoder"})
"""A source of both is a reranker too."""

SYSTEMS: dict[str, System] = {
    "karlo": System(
        pipelines=frozenset({"UnCLIPPipeline", "UnCLIPImageVariationPipeline"}),
        components={
            "text_encoder": ("text_encoder", "CLIPTextModelWithProjection"),
            "image_encoder": ("image_encoder", "CLIPVisionModelWithProjection"),
            "prior": ("prior", "PriorTransformer"),
            "decoder": ("decoder", "UNet2DConditionModel"),
            "upscaler": ("super_res_first", "UNet2DModel"),
        },
        checkpoints=(
            (
                re.compile(r"ViT-L-14\.(pt|pth|safetensors)", re.IGNORECASE),
                frozenset({"text_encoder", "image_encoder"}),
            ),
            (re.compile(r"prior-ckpt.*\.(ckpt|safetensors)"), frozenset({"prior"})),
            (re.compile(r"decoder-ckpt.*\.(ckpt|safetensors)"), frozenset({"decoder"})),
            (re.compile(r"improved-sr-ckpt.*\.(ckpt|safetensors)"), frozenset({"upscaler"})),
        ),
        embedded=(("shapes-karlo", "karlo"),),
        download="prior-art download karlo",
    ),
    "mindalle": System(
        checkpoints=(
            (
                re.compile(r"(1\.3B|.*min-?dall-?e.*)\.(tar\.gz|tgz|tar|zip)", re.IGNORECASE),
                frozenset({"vqgan", "ar_transformer"}),
            ),
        ),
        originals={"vqgan": "stage1_last.ckpt", "ar_transformer": "stage2_last.ckpt"},
        own={
            "vqgan": ("vqgan.safetensors", "MinDALLE"),
            "ar_transformer": ("transformer.safetensors", "MinDALLE"),
        },
        embedded=(
            ("shapes-mindalle", "mindalle"),
            ("shapes-mindalle-class", "mindalle-class"),
            ("shapes-mindalle-unconditional", "mindalle-unconditional"),
        ),
        place="Put kakaobrain/minDALL-E's folder 1.3B, or 1.3B.tar.gz, into the model folder",
    ),
    "kandinsky-prior": System(
        pipelines=frozenset(
            {
                "KandinskyV22PriorPipeline",
                "KandinskyV22PriorEmb2EmbPipeline",
                "KandinskyPriorPipeline",
            }
        ),
        components={
            "text_encoder": ("text_encoder", "CLIPTextModelWithProjection"),
            "image_encoder": ("image_encoder", "CLIPVisionModelWithProjection"),
            "prior": ("prior", "PriorTransformer"),
        },
        checkpoints=((re.compile(r"prior_fp16\.(ckpt|safetensors)"), frozenset({"prior"})),),
        indexed=True,
        embedded=(
            ("shapes-kandinsky-prior", "kandinsky/prior"),
            ("shapes-kandinsky-2-1-prior", "kandinsky/2-1-prior"),
        ),
        download="prior-art download kandinsky-2-2-prior",
    ),
    "kandinsky": System(
        pipelines=frozenset(
            {
                "KandinskyV22Pipeline",
                "KandinskyV22Img2ImgPipeline",
                "KandinskyV22InpaintPipeline",
                "KandinskyV22ControlnetPipeline",
                "KandinskyV22ControlnetImg2ImgPipeline",
                "KandinskyPipeline",
                "KandinskyImg2ImgPipeline",
                "KandinskyInpaintPipeline",
            }
        ),
        components={
            "latent_decoder": ("unet", "UNet2DConditionModel"),
            "movq": ("movq", "VQModel"),
            "mclip": ("text_encoder", "MultilingualCLIP"),
        },
        checkpoints=(
            (
                re.compile(r"(decoder|inpainting)_fp16\.(ckpt|safetensors)"),
                frozenset({"latent_decoder"}),
            ),
            (re.compile(r"movq_final\.(ckpt|safetensors)"), frozenset({"movq"})),
        ),
        embedded=(
            ("shapes-kandinsky", "kandinsky/decoder"),
            ("shapes-kandinsky-inpaint", "kandinsky/inpaint"),
            ("shapes-kandinsky-depth", "kandinsky/depth"),
            ("shapes-kandinsky-2-1", "kandinsky/2-1"),
        ),
        download="prior-art download kandinsky-2-2-decoder",
    ),
    "koala": System(
        pipelines=frozenset({"StableDiffusionXLPipeline"}),
        components={
            "koala_unet": ("unet", "UNet2DConditionModel"),
            "koala_text": ("text_encoder", "CLIPTextModel"),
            "koala_vae": ("vae", "AutoencoderKL"),
        },
        checkpoints=(
            (
                re.compile(r".*(koala|sd_?xl).*\.(safetensors|bin)", re.IGNORECASE),
                frozenset({"koala_unet"}),
            ),
        ),
        indexed=True,
        embedded=(("shapes-koala-1b", "koala/1b"), ("shapes-koala-700m", "koala/700m")),
        download="prior-art download koala-700m",
    ),
    "clip": System(
        components={"reranker": ("", "CLIPModel")},
        embedded=(("shapes-clip", "clip"),),
        checkpoints=(
            (re.compile(r"ViT-B-(16|32)\.(pt|pth|safetensors)"), frozenset({"reranker"})),
        ),
        place="Put the files of openai/clip-vit-base-patch32 into a folder of the model folder",
    ),
    "stable-unclip": System(
        pipelines=frozenset({"StableUnCLIPPipeline", "StableUnCLIPImg2ImgPipeline"}),
        components={"image_normalizer": ("image_normalizer", "StableUnCLIPImageNormalizer")},
        place="Put the folder image_normalizer of stabilityai/stable-diffusion-2-1-unclip-small"
        " into a folder of the model folder",
    ),
}


def list_sources(stage: str, folders: Sequence[Path]) -> list[Source]:
    """Every source of ``stage``: the embedded family first, then folders, then checkpoint files.

    For the reranker CLIPs come before other systems' two towers.

    Args:
        stage: one of :data:`STAGES`.
        folders: the host's model folders; missing ones are skipped.

    Returns:
        Sources with unique names; a name is the path below its model folder, led by that folder's
        name where two would be equal.

    Raises:
        SourceError: an unknown stage.
    """
    if not any(stage in stages for stages in STAGES.values()):
        known = sorted({name for stages in STAGES.values() for name in stages})
        raise SourceError(f"unknown stage '{stage}'; known are {', '.join(known)}")
    offering = [source for source in _all_sources(folders) if _offers(source, stage)]
    # What is made for the stage before what can stand in for it.
    return sorted(offering, key=lambda s: (s.kind != "embedded", stage not in s.stages))


def find_source(name: str, stage: str, folders: Sequence[Path]) -> Source:
    """The source called ``name``, if ``stage`` can be loaded from it.

    Names are only ever compared with what :func:`list_sources` finds, never joined to a path.

    Raises:
        SourceError: no such source for this stage; says what is there and how to get more.
    """
    everything = _all_sources(folders)
    for source in everything:
        if source.name == name and _offers(source, stage):
            return source
    fitting = [source.name for source in everything if _offers(source, stage)]
    there = f"There are: {', '.join(fitting)}" if fitting else "There is none"
    words = stage.replace("_", " ")
    other = next((source for source in everything if source.name == name), None)
    system = next((system for system in SYSTEMS if stage in STAGES[system]), "karlo")
    cure = f"{SYSTEMS[system].cure}, or choose another source"
    if other is not None:
        return _fail(
            f"'{name}' holds no {words} (only {', '.join(sorted(other.stages))}). {there}. {cure}"
        )
    escaped = next((path for root in folders if (path := _escape(root, name))), None)
    if escaped is not None:
        return _fail(
            f"'{name}' leads out of the model folders to '{escaped}', so it is not used. Move it"
            " into the model folder, or register its folder with the host"
            " (extra_model_paths.yaml)"
        )
    where = ", ".join(f"'{folder}'" for folder in folders) or "no model folder"
    return _fail(f"no {words} called '{name}' in {where}. {there}. {cure}")


def _offers(source: Source, stage: str) -> bool:
    return stage in source.stages or (stage == "reranker" and source.stages >= TOWERS)


def _fail(message: str) -> Source:
    raise SourceError(message)


def _escape(root: Path, name: str) -> Path | None:
    """Where a link ``root/name`` leads, if that is out of the model folder."""
    if re.fullmatch(r"[^/\\:]+", name) is None or name in (".", ".."):
        return None
    path = root / name
    return path.resolve() if path.is_symlink() and not inside(path, [root]) else None


def _all_sources(folders: Sequence[Path]) -> list[Source]:
    roots = tuple(Path(folder) for folder in folders)
    embedded, hub, files = [], [], []
    for system in SYSTEMS:
        for name, member in SYSTEMS[system].embedded:
            stages = _stages_of(EMBEDDED_ROOT / member, system)
            if stages:
                embedded.append(Source(name, "embedded", EMBEDDED_ROOT / member, system, stages))
    taken = {source.name for source in embedded}
    seen: set[Path] = set()
    for root in roots:
        for path in _walk(root, roots):
            real = path.resolve()
            if real in seen:
                continue
            for system in SYSTEMS:
                folder = path.is_dir()
                stages = _stages_of(path, system) if folder else _stages_in(path, system)
                if not stages:
                    continue
                seen.add(real)
                relative = path.relative_to(root).as_posix()
                name = root.name if relative == "." else relative
                if name in taken:
                    name = f"{root.name}/{name}"
                if name in taken:
                    name = path.as_posix()
                taken.add(name)
                kind: Literal["folder", "checkpoint"] = "folder" if folder else "checkpoint"
                (hub if folder else files).append(Source(name, kind, path, system, stages, roots))
    return embedded + hub + files


def _walk(root: Path, roots: Sequence[Path], depth: int = 0) -> Iterator[Path]:
    """``root`` if it is a source folder itself, and what is below it, sorted.

    Component folders are no sources of their own; loose weight files may have others beside them.
    """
    if depth > DEPTH or not root.is_dir():
        return
    here = [system for system in SYSTEMS if _stages_of(root, system)]
    if here:
        yield root
    if any(SYSTEMS[system].components for system in here):
        return
    try:
        entries = sorted(os.scandir(root), key=lambda entry: entry.name.lower())
    except OSError:
        return
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or entry.name.endswith(".partial"):
            continue
        if not inside(path, roots):
            continue
        if path.is_dir():
            yield from _walk(path, roots, depth + 1)
        elif path.is_file():
            yield path


def _stages_in(file: Path, system: str) -> frozenset[str]:
    for pattern, stages in SYSTEMS[system].checkpoints:
        if pattern.fullmatch(file.name):
            return stages
    return frozenset()


def _stages_of(folder: Path, system: str) -> frozenset[str]:
    """The stages of ``system`` that a folder in hub layout holds."""
    table = SYSTEMS[system]
    index = folder / "model_index.json"
    if index.is_file():
        name = _class_name(index)
        if name is not None and name not in table.pipelines:
            return frozenset()
    elif table.indexed:
        return frozenset()
    found = _loose_stages(folder, table)
    for stage, (component, wanted) in table.components.items():
        part = folder / component
        config = part / "config.json"
        if not part.is_dir():
            continue
        if not (index.is_file() and component):
            # A bare component, or a bare collection of them: each must say what it is.
            if _class_name(config) != wanted:
                continue
        elif not config.is_file() and not _has_weights(part):
            continue
        found.add(stage)
    return frozenset(found)


def _loose_stages(folder: Path, table: System) -> set[str]:
    """The stages that a folder holds as files by their names, which need no component folders."""
    found = {stage for stage, name in table.originals.items() if (folder / name).is_file()}
    config = folder / "config.json"
    for stage, (name, wanted) in table.own.items():
        if (folder / name).is_file() and _class_name(config) == wanted:
            found.add(stage)
    return found


def _has_weights(folder: Path) -> bool:
    try:
        return any(entry.name.startswith(STEMS) for entry in os.scandir(folder))
    except OSError:
        return False


def _class_name(path: Path) -> str | None:
    """What a config says it is: diffusers' ``_class_name`` or transformers' ``architectures``."""
    try:
        if path.stat().st_size > 1_000_000:
            return None
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(value, dict):
        return None
    name = value.get("_class_name")
    architectures = value.get("architectures")
    if name is None and isinstance(architectures, list) and architectures:
        name = architectures[0]
    return name if isinstance(name, str) else None

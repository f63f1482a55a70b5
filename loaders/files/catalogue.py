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
from typing import Any, Literal

from .checkpoint import STEMS, inside

EMBEDDED_ROOT = Path(__file__).resolve().parents[2] / "shapes" / "weights"
DEPTH = 4
"""How deep below a model folder sources are looked for. A model of the hub's cache counts as one
level, though it lies three deep there."""


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
        prefix: of the names of its component folders, "prior_" where one folder holds prior and
            decoder.
    """

    name: str
    kind: Literal["embedded", "folder", "checkpoint"]
    path: Path
    system: str
    stages: frozenset[str]
    folders: tuple[Path, ...] = ()
    prefix: str = ""


@dataclass(frozen=True)
class System:
    """How the sources of one system are recognised.

    Attributes:
        pipelines: ``_class_name`` in ``model_index.json``.
        combined: those in whose folders another system lies too, so that the components' names
            begin with ``prefix``.
        components: stage to (component folder, class in its ``config.json``); ``""`` is the
            folder itself.
        types: stage to ``model_type`` in that ``config.json`` that says the same as its class.
        checkpoints: original file name pattern to the stages in that file.
        beside: pattern of the original files among which a file that other systems have too is this
            system's; ``label``: what it is called otherwise.
        originals: stage to a file of an original folder, which alone makes it a source.
        indexed: only a folder with a ``model_index.json`` is one: another system has components of
            the same names.
        own: stage to a weight file of our own layout, and the class in the ``config.json`` there.
        embedded: name of each embedded member and its folder under ``shapes/weights``.
        download: the command that fetches it; empty where there is none.
        place: what to do instead of that command.
    """

    pipelines: frozenset[str] = frozenset()
    combined: frozenset[str] = frozenset()
    prefix: str = ""
    components: dict[str, tuple[str, str]] = field(default_factory=dict)
    types: dict[str, tuple[str, ...]] = field(default_factory=dict)
    checkpoints: tuple[tuple[re.Pattern[str], frozenset[str]], ...] = ()
    beside: re.Pattern[str] | None = None
    label: str = ""
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

_VIT_L = (
    re.compile(r"ViT-L-14\.(pt|pth|safetensors)", re.IGNORECASE),
    frozenset({"text_encoder", "image_encoder"}),
)
"""OpenAI's file, which the originals of Karlo and of Kandinsky 2.1 read, each in its own way."""

_COMBINED = frozenset(
    f"Kandinsky{version}{mode}CombinedPipeline"
    for version in ("", "V22")
    for mode in ("", "Img2Img", "Inpaint")
)

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
            _VIT_L,
            (re.compile(r"prior-ckpt.*\.(ckpt|safetensors)"), frozenset({"prior"})),
            (re.compile(r"decoder-ckpt.*\.(ckpt|safetensors)"), frozenset({"decoder"})),
            (re.compile(r"improved-sr-ckpt.*\.(ckpt|safetensors)"), frozenset({"upscaler"})),
        ),
        beside=re.compile(r"(prior|decoder|improved-sr)-ckpt.*"),
        label="Karlo",
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
        combined=_COMBINED,
        prefix="prior_",
        components={
            "text_encoder": ("text_encoder", "CLIPTextModelWithProjection"),
            "image_encoder": ("image_encoder", "CLIPVisionModelWithProjection"),
            "prior": ("prior", "PriorTransformer"),
        },
        checkpoints=(
            _VIT_L,
            (re.compile(r"prior_fp16\.(ckpt|safetensors)"), frozenset({"prior"})),
        ),
        beside=re.compile(r"(prior|decoder|inpainting)_fp16\..*|movq_final\..*"),
        label="Kandinsky 2.1",
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
            | _COMBINED
        ),
        components={
            "latent_decoder": ("unet", "UNet2DConditionModel"),
            "movq": ("movq", "VQModel"),
            "mclip": ("text_encoder", "MultilingualCLIP"),
        },
        # The original reads it as whatever AutoConfig makes of it.
        types={"mclip": ("xlm-roberta",)},
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
        # Whatever else such a pipeline brings along, its U-Net, encoders and VAE are SDXL's.
        pipelines=frozenset(
            f"StableDiffusionXL{extra}{mode}Pipeline"
            for extra in ("", "ControlNet", "ControlNetUnion", "ControlNetPAG", "PAG", "Adapter")
            for mode in ("", "Img2Img", "Inpaint")
        ),
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
    if stage == "reranker":
        # It prepares pictures in its own way, so that a file is the same whosever it is.
        offering = list({source.path: source for source in reversed(offering)}.values())[::-1]
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
            folder = path.is_dir()
            found = _stages_by_system(path) if folder else _owners(path)
            if not found:
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
            for place, (system, stages) in enumerate(found.items()):
                # Systems of one folder have different stages and can share its name; of one file
                # they have the same.
                own = name if folder or not place else f"{name} ({SYSTEMS[system].label})"
                taken.add(own)
                prefix = _prefix(path, SYSTEMS[system]) if folder else ""
                source = Source(own, kind, path, system, stages, roots, prefix)
                (hub if folder else files).append(source)
    return embedded + hub + files


def _walk(root: Path, roots: Sequence[Path], depth: int = 0) -> Iterator[Path]:
    """``root`` if it is a source folder itself, and what is below it, sorted.

    Component folders are no sources of their own; anything else may lie beside them.
    """
    if depth > DEPTH or not root.is_dir():
        return
    here = _stages_by_system(root)
    if here:
        yield root
    own = {
        _prefix(root, SYSTEMS[system]) + component
        for system in here
        for component, _ in SYSTEMS[system].components.values()
    }
    for path in _entries(root, roots):
        if path.is_dir() and path.name not in own:
            if path.name.startswith("models--"):
                # The hub's cache: the model's files are links in a folder for each revision.
                for revision in _entries(path / "snapshots", roots):
                    yield from _walk(revision, roots, depth + 1)
            else:
                yield from _walk(path, roots, depth + 1)
        elif path.is_file():
            yield path


def _entries(folder: Path, roots: Sequence[Path]) -> list[Path]:
    """What lies in a folder, sorted, without what is hidden, unfinished or leads out."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name.lower())
    except OSError:
        return []
    return [
        Path(entry.path)
        for entry in entries
        if not entry.name.startswith(".")
        and not entry.name.endswith(".partial")
        and inside(Path(entry.path), roots)
    ]


def _owners(file: Path) -> dict[str, frozenset[str]]:
    """The systems whose original file this is by its name, and the stages in it.

    Where several have it, the one whose other originals lie beside it; all of them where that
    tells nothing.
    """
    found = {system: stages for system in SYSTEMS if (stages := _stages_in(file, system))}
    if len(found) < 2:
        return found
    names = os.listdir(file.parent)
    near = {
        system: stages
        for system, stages in found.items()
        if any(SYSTEMS[system].beside.fullmatch(name) for name in names)
    }
    return near if len(near) == 1 else found


def _stages_by_system(folder: Path) -> dict[str, frozenset[str]]:
    found = {system: _stages_of(folder, system) for system in SYSTEMS}
    return {system: stages for system, stages in found.items() if stages}


def _prefix(folder: Path, table: System) -> str:
    """Of the names of a system's component folders here."""
    return table.prefix if _index_class(folder) in table.combined else ""


def _index_class(folder: Path) -> str | None:
    return _class_name(folder / "model_index.json")


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
        name = _index_class(folder)
        if name is not None and name not in table.pipelines | table.combined:
            return frozenset()
    elif table.indexed:
        return frozenset()
    found, prefix = _loose_stages(folder, table), _prefix(folder, table)
    for stage, (component, wanted) in table.components.items():
        part = folder / f"{prefix}{component}"
        config = part / "config.json"
        if not part.is_dir():
            continue
        if not (index.is_file() and component):
            # A bare component, or a bare collection of them: each must say what it is.
            if not _says(config, wanted, table.types.get(stage, ())):
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


def _says(path: Path, wanted: str, types: tuple[str, ...]) -> bool:
    """Whether a config is of this class, or of one of these model types whatever its class."""
    return _class_name(path) == wanted or _read(path).get("model_type") in types


def _class_name(path: Path) -> str | None:
    """What a config says it is: diffusers' ``_class_name`` or transformers' ``architectures``."""
    value = _read(path)
    name = value.get("_class_name")
    architectures = value.get("architectures")
    if name is None and isinstance(architectures, list) and architectures:
        name = architectures[0]
    return name if isinstance(name, str) else None


def _read(path: Path) -> dict[str, Any]:
    """A small JSON object; empty where there is none."""
    try:
        if path.stat().st_size > 1_000_000:
            return {}
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}

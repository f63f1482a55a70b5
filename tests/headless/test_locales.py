"""The English locale is what the schemas say, and every other language says all of it."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prior_art.headless.locales import ENGLISH, english, text

from .translated import NOTED, ROOT, prints


@pytest.mark.parametrize("name", ["main.json", "nodeDefs.json"])
def test_the_stored_locale_is_what_the_command_writes(name):
    stored = (ENGLISH / name).read_text(encoding="utf-8")
    assert stored == text(english()[name]), "run `python -m prior_art.headless.locales`"


def test_every_english_file_is_written_by_the_command():
    assert {path.name for path in ENGLISH.iterdir()} == set(english())


def test_the_locale_names_the_packs_own_types_and_no_host_type():
    assert set(english()["main.json"]["dataTypes"]) == {
        "UNCLIP_PRIOR",
        "UNCLIP_UPSCALER",
        "AR_TRANSFORMER",
    }


LOCALES, DOCS, TEXTS = ROOT / "locales", ROOT / "web" / "docs", ROOT / "web" / "js" / "texts"
LANGUAGES = ("ko", "ru", "zh")


def texts(path: Path) -> dict[str, str]:
    """Every text of a file of texts, by the keys that lead to it."""

    def within(content: Any, keys: str) -> Iterator[tuple[str, str]]:
        if isinstance(content, str):
            yield keys, content
        else:
            for key, value in content.items():
                yield from within(value, f"{keys}.{key}" if keys else key)

    return dict(within(json.loads(path.read_text(encoding="utf-8")), ""))


def compared(path: Path, translated: Path) -> dict[str, tuple[str, str]]:
    """What is said in English and in another language; fails where a key is missing or stale."""
    said, own = texts(path), texts(translated)
    missing = "\n".join(f"  {key}: {said[key]}" for key in said if key not in own)
    stale = "\n".join(f"  {key}" for key in own if key not in said)
    assert not missing, f"{translated.relative_to(ROOT)} does not say:\n{missing}"
    assert not stale, f"{translated.relative_to(ROOT)} says what nobody asks for:\n{stale}"
    return {key: (said[key], own[key]) for key in said}


@pytest.mark.parametrize("name", ["main.json", "nodeDefs.json"])
@pytest.mark.parametrize("language", LANGUAGES)
def test_nodes_are_translated(language, name):
    both = compared(ENGLISH / name, LOCALES / language / name)
    number = re.compile(r"\d+(?:\.\d+)?")
    lost = {key for key, (a, b) in both.items() if set(number.findall(a)) - set(number.findall(b))}
    assert not lost, "numbers of the English text are not in the translation"
    # To the editor these begin a plural, a link or a value.
    odd = {key for key, pair in both.items() if re.search(r"[{}|@]", "".join(pair))}
    assert not odd


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_widgets_say_is_translated(language):
    both = compared(TEXTS / "en.json", TEXTS / f"{language}.json")
    word = re.compile(r"\{\w+\}")
    lost = {key for key, (a, b) in both.items() if set(word.findall(a)) != set(word.findall(b))}
    assert not lost, "words that are filled in differ"


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_is_translated(language):
    pages = {path.stem: path for path in DOCS.glob("*.md")}
    own = {path.parent.name: path for path in DOCS.glob(f"*/{language}.md")}
    assert sorted(own) == sorted(pages)
    nodes = json.loads((LOCALES / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for name, page in pages.items():
        english, translated = (path.read_text(encoding="utf-8") for path in (page, own[name]))
        assert translated.startswith(f"# {nodes[name]['display_name']}\n"), name
        for mark in (r"`[^`\n]+`", r"(?m)^\|", r"(?m)^$", r"(?m)^- ", r"\d+(?:\.\d+)?"):
            lost = Counter(re.findall(mark, english)) - Counter(re.findall(mark, translated))
            assert not lost, f"{own[name].relative_to(ROOT)}: {dict(lost)}"
        for key, socket in nodes[name]["inputs"].items():
            assert f"{socket['name']} `{key}`" in translated, f"{name}: {key}"


def test_no_english_text_has_changed_since_it_was_translated():
    noted = json.loads(NOTED.read_text(encoding="utf-8"))
    changed = {name for name in prints().keys() | noted if prints().get(name) != noted.get(name)}
    assert not changed, "translate these anew, then run `python -m tests.headless.translated`"


def test_every_language_is_known():
    assert {path.name for path in LOCALES.iterdir()} == {"en", *LANGUAGES}
    assert {path.stem for path in TEXTS.iterdir()} == {"en", *LANGUAGES}
    assert {path.stem for path in DOCS.glob("*/*.md")} == set(LANGUAGES)

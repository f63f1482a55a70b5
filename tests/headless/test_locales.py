"""The English locale is what the schemas say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from prior_art.headless.locales import ENGLISH, english, text

ROOT = Path(__file__).resolve().parents[2]


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


TEXTS = ROOT / "web" / "js" / "texts"
LANGUAGES = ("ko", "ru", "zh")


def words(message: str) -> list[str]:
    """What a message has filled in."""
    return sorted(re.findall(r"\{\w+\}", message))


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_widgets_say_is_translated(language):
    said = json.loads((TEXTS / "en.json").read_text(encoding="utf-8"))
    own = json.loads((TEXTS / f"{language}.json").read_text(encoding="utf-8"))
    assert sorted(own) == sorted(said)
    assert {key: words(message) for key, message in own.items()} == {
        key: words(message) for key, message in said.items()
    }

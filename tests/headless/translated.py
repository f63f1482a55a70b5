"""python -m tests.headless.translated: notes that every language says what English says now.

A translation whose English has changed since is stale, though no key tells: so a print of each
English text lies in ``translated.json``, node by node and page by page.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTED = Path(__file__).with_suffix(".json")


def prints() -> dict[str, str]:
    """A print of each English text: a node's in the locale, a help page, what widgets say."""
    nodes = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
    said = {node: json.dumps(entry, sort_keys=True) for node, entry in nodes.items()}
    files = [*(ROOT / "web" / "docs").glob("*.md"), ROOT / "web" / "js" / "texts" / "en.json"]
    said |= {path.name: path.read_text(encoding="utf-8") for path in files}
    return {
        name: hashlib.sha256(text.encode()).hexdigest()[:12] for name, text in sorted(said.items())
    }


if __name__ == "__main__":
    NOTED.write_text(json.dumps(prints(), indent=1) + "\n", encoding="utf-8", newline="\n")
    print(NOTED)

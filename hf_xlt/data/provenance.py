"""What data sets say of themselves: license and citation, as far as their own card is at hand.

Nothing is fetched and nothing assumed. A data set of the Hub has its card in the cache once it was loaded; local files
have one where a `README.md` with metadata, or a `CITATION.bib`, lies in their folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_xlt.data.sources import Source

CARD = "README.md"
CITATION = "CITATION.bib"
_BIBTEX = re.compile(r"```[\w ]*\n\s*(@\w+\s*\{.*?)\s*```", re.DOTALL)
_LONGEST_CITATION = 3000


def provenance(sources: Sequence[Source]) -> dict[str, Any]:
    """Return what sources say of themselves.

    Args:
        sources: of one role; the same one may come once per language.

    Returns:
        `licenses` (source name to license) and `citations` (BibTeX, each once); only what is known.
    """
    licenses: dict[str, str] = {}
    citations: list[str] = []
    for source in {source.name: source for source in sources}.values():
        folder = _folder(source)
        if folder is None:
            continue
        # Any folder may hold a README; only one with metadata is a data set's card.
        metadata = _metadata(folder / CARD)
        if metadata.get("license"):
            licenses[source.name] = _license(metadata)
        entries = _BIBTEX.findall(_text(folder / CARD)) if metadata else []
        if (folder / CITATION).is_file():
            entries = [_text(folder / CITATION).strip()]
        citations += [entry for entry in entries if entry.startswith("@") and len(entry) <= _LONGEST_CITATION]
    known = {"licenses": licenses, "citations": list(dict.fromkeys(citations))}
    return {name: values for name, values in known.items() if values}


def _folder(source: Source) -> Path | None:
    """Return where a source's own card would lie."""
    if source.hub_id:
        return _cached_folder(source.hub_id)
    pattern = getattr(source, "pattern", None) or getattr(source, "path", None)
    if pattern is None:
        return None
    path = Path(pattern)
    if path.is_dir():
        return path
    # Files of a language may lie in a folder of their own, and the card then above.
    return Path(str(path).split("{", 1)[0] + "x").parent


def _cached_folder(hub_id: str) -> Path | None:
    from huggingface_hub import constants

    snapshots = Path(constants.HF_HUB_CACHE) / f"datasets--{hub_id.replace('/', '--')}" / "snapshots"
    cards = sorted(snapshots.glob(f"*/{CARD}"), key=os.path.getmtime)
    return cards[-1].parent if cards else None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return ""


def _metadata(card: Path) -> dict[str, Any]:
    """Return a card's metadata; nothing where there is no card."""
    import yaml
    from huggingface_hub import metadata_load

    try:
        metadata = metadata_load(card) if card.is_file() else None
    except (ValueError, OSError, yaml.YAMLError):
        metadata = None
    return metadata if isinstance(metadata, dict) else {}


def _license(metadata: dict[str, Any]) -> str:
    name = metadata.get("license_name") if metadata["license"] == "other" else metadata["license"]
    return ", ".join(map(str, name if isinstance(name, list) else [name or "other"]))

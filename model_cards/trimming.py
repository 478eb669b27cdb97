"""What a card says of a vocabulary that was cut down: a section of a run's card, or the card of any other model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from hf_xlt.languages import describe_language
from hf_xlt.model_cards.metadata import BARE_HUB_IDS, HUB_ID, KNOWN_LICENSES, LANGUAGE_CODE
from hf_xlt.model_cards.text import listed, table_cell
from hf_xlt.results import markdown

_HEADER = re.compile(r"\A---\n.*?\n---\n", re.DOTALL)


def section(trimming: Mapping[str, Any], scored: bool = False) -> str:
    """Return the text of the section, without its heading.

    Args:
        trimming: as the record has it.
        scored: whether the card shows scores.
    """
    before, after = trimming["before"], trimming["after"]
    sources = listed([f"`{name}`" for name in trimming["sources"]])
    what = (
        "the tokens that this text needs"
        if trimming["limit"] is None
        else (f"the {trimming['limit']:,} most frequent tokens of this text")
    )
    paragraphs = [
        f"The vocabulary was cut down (`hf-xlt trim-vocab`) to {what}: {sources}. It had {before['tokens']:,} tokens "
        f"and has {after['tokens']:,}; the model had {before['parameters']:,} parameters and has "
        f"{after['parameters']:,}.",
        _compared(trimming),
        "Other text, in these languages too, may be split into more tokens than before, or hold unknown ones.",
    ]
    if scored:
        paragraphs.append("Scores on this card are those of the model before its vocabulary was cut down.")
    rows = [["language", "texts", "tokens per word before", "now"]]
    rows += [
        [table_cell(code), f"{entry['documents']:,}", f"{entry['before']:.3f}", f"{entry['after']:.3f}"]
        for code, entry in trimming["languages"].items()
    ]
    return "\n\n".join([*paragraphs, markdown(rows)])


def limit(trimming: Mapping[str, Any]) -> str:
    """Return the limit that a card names."""
    tokens = trimming["after"]["tokens"]
    return (
        f"The vocabulary of {tokens:,} tokens is made for one text: what else a language writes may be split further "
        "or be unknown, and scores on other text may be lower than with the whole vocabulary."
    )


def _compared(trimming: Mapping[str, Any]) -> str:
    outputs = trimming["outputs"]
    if trimming["changed"]:
        text = f"Of the tokens of that text {trimming['changed']:,} are cut in another way than before"
        text += f", and {trimming['unknown']:,} of them have become unknown." if trimming["unknown"] else "."
    else:
        text = "That text is cut into the same pieces as before."
    if outputs["same"]:
        text += f" On {outputs['same']:,} texts of the same pieces outputs differ by at most {outputs['largest']:.2g}."
    if outputs["likeness"] is not None:
        text += (
            f" On {outputs['documents'] - outputs['same']:,} texts that are cut otherwise, mean outputs have a cosine "
            f"of {outputs['likeness']:.4f} or more with those before."
        )
    return text


def card(
    trimming: Mapping[str, Any], name: str | None, license_fields: Mapping[str, str], original: str | None
) -> str:
    """Return the card of a model that is no run.

    Args:
        trimming: as the record of a run has it.
        name: Hub id or plain name of the model before, or None.
        license_fields: `license` and `license_link` of the model before, as far as known.
        original: the card of the model before, which is kept below.
    """
    from huggingface_hub import ModelCardData

    codes = [describe_language(code)["iso"] for code in trimming["languages"]]
    licence = dict(license_fields)
    if licence.get("license") and licence["license"].lower() not in KNOWN_LICENSES:
        licence |= {"license": "other", "license_name": licence["license"]}
    on_hub = bool(name and HUB_ID.fullmatch(name) and ("/" in name or name in BARE_HUB_IDS))
    header = ModelCardData(
        language=[code for code in dict.fromkeys(codes) if LANGUAGE_CODE.fullmatch(code)] or None,
        library_name="transformers",
        base_model=name if on_hub else None,
        tags=["hf_xlt", "trimmed-vocabulary"],
        **licence,
    ).to_yaml(line_break="\n")
    title = f"{name.split('/')[-1]}, smaller vocabulary" if name else "A model with a smaller vocabulary"
    text = f"---\n{header}\n---\n\n# {title}\n\n{section(trimming)}\n"
    if not licence.get("license"):
        text += "\nThe licence of the model before is not known here: look there before you pass this one on.\n"
    if original and (body := _HEADER.sub("", original.replace("\r\n", "\n")).strip()):
        text += f"\n---\n\nThe card of the model before:\n\n{body}\n"
    return text

"""Language codes and names: ISO 639-1 where there is one, else ISO 639-3 (Unicode CLDR, through babel)."""

from __future__ import annotations

import functools
import re

from hf_xlt.errors import ConfigError

# CLDR names macro-languages and older codes differently from data sets that are in common use.
_ALIASES = {"iw": "he", "in": "id", "ji": "yi", "zho": "zh", "cmn": "zh", "swa": "sw", "swh": "sw", "jav": "jv"}
# English names (ISO 639-3) of languages in common cross-lingual data sets that CLDR does not name.
_NAMES = {
    "aym": "Aymara",
    "bzd": "Bribri",
    "cni": "Asháninka",
    "fuv": "Nigerian Fulfulde",
    "hch": "Wixarika",
    "nah": "Nahuatl",
    "nij": "Ngaju",
    "oto": "Otomi",
    "quy": "Ayacucho Quechua",
    "shp": "Shipibo-Conibo",
    "tar": "Rarámuri",
}
# Singletons (`be-x-old`) lead a subtag; Wikipedia's `zh-classical` is a letter longer than BCP 47 has it.
_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,9}|[-_][A-Za-z]([-_][A-Za-z0-9]{1,8})+)*")


@functools.cache
def _english_names() -> dict[str, str]:
    from babel import Locale

    return dict(Locale("en").languages)


@functools.cache
def _three_to_two_letters() -> dict[str, str]:
    from babel.core import get_global

    aliases = get_global("language_aliases")
    return {code: target for code, target in aliases.items() if len(code) == 3 and len(target) == 2}


def is_code(text: str) -> bool:
    """Say whether a part of a file or configuration name can be a language code; `all` means every language."""
    return bool(_CODE.fullmatch(text)) and text != "all"


def check_code(code: str) -> str:
    """Return `code` when it can be a language code.

    Language codes reach file names, metric names and the card, so only letters, digits and hyphens pass.

    Raises:
        ConfigError: it holds other characters.
    """
    if not _CODE.fullmatch(code):
        raise ConfigError(
            f"{code!r} is not a language code; give ISO codes such as `en`, `sw` or `quy`, separated by commas."
        )
    return code


def iso_code(code: str) -> str:
    """Return the ISO 639-1 code of a language where there is one, else its ISO 639-3 code.

    `eng_Latn`, `en-US` and `eng` all give `en`; `quy` stays `quy`.
    """
    base = re.split(r"[-_]", code)[0].lower()
    base = _ALIASES.get(base, base)
    return _three_to_two_letters().get(base, base) if len(base) == 3 else base


def english_name(code: str) -> str:
    """Return the English name of a language, or its code where none is known."""
    base = iso_code(code)
    return _NAMES.get(base) or _english_names().get(base, code)


def describe_language(code: str) -> dict[str, str]:
    """Return a language as records have it: `code` of the data, `iso`, and English `name`."""
    return {"code": code, "iso": iso_code(code), "name": english_name(code)}

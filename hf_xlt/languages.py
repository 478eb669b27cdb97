"""Language codes and names: ISO 639-1 where there is one, else ISO 639-3 (CLDR, by langcodes and babel)."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable

from hf_xlt.errors import ConfigError

# Codes that CLDR reads otherwise than data sets mean them: Bokmål is what `no` stands for, Dari is one of its
# own beside `pes`, `tl` has the two letters; the longer ones are editions of Wikipedia.
_ALIASES = {
    "nb": "no",
    "nob": "no",
    "prs": "prs",
    "fil": "tl",
    "tgl": "tl",
    "tl": "tl",
    "simple": "en",
    "bat-smg": "sgs",
    "be-x-old": "be",
    "cbk-zam": "cbk",
    "fiu-vro": "vro",
    "map-bms": "jv",
    "roa-rup": "rup",
    "roa-tara": "nap",
    "zh-classical": "lzh",
}
# English names (ISO 639-3) of languages in common cross-lingual data sets that CLDR does not name.
_NAMES = {
    "acm": "Mesopotamian Arabic",
    "acq": "Taʽizzi-Adeni Arabic",
    "ajp": "South Levantine Arabic",
    "apc": "Levantine Arabic",
    "aym": "Aymara",
    "azb": "South Azerbaijani",
    "bzd": "Bribri",
    "cjk": "Chokwe",
    "cni": "Asháninka",
    "fuv": "Nigerian Fulfulde",
    "hch": "Wixarika",
    "hne": "Chhattisgarhi",
    "kbp": "Kabiyè",
    "nah": "Nahuatl",
    "nij": "Ngaju",
    "oto": "Otomi",
    "prs": "Dari",
    "quy": "Ayacucho Quechua",
    "shp": "Shipibo-Conibo",
    "taq": "Tamasheq",
    "tar": "Rarámuri",
}
# Singletons (`be-x-old`) lead a subtag; Wikipedia's `zh-classical` is a letter longer than BCP 47 has it.
_CODE = re.compile(r"[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,9}|[-_][A-Za-z]([-_][A-Za-z0-9]{1,8})+)*")


@functools.cache
def _english_names() -> dict[str, str]:
    from babel import Locale

    return dict(Locale("en").languages)


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


@functools.cache
def language_identity(code: str) -> str:
    """Return what a language is, whichever code names it: ISO 639-1 where there is one, else ISO 639-3.

    Scripts, regions and other variants do not count: `eng_Latn`, `en-US`, `eng` and `en` are one language. ISO 639-2
    codes of both kinds (`ger`, `deu`) and withdrawn ones (`iw`, `in`) count as what they mean, and `no` is `nb`
    (`nn` is not). A macrolanguage is its dominant member as Unicode CLDR has it (`zho` and `cmn`, `ara` and `arb`,
    `msa` and `zsm`); its other members (`yue`, `arz`, `ind`) are languages of their own. A code that no standard has
    is its first part.
    """
    from langcodes import Language, standardize_tag
    from langcodes.tag_parser import LanguageTagError

    tag = code.strip().replace("_", "-").lower()
    base = tag.split("-")[0]
    for written in (tag, base):
        if written in _ALIASES:
            return _ALIASES[written]
    try:
        language = Language.get(standardize_tag(tag, macro=True), normalize=False).language or base
    except LanguageTagError:
        return base if tag == base else language_identity(base)
    return _ALIASES.get(language, language)


def same_language(first: str, second: str) -> bool:
    """Say whether two codes name one language; see `language_identity`."""
    return language_identity(first) == language_identity(second)


def find_same(code: str, others: Iterable[str]) -> str | None:
    """Return the first of some codes that names the same language as `code`, the very code before any other."""
    others = list(others)
    if code in others:
        return code
    return next((other for other in others if same_language(code, other)), None)


def find_variants(codes: Iterable[str]) -> list[list[str]]:
    """Return the codes that name one language between them, two or more in each list."""
    groups: dict[str, list[str]] = {}
    for code in dict.fromkeys(codes):
        groups.setdefault(language_identity(code), []).append(code)
    return [group for group in groups.values() if len(group) > 1]


def check_no_target(labelled: Iterable[str], targets: Iterable[str], role: str) -> None:
    """Check that no target language has labels in training, under any code.

    Args:
        labelled: languages with labels.
        targets: target languages; `all` names none.
        role: what the languages with labels are, with its article.

    Raises:
        ConfigError: one has.
    """
    named = list(targets)
    for code in labelled:
        target = find_same(code, named)
        if target is None:
            continue
        same = f"`{code}` is both" if target == code else f"`{target}` is `{code}` under another code, which is both"
        scored = " (the source is scored anyway)" if role.endswith("source") else ""
        raise ConfigError(
            f"{same} {role} and a target language. A target language is one without training labels; leave it out of "
            f"one of the lists{scored}."
        )


def iso_code(code: str) -> str:
    """Return the ISO 639-1 code of a language where there is one, else its ISO 639-3 code.

    `eng_Latn`, `en-US` and `eng` all give `en`; `quy` stays `quy`.
    """
    return language_identity(code)


def english_name(code: str) -> str:
    """Return the English name of a language, or its code where none is known."""
    base = language_identity(code)
    return _NAMES.get(base) or _english_names().get(base, code)


def describe_language(code: str) -> dict[str, str]:
    """Return a language as records have it: `code` of the data, `iso`, and English `name`."""
    return {"code": code, "iso": iso_code(code), "name": english_name(code)}

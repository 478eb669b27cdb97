"""Language codes and names."""

import pytest

from hf_xlt.errors import ConfigError
from hf_xlt.languages import (
    check_code,
    english_name,
    find_same,
    find_variants,
    iso_code,
    language_identity,
    same_language,
)


@pytest.mark.parametrize(
    ("code", "iso", "name"),
    [
        ("en", "en", "English"),
        ("eng_Latn", "en", "English"),
        ("en-US", "en", "English"),
        ("deu", "de", "German"),
        ("swh_Latn", "sw", "Swahili"),
        ("quy", "quy", "Ayacucho Quechua"),
        ("bbc", "bbc", "Batak Toba"),
        ("xyz", "xyz", "xyz"),
    ],
)
def test_codes_become_iso_codes_and_english_names(code, iso, name):
    assert (iso_code(code), english_name(code)) == (iso, name)


@pytest.mark.parametrize("code", ["", "german", "e", "../x", "en/de", "d e", "de_", "1a"])
def test_what_cannot_be_a_code_is_refused(code):
    with pytest.raises(ConfigError, match="is not a language code"):
        check_code(code)


@pytest.mark.parametrize(
    "codes",
    [
        "en eng eng_Latn en-US en_GB EN en-x-foo simple",
        "de ger deu deu_Latn de-AT-1901",
        "he iw heb heb_Hebr",
        "id in ind ind_Latn",
        "no nb nob nb-NO nob_Latn nor",
        "zh zho chi cmn zh-Hans zho_Hant",
        "ar ara arb arb_Arab arb_Latn",
        "sw swa swh swh_Latn",
        "ms msa may zsm",
        "fa fas per pes",
        "et est ekk",
        "lv lav lvs",
        "ace ace_Arab ace_Latn",
        "be bel be-x-old",
        "yue zh-yue yue_Hant",
        "lzh zh-classical",
        "tl tgl fil",
        "jv jw jav",
    ],
)
def test_codes_of_one_language_are_the_same(codes):
    first, *others = codes.split()
    assert [code for code in others if not same_language(first, code)] == []
    assert len({iso_code(code) for code in codes.split()}) == len({english_name(code) for code in codes.split()}) == 1


@pytest.mark.parametrize(
    "codes",
    ["ms id", "no nn", "zh yue lzh nan", "ar arz ary", "fa prs", "sr hr bs", "qu quy", "roa-rup roa-tara", "x y"],
)
def test_members_of_macrolanguages_are_languages_of_their_own(codes):
    assert len({language_identity(code) for code in codes.split()}) == len(codes.split())


@pytest.mark.parametrize("code", ["", "1", "simple", "zh-classical", "en-x", "foo-bar-toolongsubtag", "qaa_Latn", "-"])
def test_odd_codes_have_an_identity_and_a_name(code):
    assert isinstance(language_identity(code), str) and isinstance(english_name(code), str)


def test_the_very_code_is_found_before_its_variants():
    assert find_same("eng_Latn", ["de", "en", "eng_Latn"]) == "eng_Latn"
    assert find_same("eng_Latn", ["de", "en"]) == "en" and find_same("sw", ["de"]) is None
    assert find_variants(["zho_Hans", "en", "zho_Hant"]) == [["zho_Hans", "zho_Hant"]]

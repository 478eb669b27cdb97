"""Language codes and names."""

import pytest

from hf_xlt.errors import ConfigError
from hf_xlt.languages import check_code, english_name, iso_code


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

"""Licences and citations of data sets, from what lies on this machine alone."""

import pytest

from hf_xlt.data.provenance import provenance
from hf_xlt.data.sources import make_source

ENTRY = "@inproceedings{topic-2024,\n  title = {Topics},\n}"
CARD = f"---\nlicense: cc-by-4.0\n---\n# Topics\n\n```bibtex\n{ENTRY}\n```\n\n```python\n@decorator\n```\n"


def source(pattern):
    return make_source(str(pattern), None, "train")


@pytest.mark.parametrize("pattern", ["{split}.{lang}.csv", "{lang}/{split}.csv", "all.csv"])
def test_a_card_beside_local_files_is_read(tmp_path, pattern):
    (tmp_path / "README.md").write_text(CARD)
    found = provenance([source(tmp_path / pattern)] * 3)
    (name,) = found["licenses"]
    assert found == {"licenses": {name: "cc-by-4.0"}, "citations": [ENTRY]} and str(tmp_path) not in name


def test_a_file_of_citations_wins_over_the_card(tmp_path):
    (tmp_path / "README.md").write_text(CARD)
    (tmp_path / "CITATION.bib").write_text("@misc{other,\n}\n")
    assert provenance([source(tmp_path / "{lang}.csv")])["citations"] == ["@misc{other,\n}"]


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        f"# A program\n\n```bibtex\n{ENTRY}\n```\n",
        "---\na: [\n---\n",
        "---\nplain\n---\n",
        "---\nlicense:\n---\n```\nno entry\n```\n",
    ],
)
def test_what_is_no_card_says_nothing(tmp_path, text):
    if text is not None:
        (tmp_path / "README.md").write_text(text)
    assert provenance([source(tmp_path / "{lang}.csv")]) == {}


def test_other_licences_are_called_by_their_name(tmp_path):
    for text, expected in [
        ("license: other\nlicense_name: our-own", "our-own"),
        ("license: [mit, cc0-1.0]", "mit, cc0-1.0"),
    ]:
        (tmp_path / "README.md").write_text(f"---\n{text}\n---\n")
        assert list(provenance([source(tmp_path / "{lang}.csv")])["licenses"].values()) == [expected]


def test_a_data_set_of_the_hub_has_its_card_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    snapshot = tmp_path / "datasets--org--topic" / "snapshots" / "0a1b"
    snapshot.mkdir(parents=True)
    assert provenance([source("org/topic:{lang}")]) == {}
    (snapshot / "README.md").write_text(CARD)
    assert provenance([source("org/topic:{lang}")]) == {"licenses": {"org/topic": "cc-by-4.0"}, "citations": [ENTRY]}

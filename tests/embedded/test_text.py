"""The pre-training text: permitted sources only, parallel rows under one id, nothing of the demo's held-out items."""

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hf_xlt.embedded import text
from hf_xlt.embedded.alignment import align, anchors, is_latin
from hf_xlt.embedded.phrases import item_split

SHARED = Path(os.environ.get("HF_XLT_SHARED", Path(__file__).resolve().parents[3] / "shared"))
ENGLISH = [
    "Getting started",
    "This guide shows how to train a model with tf.keras and how to save it for later.",
    "Download 60000 images of the MNIST data set.",
    "Note: you need a GPU for this.",
    "The optimizer is Adam, with a learning rate of 0.001 and without decay, as in the paper by Kingma and Ba.",
    "Evaluate the model",
    "The accuracy on the test set is close to 98 percent after five epochs of training.",
    "Call model.save_weights to keep the weights.",
]
GERMAN = [
    "Erste Schritte",
    "Diese Anleitung zeigt, wie man ein Modell mit tf.keras trainiert und für später speichert.",
    "Laden Sie 60000 Bilder des MNIST-Datensatzes herunter.",
    "Hinweis: Sie brauchen dafür eine GPU.",
    "Der Optimierer ist Adam, mit einer Lernrate von 0.001 und ohne Abnahme, wie im Artikel von Kingma und Ba.",
    "Das Modell bewerten",
    "Die Genauigkeit auf den Testdaten liegt nach fünf Epochen Training nahe bei 98 Prozent.",
    "Rufen Sie model.save_weights auf, um die Gewichte zu behalten.",
]
GOLD = [(index, index) for index in range(len(ENGLISH))]
EXTRA = "Dieser Absatz steht nur hier: er dankt allen Übersetzerinnen und Übersetzern für ihre Geduld mit colab_v2."


def test_equal_documents_align_one_to_one():
    assert align(ENGLISH, GERMAN, 1.1, threshold=0.6) == GOLD


@pytest.mark.parametrize("place", range(len(GERMAN) + 1))
def test_an_inserted_paragraph_is_skipped_wherever_it_stands(place):
    pairs = align(ENGLISH, [*GERMAN[:place], EXTRA, *GERMAN[place:]], 1.1, threshold=0.6)
    assert all(j == i + (i >= place) for i, j in pairs) and len(pairs) >= 6


@pytest.mark.parametrize("place", range(len(GERMAN)))
def test_a_missing_paragraph_is_skipped_wherever_it_stood(place):
    pairs = align(ENGLISH, GERMAN[:place] + GERMAN[place + 1 :], 1.1, threshold=0.6)
    assert all(j == i - (i > place) and i != place for i, j in pairs) and len(pairs) >= 5


def test_pairs_never_cross_and_no_paragraph_has_two():
    shuffled = [GERMAN[index] for index in (3, 0, 6, 1, 7, 2, 5, 4)]
    pairs = align(ENGLISH, shuffled, 1.1, threshold=0.51)
    assert pairs == sorted(pairs) and len({j for _, j in pairs}) == len(pairs)
    assert [j for _, j in pairs] == sorted(j for _, j in pairs)


def test_a_higher_threshold_keeps_a_part_of_the_pairs():
    loose, strict = (set(align(ENGLISH, GERMAN[1:], 1.1, threshold=level)) for level in (0.6, 0.97))
    assert strict <= loose


def test_unrelated_or_empty_documents_have_no_pairs():
    assert align([], GERMAN, 1.1) == align(ENGLISH, [], 1.1) == []
    assert align(["A short heading"], [EXTRA * 4], 1.1) == []


def test_anchors_are_latin_words_and_numbers_in_any_script():
    assert anchors("使用 tf.keras 训练 2 个模型", True) == {"tf.keras": True, "2": True}
    assert anchors("١٢ صفحة", True) == {"12": True}
    assert anchors("Das GitHub-Projekt.") == {"das": False, "github": True, "projekt": False}
    assert is_latin(["żółć, Tiếng Việt"]) and not is_latin(["Модель tf"])


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=text.SCHEMA), path)


def row(language, words, identifier, source):
    return {"lang": language, "text": words, "id": identifier, "source": source}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """English and German text of permitted and other sources, and books."""
    root = tmp_path_factory.mktemp("data")
    for language, paragraphs in (("en", ENGLISH), ("de", [*GERMAN[:4], EXTRA, *GERMAN[4:]])):
        rows = [row(language, t, f"tfdocs:a.md#{n}", "tensorflow-docs") for n, t in enumerate(paragraphs)]
        rows += [row(language, f"{language} fever", "tico:1", "tico-19"), row(language, "x", "tico:2", "tico-19")]
        rows += [row(language, "once more", f"tico:{n}", "tico-19") for n in (3, 4)]
        rows += [row(language, f"{language} menu {s}", f"{s}:1", s) for s in ("gnome-user-docs", "ntrex-128", "new")]
        write(root / "text" / f"{language}.parquet", rows)
    write(root / "text" / "fr.parquet", [row("fr", "le menu", "gnome:1", "gnome-user-docs")])
    books = [row("en", "It was a dark night.", "books:a#1", text.BOOKS_NAME), row("en", "No.", "other:1", "other")]
    write(root / "text_english" / "books.en.parquet", books)
    return root


@pytest.fixture(scope="module")
def languages():
    """Fewer languages of phrases than the command makes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "PHRASE_LANGUAGES", ("en", "de", "sw", "tl", "rw", "xx"))
        yield


@pytest.fixture(scope="module")
def made(data, languages, tmp_path_factory):
    """The folder that the command makes."""
    output = tmp_path_factory.mktemp("made") / "text"
    assert text.main(["--data", str(data), "--output-dir", str(output)]) == 0
    return output


def read(made):
    return {path.stem: pq.read_table(path).to_pylist() for path in sorted((made / "multilingual").glob("*.parquet"))}


def test_only_permitted_sources_are_taken(made):
    rows = read(made)
    assert set(rows) == {"en", "de", "sw", "tl", "rw"}
    assert {r["source"] for part in rows.values() for r in part} == {"tensorflow-docs", "tico-19", "cldr"}
    assert [r["id"] for r in pq.read_table(made / "english" / "en.parquet").to_pylist()] == ["books:a#1"]


def test_translations_share_an_id_and_other_paragraphs_share_none(made):
    rows = read(made)
    english, german = ({r["id"]: r["text"] for r in rows[code] if r["source"] != "cldr"} for code in ("en", "de"))
    shared = {english[key]: german[key] for key in english.keys() & german.keys()} | {"en fever": "de fever"}
    assert len(shared) >= 5 and all(
        shared[a] == dict(zip(ENGLISH, GERMAN, strict=True)).get(a, "de fever") for a in shared
    )
    assert EXTRA in {german[key] for key in german if key.endswith("@de")}


def test_short_repeated_and_untranslated_rows_are_dropped(made):
    rows = read(made)
    texts = [r["text"] for r in rows["en"]]
    assert texts.count("once more") == 1 and "x" not in texts
    assert "once more" not in {r["text"] for r in rows["de"]}
    assert all(len(set(t)) == len(t) for t in ([r["text"] for r in part] for part in rows.values()))
    assert text.filter_rows([row("ar", "عنوان {#id-of-it}", "a", "b")])[0]["text"] == "عنوان"


def phrases(rows):
    return {r["id"]: r["text"] for r in rows if r["source"] == "cldr"}


def test_phrases_share_ids_and_cover_all_kinds(made):
    rows = read(made)
    english = phrases(rows["en"])
    assert {key.split(":")[1].split("/")[0] for key in english} == set(text.LABELS)
    for language, least in {"en": 3000, "de": 2500, "sw": 2500, "tl": 2000, "rw": 1000}.items():
        own = phrases(rows[language])
        assert len(own.keys() - english.keys()) < 10 and len(own) >= least
    assert english["cldr:place/GR/0/name"] == "Greece" and phrases(rows["sw"])["cldr:place/GR/0/name"] == "Ugiriki"
    # Kinyarwanda has no units of its own, only the root locale's signs.
    assert not any(key.startswith("cldr:measure") for key in phrases(rows["rw"]))


def test_no_held_out_item_of_the_demo_task_occurs(made):
    held_out = text.held_out_surfaces()
    assert len(held_out) > 1000
    for rows in read(made).values():
        for identifier, words in phrases(rows).items():
            kind, item, number, style = identifier.removeprefix("cldr:").split("/", 3)
            spec = text.PhraseSpec(kind, item, int(number), style)
            assert item_split(kind, item) == "train" and text._surface(words, spec) not in held_out


def test_the_same_input_gives_the_same_bytes(made, data, languages, tmp_path, capsys):
    again = tmp_path / "again"
    assert text.main(["--data", str(data), "--output-dir", str(again)]) == 0
    names = sorted(path.relative_to(made) for path in made.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert all((made / name).read_bytes() == (again / name).read_bytes() for name in names)
    assert "| tensorflow-docs | Apache-2.0 |" in capsys.readouterr().out


def test_sources_name_licences_and_input_but_no_path_of_the_machine(made, data):
    sources = (made / "SOURCES.md").read_text()
    for part in ("CC0 1.0", "CC BY 4.0", "Apache-2.0", "Unicode License v3", "public domain", "text/de.parquet"):
        assert part in sources
    assert str(data) not in sources and "gnome" not in sources


def test_bad_input_is_one_line(data, made, tmp_path, capsys):
    def last_error(folder, output):
        assert text.main(["--data", str(folder), "--output-dir", str(output)]) == 2
        return capsys.readouterr().err.strip()

    assert "books.en.parquet` is missing" in last_error(tmp_path / "none", tmp_path / "out")
    write(tmp_path / "text_english" / "books.en.parquet", [])
    assert "holds no .parquet file" in last_error(tmp_path, tmp_path / "out")
    (tmp_path / "text").mkdir()
    pq.write_table(pa.table({"lang": ["en"], "text": ["a"]}), tmp_path / "text" / "en.parquet")
    assert "has no column `id`; it needs lang, text, id, source" in last_error(tmp_path, tmp_path / "out")
    (tmp_path / "text" / "en.parquet").write_bytes(b"PAR1 no")
    assert "cannot be read as parquet" in last_error(tmp_path, tmp_path / "out")
    write(tmp_path / "text" / "en.parquet", [row("en", "menu", "g:1", "gnome-user-docs")])
    assert "holds no English text of tico-19" in last_error(tmp_path, tmp_path / "out")
    assert "exists already" in last_error(data, made)
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".*.part"))


@pytest.mark.skipif(
    not (SHARED / "data" / "text").is_dir(),
    reason=f"real data are not in {SHARED.name}/ beside the checkout (HF_XLT_SHARED names another place)",
)
def test_real_documents_align_with_their_translations():
    rows = {code: text.read_rows(SHARED / "data" / "text" / f"{code}.parquet") for code in ("en", "de", "ru")}
    guide = {code: [r for r in part if r["source"] == "opensource.guide"] for code, part in rows.items()}
    english = {r["id"]: r["text"] for r in guide["en"]}
    for code, title in (("de", "Verhaltenskodex"), ("ru", "кодекс")):
        aligned = {r["id"]: r["text"] for r in text.align_documents(guide["en"], guide[code])}
        shared = aligned.keys() & english.keys()
        assert 0.75 * len(guide[code]) < len(shared) < len(guide[code])
        both = [key for key in shared if "code of conduct" in english[key].lower()]
        assert sum(title.lower() in aligned[key].lower() for key in both) > 0.7 * len(both) > 10

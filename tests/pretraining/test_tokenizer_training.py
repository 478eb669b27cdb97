"""Trained tokenizers: XLM-R's layout, no unknown text, one result per seed, and shares by temperature."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from tiny import write_rows
from transformers import AutoConfig, AutoTokenizer

from hf_xlt.cli import train_tokenizer as command
from hf_xlt.errors import ConfigError, as_flags
from hf_xlt.pretraining.mixture import temperature_distribution
from hf_xlt.pretraining.statistics import tokenizer_hash
from hf_xlt.pretraining.texts import LanguageText, read_texts
from hf_xlt.pretraining.tokenizers import (
    BYTE_TOKENS,
    MAXIMUM_REPEATS,
    TokenizerSettings,
    fit_report,
    sample_mixture,
    train_tokenizer,
)

ROOT = Path(__file__).resolve().parents[2]
LETTERS = {"en": "abcdefghij", "ru": "абвгдежзик", "zh": "日月火水木金土山川田"}
TEXTS_NEVER_SEEN = (
    "emoji 😀👩🏽‍🚀 and flags 🇰🇪",
    "ᚠᛇᚻ᛫ᛒᛦᚦ 𓀀𓂀 ꦲꦏ꧀ꦱꦫ",
    "spelt <0x41><0xE2> bytes",
    "ሰላም नमस्ते தமிழ் ខ្មែរ 한국어",
    "~`|\\^ \x07\x7f ¤",
    "2024 + 1",
)


def documents(language, count, seed=0):
    rng = random.Random(f"{language}{seed}")
    words = ["".join(rng.choices(LETTERS[language], k=rng.randint(1, 6))) for _ in range(80)]
    joint = "" if language == "zh" else " "
    return [joint.join(rng.choices(words, k=rng.randint(3, 12))) + ", 2024." for _ in range(count)]


def corpus(**counts):
    return {code: LanguageText(code, ("toy",), tuple(documents(code, count))) for code, count in counts.items()}


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def trained(request):
    settings = TokenizerSettings(model=request.param, vocab_size=500, max_length=77)
    return train_tokenizer({code: documents(code, 120) for code in LETTERS}, settings)


def test_ids_and_roles_are_those_of_xlm_r(trained):
    assert trained.convert_ids_to_tokens([0, 1, 2, 3]) == ["<s>", "<pad>", "</s>", "<unk>"]
    assert trained.convert_ids_to_tokens(len(trained) - 1) == "<mask>" and len(trained) == 500
    roles = {"bos": 0, "cls": 0, "pad": 1, "eos": 2, "sep": 2, "unk": 3, "mask": 499}
    assert all(getattr(trained, f"{role}_token_id") == index for role, index in roles.items())
    assert set(BYTE_TOKENS) <= set(trained.get_vocab()) and trained.model_max_length == 77
    assert sorted(trained.get_vocab().values()) == list(range(500))


def test_text_is_framed_like_xlm_r(trained):
    pair = trained("ab", "cd")
    tokens = trained.convert_ids_to_tokens(pair["input_ids"])
    assert tokens[0] == "<s>" and tokens[-1] == "</s>" and tokens.count("</s>") == 3
    middle = tokens.index("</s>")
    assert tokens[middle : middle + 2] == ["</s>", "</s>"] and "token_type_ids" not in pair
    masked = trained("ab <mask> cd")["input_ids"]
    assert masked == [0, *pair["input_ids"][1:middle], 499, *pair["input_ids"][middle + 2 :]]


@pytest.mark.parametrize("text", TEXTS_NEVER_SEEN)
def test_no_text_is_unknown_and_all_of_it_comes_back(trained, text):
    ids = trained(text, add_special_tokens=False)["input_ids"]
    assert trained.unk_token_id not in ids
    assert trained.decode(ids) == text


def test_full_width_spellings_do_not_become_special_tokens(trained):
    ids = trained("＜mask＞ ＜s＞ ＜/s＞", add_special_tokens=False)["input_ids"]
    assert not set(ids) & set(trained.all_special_ids)
    assert trained.decode(ids) == "<mask> <s> </s>"


def test_text_is_normalised_and_digits_stand_alone(trained):
    assert trained.tokenize("ａｂ   ab\n\tab ") == trained.tokenize("ab ab ab")
    assert trained.tokenize("2024")[-4:] == ["2", "0", "2", "4"]
    joined = train_tokenizer({"en": ["year 2024"] * 50}, TokenizerSettings(vocab_size=400, split_digits=False))
    assert joined.tokenize("2024") == ["▁2024"]
    lower = train_tokenizer({"en": documents("en", 50)}, TokenizerSettings(vocab_size=400, lowercase=True))
    assert lower.tokenize("ABC") == lower.tokenize("abc")
    assert not set(lower("<MASK>", add_special_tokens=False)["input_ids"]) & set(lower.all_special_ids)


def test_without_byte_fallback_unseen_characters_are_unknown():
    plain = train_tokenizer({"en": documents("en", 50)}, TokenizerSettings(vocab_size=300, byte_fallback=False))
    assert "<0x00>" not in plain.get_vocab() and plain.unk_token_id == 3
    assert plain.unk_token_id in plain("😀")["input_ids"]
    report = fit_report(plain, corpus(zh=5), sample_mixture(corpus(zh=5), 1, 10, 0), TokenizerSettings(vocab_size=300))
    assert any("language `zh`" in line and "are unknown" in line for line in report)


def test_plain_auto_tokenizer_loads_the_same_fast_tokenizer(trained, tmp_path):
    trained.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.is_fast and tokenizer_hash(again) == tokenizer_hash(trained)
    assert again.special_tokens_map == trained.special_tokens_map and again.model_max_length == 77
    assert again("ab <mask> 日", "в")["input_ids"] == trained("ab <mask> 日", "в")["input_ids"]
    for kind in ("bert", "xlm-roberta", "modernbert", "deberta-v2"):
        AutoConfig.for_model(kind).save_pretrained(tmp_path)
        assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_hash(trained)


def test_the_rarest_characters_are_left_out_per_language():
    texts = {"en": ["abc " * 100] * 100 + ["é"], "ru": ["где " * 2]}
    kept = train_tokenizer(texts, TokenizerSettings(vocab_size=400, character_coverage=0.999)).get_vocab()
    assert "é" not in kept and {"г", "д", "е"} <= set(kept)
    assert "é" in train_tokenizer(texts, TokenizerSettings(vocab_size=400, character_coverage=1.0)).get_vocab()


def test_a_common_word_becomes_one_piece_and_text_never_spells_a_byte_piece():
    texts = {"en": ["the transfer of the thing"] * 50}
    assert train_tokenizer(texts, TokenizerSettings(vocab_size=400)).tokenize("the transfer") == ["▁the", "▁transfer"]
    unigram = train_tokenizer(texts, TokenizerSettings(model="unigram", vocab_size=400))
    scores = dict(json.loads(unigram.backend_tokenizer.to_str())["model"]["vocab"])
    assert scores["t"] > scores["<0x41>"] and scores["q"] > scores["<0x41>"]


def test_equal_text_gives_equal_tokenizers_in_every_process():
    code = (
        "import random; from hf_xlt.pretraining.trainers import train_bpe\n"
        "r = random.Random(0)\n"
        "w = {''.join(r.choices('abcdefgh', k=r.randint(1, 7))): r.randint(1, 9) for _ in range(5000)}\n"
        "print(train_bpe(w, 'abcdefgh', 500).__getstate__().decode())"
    )
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True).stdout
        for _ in range(2)
    ]
    assert outputs[0] == outputs[1] and "abc" in outputs[0]


def test_equal_seeds_give_equal_tokenizers(trained):
    model = json.loads(trained.backend_tokenizer.to_str())["model"]["type"].lower()
    if model == "unigram":
        pytest.skip("the library's Unigram trainer is not the same twice, which the help says")
    settings = TokenizerSettings(model=model, vocab_size=500, max_length=77)
    again = train_tokenizer({code: documents(code, 120) for code in LETTERS}, settings)
    assert tokenizer_hash(again) == tokenizer_hash(trained)


def test_the_mixture_follows_the_temperature():
    texts = corpus(en=2000, ru=500, zh=200)
    mixture = sample_mixture(texts, 0.5, 40_000, 0)
    assert mixture.shares == temperature_distribution({code: text.size for code, text in texts.items()}, 0.5)
    for code, share in mixture.shares.items():
        assert mixture.drawn[code] == pytest.approx(40_000 * share, abs=400)
    assert mixture.documents == sample_mixture(texts, 0.5, 40_000, 0).documents
    assert mixture.documents != sample_mixture(texts, 0.5, 40_000, 1).documents
    assert not mixture.capped


def test_a_small_language_is_repeated_three_times_at_most_and_the_others_fill_up():
    texts = corpus(en=2000, ru=20)
    mixture = sample_mixture(texts, 0, 60_000, 0)
    assert mixture.capped == ["ru"] and mixture.drawn["ru"] == MAXIMUM_REPEATS * texts["ru"].size
    assert sum(mixture.drawn.values()) == pytest.approx(60_000, abs=400)
    assert sorted(mixture.documents["ru"]) == sorted(3 * texts["ru"].documents)
    everything = sample_mixture(texts, 0.5, 10**9, 0)
    assert everything.capped == ["en", "ru"]


def test_the_report_names_a_language_that_falls_back_to_bytes():
    settings = TokenizerSettings(vocab_size=400)
    texts = corpus(en=50, zh=5)
    tokenizer = train_tokenizer({"en": list(texts["en"].documents)}, settings)
    lines = fit_report(tokenizer, texts, sample_mixture(texts, 0.5, 1000, 0), settings)
    warned = [line for line in lines if line.startswith("Warning")]
    assert len(warned) == 1 and "language `zh`" in warned[0] and "single bytes (more than 5%)" in warned[0]


def invoke(line):
    app = typer.Typer()
    command.register(app)
    app(line.split(), standalone_mode=False)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for code in LETTERS:
        write_rows(root / f"{code}.jsonl", [{"text": text} for text in documents(code, 60)])
    write_rows(root / "numbers.en.jsonl", [{"text": 3}])
    write_rows(root / "empty.en.jsonl", [{"text": " "}, {"text": None}])
    (root / "taken").mkdir()
    for name in ("tokenizer.json", "tokenizer_training.json"):
        (root / "taken" / name).write_text("{}")
    (root / "model").mkdir()
    (root / "model" / "model.safetensors").write_text("mine")
    return root


def test_the_command_saves_a_tokenizer_and_prints_how_it_fits(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    invoke(f"--text {{lang}}.jsonl --vocab-size 450 --sample-bytes 9000 --max-length 64 -o {tmp_path}/out")
    out = capsys.readouterr().out
    assert "tok/byte" in out and all(f"\n{code} " in out for code in LETTERS) and "450 pieces" in out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(tokenizer) == 450 and tokenizer.model_max_length == 64
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert str(world) not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())
    invoke(f"--text {{lang}}.jsonl --languages ru,en --vocab-size 440 --model bpe -o {tmp_path}/out --overwrite")
    out = capsys.readouterr().out
    assert "zh " not in out and "was taken 3 times" in out
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) <= 440


GOOD = "--text {lang}.jsonl -o out"
BAD = {
    "missing files": ("--text nowhere/{lang}.jsonl -o out", "no file fits `nowhere/{lang}.jsonl`"),
    "missing file": ("--text nowhere.jsonl -o out", "`nowhere.jsonl` is missing"),
    "neither file nor id": ("--text ./nowhere -o out", "is neither a file"),
    "unknown language": (f"{GOOD} --languages en,rw", "`rw` has no text in `--text`. Languages there: en, ru, zh."),
    "no language code": (f"{GOOD} --languages german!", "is not a language code"),
    "no language": (f"{GOOD} --languages ,", "`--languages` is empty"),
    "missing column": (f"{GOOD} --text-column sentence", "must contain a `sentence` column; it has text"),
    "numbers": ("--text numbers.{lang}.jsonl -o out", "holds int values; it must hold text"),
    "no text": ("--text empty.{lang}.jsonl -o out", "language `en` has no text"),
    "unknown model": (f"{GOOD} --model wordpiece", "must be one of bpe, unigram"),
    "too small": (f"{GOOD} --vocab-size 200", "special tokens and byte pieces, so give more"),
    "too small for the characters": (f"{GOOD} --vocab-size 300", "different characters and `--vocab-size 300`"),
    "negative alpha": (f"{GOOD} --alpha -1", "`alpha` is -1"),
    "no bytes": (f"{GOOD} --sample-bytes 0", "`--sample-bytes` is 0"),
    "coverage": (f"{GOOD} --character-coverage 0", "must lie in (0, 1]"),
    "length": (f"{GOOD} --max-length 2", "must be 3 or more"),
    "output there": ("--text {lang}.jsonl -o taken", "holds a trained tokenizer already. Add `--overwrite`"),
    "a model's folder": ("--text {lang}.jsonl -o model --overwrite", "holds no trained tokenizer of hf-xlt"),
    "output is a file": ("--text {lang}.jsonl -o en.jsonl", "is a file; give a directory"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, world, monkeypatch):
    monkeypatch.chdir(world)
    line, message = BAD[name]
    before = sorted(world.rglob("*"))
    with pytest.raises(ConfigError) as caught, as_flags():
        invoke(line)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(world.rglob("*")) == before


def test_several_sources_of_a_language_are_joined(world):
    texts = read_texts([str(world / "{lang}.jsonl"), str(world / "en.jsonl").replace("en.", "{lang}.")], "en")
    assert len(texts["en"].documents) == 120 and len(texts["en"].sources) == 1
    assert str(world.parent) not in texts["en"].sources[0]

"""Sentence retrieval: accuracies against a plain loop, vectors that no batch changes, and the command."""

import json

import pytest
import torch
from tiny import make_rows, make_tokenizer, save_encoder, write_rows
from transformers import AutoModel

from hf_xlt.cli import main as command_line
from hf_xlt.errors import ConfigError
from hf_xlt.retrieval import Pooling, _pool, embed_texts, retrieval_accuracy

TEXTS = [row["text"] for row in make_rows("en", 23, 7)]


def naive(left, right):
    """The definition, in loops."""
    hits = [0, 0]
    for side, (ours, theirs) in enumerate(((left, right), (right, left))):
        for row in range(len(ours)):
            cosines = [torch.cosine_similarity(ours[row], other, dim=0).item() for other in theirs]
            hits[side] += all(cosines[row] > value + 1e-9 for k, value in enumerate(cosines) if k != row)
    return tuple(count / len(left) for count in hits)


def random_pair(rows=40, noise=1.5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(rows, 8, generator=generator, dtype=torch.float64)
    return left, left + noise * torch.randn(rows, 8, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("seed", range(3))
def test_accuracy_equals_the_definition(seed):
    left, right = random_pair(seed=seed)
    forward, backward = retrieval_accuracy(left, right)
    assert (forward, backward) == pytest.approx(naive(left, right))
    assert 0 < forward < 1 and 0 < backward < 1


@pytest.mark.parametrize("chunk", [1, 7, 39, 40, 1000])
def test_the_size_of_a_block_changes_nothing(chunk):
    left, right = random_pair()
    right[5], left[9] = right[6], left[8]
    assert retrieval_accuracy(left, right, chunk) == retrieval_accuracy(left, right)


def test_equal_sides_are_all_found_and_shifted_ones_never():
    left, _ = random_pair()
    assert retrieval_accuracy(left, left) == retrieval_accuracy(left, 3 * left) == (1.0, 1.0)
    assert retrieval_accuracy(left, left.roll(1, 0)) == (0.0, 0.0)


def test_the_directions_are_not_mixed_up():
    left = torch.eye(3)
    right = torch.stack([left[0], left[0], left[2]])
    # From the left, row 0 ties with row 1; from the right, row 1 finds row 0.
    assert retrieval_accuracy(left, right) == (pytest.approx(1 / 3), pytest.approx(2 / 3))


def test_a_tie_is_a_miss():
    assert retrieval_accuracy(torch.ones(5, 4), torch.ones(5, 4)) == (0.0, 0.0)
    assert retrieval_accuracy(torch.zeros(5, 4), torch.zeros(5, 4)) == (0.0, 0.0)
    left, _ = random_pair()
    left[1] = left[0]
    assert retrieval_accuracy(left, left) == (0.95, 0.95)


def test_broken_vectors_are_misses_and_one_row_is_always_found():
    left, _ = random_pair()
    assert retrieval_accuracy(left, torch.full_like(left, float("nan"))) == (0.0, 0.0)
    assert retrieval_accuracy(left[:1], left[:1]) == (1.0, 1.0)


def test_unrelated_vectors_are_found_by_chance():
    generator = torch.Generator().manual_seed(1)
    rates = [retrieval_accuracy(*torch.randn(2, 20, 16, generator=generator))[0] for _ in range(200)]
    assert sum(rates) / len(rates) == pytest.approx(1 / 20, abs=0.012)


def test_unequal_or_empty_sides_are_refused():
    for left, right in ((torch.ones(2, 3), torch.ones(3, 3)), (torch.ones(0, 3), torch.ones(0, 3))):
        with pytest.raises(ValueError, match="N > 0"):
            retrieval_accuracy(left, right)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder of five layers, pairs in two languages, and files to join by id."""
    root = tmp_path_factory.mktemp("world")
    save_encoder(root / "encoder", num_hidden_layers=5)
    for language, count in (("de", 12), ("sw", 9)):
        rows = [{"text": row["text"], "text_en": row["text"]} for row in make_rows(language, count, 3)]
        write_rows(root / f"test.{language}.jsonl", rows)
    write_rows(root / "hard.de.jsonl", [{"text": t, "text_en": u} for t, u in zip(TEXTS, TEXTS[::-1], strict=True)])
    write_rows(root / "twice.de.jsonl", [{"text": t, "text_en": u} for t, u in (("w1", "w5"), ("w1", "w6"))])
    write_rows(root / "hole.de.jsonl", [{"text": "w1", "text_en": "w1"}, {"text": " ", "text_en": "w2"}])
    (root / "nothing.de.jsonl").write_text("")
    for language, part in (("en", slice(0, 10)), ("fr", slice(3, 12)), ("zu", slice(11, 14))):
        rows = [{"id": f"r{n}", "text": text} for n, text in enumerate(TEXTS)][part]
        write_rows(root / f"joined.{language}.jsonl", rows[::-1])
    write_rows(root / "same.en.jsonl", [{"id": "a", "text": "w1"}])
    write_rows(root / "same.de.jsonl", [{"id": "a", "text": "w1"}, {"id": "a", "text": "w2"}])
    return root


@pytest.fixture(scope="module")
def encoder(world):
    return AutoModel.from_pretrained(world / "encoder").eval()


@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_no_vector_depends_on_its_batch(encoder, pooling):
    tokenizer = make_tokenizer()
    one, many = (embed_texts(encoder, tokenizer, TEXTS, Pooling(pooling=pooling, batch_size=size)) for size in (1, 8))
    assert one.shape == (23, 32) and torch.allclose(one, many, atol=1e-5)
    assert torch.equal(
        embed_texts(encoder, tokenizer, TEXTS[::-1], Pooling(pooling=pooling, batch_size=1)), one.flip(0)
    )


def test_left_padding_changes_no_vector(encoder):
    tokenizer = make_tokenizer()
    for pooling in ("mean", "first"):
        expected = embed_texts(encoder, tokenizer, TEXTS[:2], Pooling(pooling=pooling, batch_size=1))
        tokenizer.padding_side = "left"
        encoded = tokenizer(TEXTS[:2], padding=True, return_tensors="pt", return_special_tokens_mask=True)
        special = encoded.pop("special_tokens_mask")
        positions = (encoded["attention_mask"].cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            hidden = encoder(**encoded, position_ids=positions, output_hidden_states=True).hidden_states[3]
        assert torch.allclose(_pool(hidden, encoded["attention_mask"], special, pooling), expected, atol=1e-5)
        tokenizer.padding_side = "right"


def test_the_mean_is_over_the_words_of_the_layer_asked(encoder):
    tokenizer = make_tokenizer()
    with torch.no_grad():
        states = encoder(**tokenizer("w1 w2 w3", return_tensors="pt"), output_hidden_states=True).hidden_states
    for layer, index in (("middle", 3), ("last", 5), ("0", 0), ("2", 2)):
        vector = embed_texts(encoder, tokenizer, ["w1 w2 w3"], Pooling(layer))[0]
        assert torch.allclose(vector, states[index][0, 1:-1].mean(0), atol=1e-6)
    with torch.no_grad():
        empty = encoder(**tokenizer("", return_tensors="pt"), output_hidden_states=True).hidden_states[3]
    assert torch.allclose(embed_texts(encoder, tokenizer, [""], Pooling())[0], empty[0].mean(0), atol=1e-6)


def test_the_middle_is_half_of_the_layers_rounded_up():
    assert [Pooling().resolve_layer(layers) for layers in (1, 2, 5, 6, 12, 24)] == [1, 1, 3, 3, 6, 12]
    with pytest.raises(ConfigError, match="`layer` is 7, but the model has 6 layers; give 0 to 6"):
        Pooling("7").resolve_layer(6)


def test_long_texts_are_cut(encoder):
    tokenizer = make_tokenizer()
    vectors = embed_texts(encoder, tokenizer, ["w1 w2 w3 w4 w5", "w1 w2 w9"], Pooling(max_length=4))
    assert torch.allclose(vectors[0], vectors[1], atol=1e-6)


@pytest.fixture
def command(world, monkeypatch, capsys):
    """The command line in the world's folder: returns exit code, stdout and stderr."""
    monkeypatch.chdir(world)

    def run(line):
        code = command_line.main(["retrieve", *line.split()])
        captured = capsys.readouterr()
        return code, captured.out, captured.err.strip()

    return run


def test_equal_texts_score_everything(command, world):
    code, out, _ = command("encoder --dataset {split}.{lang}.jsonl --languages sw,de --output-dir out")
    assert code == 0 and "Swahili" in out and "to en" in out and "hidden state 3 of 5" in out and " s\n" in out
    report = json.loads((world / "out" / "retrieval.json").read_text())
    assert list(report["languages"]) == ["sw", "de"]
    assert report["languages"]["sw"] == {
        **{"examples": 9, "to_other": 1.0, "from_other": 1.0, "duplicates": 0, "left_out": 0},
        **{"mean": 1.0, "chance": 1 / 9},
    }
    assert report["average"]["chance"] == pytest.approx((1 / 9 + 1 / 12) / 2)
    assert report["model"] == "encoder" and str(world) not in json.dumps(report)
    assert "| de " in (world / "out" / "retrieval.md").read_text()
    code, _, err = command("encoder --dataset {split}.{lang}.jsonl --output-dir out")
    assert (code, "holds results already; add `--overwrite`" in err) == (2, True)
    before = (world / "out" / "retrieval.json").read_bytes()
    assert command("encoder --dataset {split}.{lang}.jsonl --languages sw,de --output-dir out --overwrite")[0] == 0
    assert (world / "out" / "retrieval.json").read_bytes() == before


def test_files_are_joined_by_id(command):
    code, out, _ = command(
        "encoder --dataset {split}.{lang}.jsonl --split joined --languages fr --id-column id --json"
    )
    score = json.loads(out)["languages"]["fr"]
    assert (code, score["examples"], score["left_out"], score["mean"]) == (0, 7, 2, 1.0)


def test_duplicates_are_counted_and_other_layers_can_be_asked(command):
    code, out, _ = command("encoder --dataset twice.{lang}.jsonl --layer last --pooling first --threads 1")
    assert code == 0 and "make ties: de 1" in out and "hidden state 5 of 5, first pooling" in out
    code, out, _ = command("encoder --dataset hard.{lang}.jsonl --json --layer 0")
    assert code == 0 and json.loads(out)["average"]["mean"] < 0.5


PAIRS = "--dataset {split}.{lang}.jsonl"
USAGE = {
    "no data": ("encoder", "Missing option '--dataset'"),
    "no model": (f"./none {PAIRS}", "model directory `./none` is missing"),
    "no such pattern": ("encoder --dataset none.{lang}.jsonl", "no file fits `none.{lang}.jsonl`"),
    "no such split": (f"encoder {PAIRS} --split tset", "for the split `tset`"),
    "unknown language": (
        f"encoder {PAIRS} --languages de,des",
        "language `des` is not in the data. Did you mean `de`?",
    ),
    "no language": (f"encoder {PAIRS} --languages ,", "no language to score"),
    "missing column": (f"encoder {PAIRS} --pair-column english", "must contain a `english` column"),
    "empty text": ("encoder --dataset hole.{lang}.jsonl", "row 1: column `text` holds ' '"),
    "empty file": ("encoder --dataset nothing.{lang}.jsonl", "the file is empty"),
    "embedded data": ("encoder --dataset embedded", "no set of parallel sentences"),
    "layer": (f"encoder {PAIRS} --layer 9", "`--layer` is 9, but the model has 5 layers; give 0 to 5"),
    "layer name": (f"encoder {PAIRS} --layer top", "`--layer` is 'top'; give `middle`, `last` or a number"),
    "pooling": (f"encoder {PAIRS} --pooling max", "`--pooling` is 'max'; it must be one of mean, first"),
    "length": (f"encoder {PAIRS} --max-length 0", "`--max-length` is 0; give 1 or more"),
    "batch": (f"encoder {PAIRS} --batch-size 0", "`--batch-size` is 0; give 1 or more"),
    "threads": (f"encoder {PAIRS} --threads 0", "`--threads` is 0; give 1 or more"),
    "output": (f"encoder {PAIRS} --output-dir test.de.jsonl", "is a file; give a directory for the output"),
    "no id": (f"encoder {PAIRS} --id-column id --source-language de", "must contain a `id` column"),
    "no source": (f"encoder {PAIRS} --id-column id", "source language `en` has no `test` split"),
    "nothing shared": (
        f"encoder {PAIRS} --split joined --languages zu --id-column id",
        "`zu` shares no id with `en`",
    ),
    "id twice": (f"encoder {PAIRS} --split same --id-column id", "holds 1 ids more than once"),
    "source among languages": (
        f"encoder {PAIRS} --split joined --languages en --id-column id",
        "`en` is the source language",
    ),
}


@pytest.mark.parametrize("name", USAGE)
def test_bad_input_is_one_line_and_exit_code_2(name, command):
    line, expected = USAGE[name]
    code, out, err = command(line)
    assert (code, expected in err, out) == (2, True, ""), err
    assert len(err.splitlines()) == 1 and "Traceback" not in err

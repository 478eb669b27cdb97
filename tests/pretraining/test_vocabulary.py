"""Another vocabulary: shared rows are bit-equal, ties and biases hold, and what is saved loads as it is."""

import copy
import errno
import shutil

import pytest
import torch
import typer
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertModel,
    PreTrainedTokenizerFast,
    set_seed,
)

from hf_xlt.cli import swap_vocab
from hf_xlt.errors import ConfigError, as_flags
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.folders import replaced_folder
from hf_xlt.pretraining.masked import save_masked, usable_positions
from hf_xlt.pretraining.pieces import Notation, shared_rows
from hf_xlt.pretraining.statistics import tokenizer_hash
from hf_xlt.pretraining.vocabulary import init_overlap, init_random, swap_vocabulary
from hf_xlt.randomness import keyed_generator

XLM = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>"}
XLM |= {"sep_token": "</s>", "mask_token": "<mask>"}
BERT = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}


def wrap(backend, special, **changes):
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=64, **{**special, **changes})


def metaspace(pieces=("▁the", "the", "▁й", "ing", ",", "▁,", "▁new", "日", "▁"), first=0):
    """SentencePiece's notation with byte pieces; `first` unused pieces move all ids."""
    fill = [f"▁fill{index}" for index in range(first)]
    tokens = [*fill, "<s>", "<pad>", "</s>", "<unk>", *(f"<0x{value:02X}>" for value in range(256)), *pieces, "<mask>"]
    backend = Tokenizer(
        models.Unigram([(token, -float(index)) for index, token in enumerate(tokens)], first + 3, True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    return wrap(backend, XLM)


def byte_level():
    """GPT-2's notation: `Ġ` for the space, `Ð¹` for `й`, `Ð` for its first byte alone."""
    tokens = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "ing", "Ġthe", "the", "ĠÐ¹", "Ð", ",", "Ġold", "Ġ"]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, [], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend, XLM)


def word_piece():
    tokens = ["[PAD]", "[unused1]", "##the", "the", "##ing", ",", "日", "й", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    backend = Tokenizer(models.WordPiece({token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return wrap(backend, BERT)


def matches(old, new):
    first = {index: piece for piece, index in old.get_vocab().items()}
    second = {index: piece for piece, index in new.get_vocab().items()}
    return {second[new_id]: first[old_id] for new_id, old_id in shared_rows(old, new).items()}


def test_word_starts_are_matched_across_notations():
    found = matches(byte_level(), metaspace())
    expected = {"▁the": "Ġthe", "the": "the", "▁й": "ĠÐ¹", "ing": "ing", ",": ",", "▁": "Ġ", "<0xD0>": "Ð"}
    assert expected.items() <= found.items()
    assert {"▁new", "▁,", "日"}.isdisjoint(found)
    found = matches(word_piece(), metaspace())
    expected = {"▁the": "the", "the": "##the", "▁й": "й", "ing": "##ing", ",": ",", "▁,": ",", "日": "日"}
    assert expected.items() <= found.items() and "▁new" not in found
    assert matches(metaspace(), word_piece())["##the"] == "the"


def test_special_tokens_are_matched_by_role():
    found = matches(word_piece(), metaspace())
    assert {"<s>": "[CLS]", "</s>": "[SEP]", "<pad>": "[PAD]", "<unk>": "[UNK]", "<mask>": "[MASK]"}.items() <= (
        found.items()
    )
    assert matches(byte_level(), word_piece())["[CLS]"] == "<s>"


def test_a_vocabulary_of_word_ends_is_refused():
    tokens = ["<s>", "</s>", "<unk>", "<pad>", "<mask>", "the</w>"]
    backend = Tokenizer(
        models.BPE({t: i for i, t in enumerate(tokens)}, [], unk_token="<unk>", end_of_word_suffix="</w>")
    )
    with pytest.raises(ConfigError, match="marks where words end"):
        shared_rows(metaspace(), wrap(backend, XLM))


def test_overlap_copies_bit_equal_rows_across_different_ids():
    old, new = metaspace(), metaspace(pieces=("▁new", "ing", "▁the", "zz"), first=7)
    weights = torch.randn(len(old), 8, dtype=torch.bfloat16)
    made, copied = init_overlap(old, new, weights, keyed_generator(0))
    for piece in ("▁new", "ing", "▁the", "<0xD0>", "<s>", "<mask>"):
        before, after = old.convert_tokens_to_ids(piece), new.convert_tokens_to_ids(piece)
        assert before != after and copied[after] and torch.equal(made[after], weights[before])
    for piece in ("zz", "▁fill0"):
        assert not copied[new.convert_tokens_to_ids(piece)]


def test_random_rows_have_the_mean_and_spread_of_the_trained_ones_without_padding():
    old, new = metaspace(), metaspace(first=4000)
    weights = torch.randn(len(old) + 50, 4) * torch.tensor([0.1, 1.0, 2.0, 3.0]) + 5
    weights[old.pad_token_id] = 1e6
    weights[len(old) :] = -1e6
    made, copied = init_random(old, new, weights, keyed_generator(0))
    trained = weights[[index for index in range(len(old)) if index != old.pad_token_id]]
    assert not copied.any() and made.shape == (len(new), 4)
    assert torch.allclose(made.mean(0), trained.mean(0), atol=0.2)
    assert torch.allclose(made.std(0), trained.std(0), rtol=0.1)
    assert torch.equal(made, init_random(old, new, weights, keyed_generator(0))[0])


SMALL = {"num_hidden_layers": 1, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
FAMILIES = {
    "bert": {},
    "roberta": {"type_vocab_size": 1},
    "xlm-roberta": {"type_vocab_size": 1},
    "distilbert": {"dim": 32, "n_layers": 1, "n_heads": 2, "hidden_dim": 48},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False},
    "deberta-v2 new head": {"legacy": False},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 1},
    "electra": {"embedding_size": 16},
    "albert": {"embedding_size": 16},
    "bert untied": {"tie_word_embeddings": False},
}


def make(family, tokenizer, extra_rows=5):
    settings = {**SMALL, "max_position_embeddings": 40, **FAMILIES[family]}
    config = AutoConfig.for_model(
        family.split()[0],
        vocab_size=len(tokenizer) + extra_rows,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **settings,
    )
    set_seed(0)
    model = AutoModelForMaskedLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)).logits[0]


def swapped_copy(model, *arguments):
    changed = copy.deepcopy(model)
    return changed, swap_vocabulary(changed, *arguments)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_keeps_its_function_on_shared_pieces_and_reloads_equal(family, tmp_path):
    old, new = metaspace(), metaspace(pieces=("▁new", "ing", "▁the", "zz"), first=7)
    model = make(family, old)
    swapped, report = swapped_copy(model, old, new)
    text = ["<s>", "▁the", "ing", "<mask>", "<0xD0>", "▁new", "</s>"]
    one, two = (tokenizer.convert_tokens_to_ids(text) for tokenizer in (old, new))
    first, second = logits(model, one)[:, one], logits(swapped, two)[:, two]
    assert torch.allclose(first, second, atol=1e-5)
    assert report.line().startswith(f"{len(old) + 5:,} embeddings before, {len(new):,} now")
    weights = swapped.get_input_embeddings()
    assert weights.padding_idx == new.pad_token_id and not weights.weight[new.pad_token_id].any()
    assert (report.new_size, report.copied) == (len(new), len(new) - 8)
    assert swapped.config.vocab_size == len(new) and swapped.config.pad_token_id == new.pad_token_id
    assert (swapped.config.bos_token_id, swapped.config.eos_token_id) == (new.bos_token_id, new.eos_token_id)
    notes = save_masked(swapped, new, tmp_path)
    assert isinstance(notes, list) and AutoTokenizer.from_pretrained(tmp_path).get_vocab() == new.get_vocab()
    again, loading = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(logits(again.eval(), two), logits(swapped, two))


@pytest.mark.parametrize("family", ["bert", "xlm-roberta", "distilbert", "modernbert"])
def test_the_head_is_tied_and_its_bias_follows(family):
    old, new = metaspace(), metaspace(pieces=("▁new", "ing", "▁the", "zz"), first=7)
    model = make(family, old)
    swapped, _ = swapped_copy(model, old, new)
    output = swapped.get_output_embeddings()
    assert output.weight is swapped.get_input_embeddings().weight
    bias, before = output.bias.detach(), model.get_output_embeddings().bias.detach()
    assert bias.shape == (len(new),)
    for piece in ("▁the", "ing", "<mask>"):
        assert bias[new.convert_tokens_to_ids(piece)] == before[old.convert_tokens_to_ids(piece)]
    assert bias[new.convert_tokens_to_ids("zz")] == pytest.approx(before.mean().item(), abs=1e-6)
    if family in ("bert", "xlm-roberta"):
        head = swapped.cls.predictions if family == "bert" else swapped.lm_head
        assert head.bias is head.decoder.bias


def test_positions_that_start_after_the_padding_id_move_with_it():
    old, new = byte_level(), word_piece()
    model = make("roberta", old)
    swapped, _ = swapped_copy(model, old, new)
    assert (old.pad_token_id, new.pad_token_id) == (3, 0)
    table, before = (each.roberta.embeddings.position_embeddings for each in (swapped, model))
    assert table.padding_idx == 0 and torch.equal(table.weight[1:], before.weight[4:])
    assert usable_positions(swapped) == usable_positions(model) == 36
    large = metaspace(first=2000)
    with pytest.raises(ConfigError, match="padding id is 2001"):
        swapped_copy(model, old, large)
    assert len(swapped_copy(make("bert", old), old, large)[0].get_input_embeddings().weight) == len(large)


def test_one_seed_gives_one_model_and_leaves_the_global_generator_alone():
    old, new = metaspace(), metaspace(first=7)
    model = make("bert", old)
    state = torch.get_rng_state()
    one, two, other = (swapped_copy(model, old, new, "random", seed)[0].state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["cls.predictions.decoder.weight"], other["cls.predictions.decoder.weight"])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (lambda old, new, rows: rows, "returned Tensor; it must return a tensor"),
        (lambda old, new, rows: (rows, torch.zeros(3)), "must return a tensor"),
        (
            lambda old, new, rows: (torch.full((len(new), 32), torch.nan), torch.zeros(len(new), dtype=torch.bool)),
            "infinite or not numbers",
        ),
    ],
)
def test_what_an_initialiser_returns_is_checked(returned, message):
    old, new = metaspace(), metaspace(first=7)
    with pytest.raises(ConfigError, match=message):
        swapped_copy(make("bert", old), old, new, returned)


def test_a_model_is_untouched_after_an_error():
    old, new = metaspace(), metaspace(first=7)
    model = make("bert", old)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ZeroDivisionError):
        swap_vocabulary(model, old, new, lambda *_: 1 / 0)
    assert model.config.vocab_size == len(old) + 5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_tokenizers_that_do_not_fit_are_refused():
    old, new = metaspace(), metaspace(first=7)
    model = make("bert", old)
    with pytest.raises(ConfigError, match="do not belong together"):
        swapped_copy(model, metaspace(first=99), new)
    with pytest.raises(ConfigError, match="has no mask token"):
        swapped_copy(model, old, wrap(new.backend_tokenizer, XLM, mask_token=None))


def test_scripts_are_told_apart():
    notation = Notation.of(metaspace())
    _, report = swapped_copy(make("bert", byte_level()), byte_level(), metaspace())
    assert report.scripts["cyrillic"] == (1, 1) and report.scripts["cjk"] == (0, 1) and notation.byte_pieces
    assert report.scripts["special"] == (5, 5) and report.scripts["bytes"] == (1, 256)
    assert sum(total for _, total in report.scripts.values()) == report.new_size


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("swap")
    old = metaspace()
    make("xlm-roberta", old).save_pretrained(root / "model")
    old.save_pretrained(root / "model")
    set_seed(0)
    encoder = make("bert", old)
    BertModel(encoder.config).save_pretrained(root / "headless")
    old.save_pretrained(root / "headless")
    metaspace(pieces=("▁the", "▁novel"), first=3).save_pretrained(root / "new")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    wrap(word_piece().backend_tokenizer, BERT, model_input_names=inputs).save_pretrained(root / "types")
    (root / "occupied").mkdir()
    (root / "occupied" / "thesis.txt").write_text("mine")
    (root / "hooks.py").write_text(
        "import torch\nnumber = 3\ndef zeros(old, new, rows):\n"
        "    return torch.zeros(len(new), rows.shape[1]), torch.zeros(len(new)).bool()\n"
    )
    shutil.copytree(root / "new", root / "taken")
    (root / "taken" / "swapping.json").write_text("{}")
    return root


def invoke(line):
    app = typer.Typer()
    swap_vocab.register(app)
    app(line.split(), standalone_mode=False)


def test_the_command_saves_a_model_that_loads(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    invoke(f"model --tokenizer new -o {tmp_path}/out")
    out = capsys.readouterr().out
    assert "copied" in out and "latin" in out and "has no head" not in out
    model, loading = AutoModelForMaskedLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert tokenizer_hash(AutoTokenizer.from_pretrained(tmp_path / "out")) == tokenizer_hash(
        AutoTokenizer.from_pretrained("new")
    )
    assert str(world) not in (tmp_path / "out" / "config.json").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
    invoke(f"model --tokenizer new -o {tmp_path}/out --overwrite --init hooks:zeros")
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "out")
    assert not model.get_input_embeddings().weight.any()


def test_the_command_says_what_it_changed(world, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(world)
    invoke(f"headless --tokenizer types -o {tmp_path}/bert")
    assert "has no head for masked language modelling" in capsys.readouterr().out
    invoke(f"model --tokenizer types -o {tmp_path}/xlm")
    out = capsys.readouterr().out
    assert "makes none" in out, out
    assert "has 38 positions" in out
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "xlm")
    model, _ = ModelSource.find(str(tmp_path / "xlm")).load_masked_lm()
    encoded = tokenizer("the ing", "the", return_tensors="pt", truncation=True)
    assert "token_type_ids" not in encoded and model(**encoded).logits.shape[-1] == len(tokenizer)
    long = tokenizer("the " * 90, return_tensors="pt", truncation=True)
    assert long.input_ids.shape[1] == 38 and model(**long).logits.isfinite().all()


BAD = {
    "missing model": ("./none --tokenizer new -o out", "model directory `./none` is missing"),
    "missing tokenizer": ("model --tokenizer ./none -o out", "tokenizer directory `./none` is missing"),
    "empty tokenizer": ("model --tokenizer occupied -o out", "`occupied`"),
    "unknown init": ("model --tokenizer new --init focus -o out", "overlap or random, or a function as"),
    "hook without module": ("model --tokenizer new --init nowhere:f -o out", "module `nowhere` cannot be imported"),
    "hook without function": ("model --tokenizer new --init hooks:f -o out", "`hooks` has no function `f`"),
    "hook not callable": ("model --tokenizer new --init hooks:number -o out", "has no function `number`"),
    "output there": ("model --tokenizer new -o taken", "Add `--overwrite`"),
    "foreign output": ("model --tokenizer new -o occupied --overwrite", "so it is left alone"),
    "output is a file": ("model --tokenizer new -o hooks.py", "is a file"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_clear_line(name, world, monkeypatch):
    monkeypatch.chdir(world)
    line, message = BAD[name]
    before = sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts)
    with pytest.raises(ConfigError) as caught, as_flags():
        invoke(line)
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path for path in world.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_a_save_cut_short_leaves_everything_as_it_was(error, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("old")
    for name in ("out", "fresh"):
        with pytest.raises(type(error)), replaced_folder(tmp_path / name) as part:
            (part / "config.json").write_text("new")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "config.json").read_text() == "old"

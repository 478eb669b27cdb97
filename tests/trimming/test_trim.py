"""`hf-xlt trim-vocab`: every architecture keeps its function, what is saved loads, and what goes wrong is one line."""

import json
import re
import shutil

import pytest
import torch
import transformers
from records import make_record
from safetensors.torch import load_file
from tiny import write_data
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer
from trimming_setup import KINDS, LOCALES, SIDES, make_model, make_tokenizer, phrases, save, text_files, unigram

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError, RunError
from hf_xlt.hub import push
from hf_xlt.model_cards.checks import check
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.texts import read_texts
from hf_xlt.record import RunRecord
from hf_xlt.trimming import trim as trimming
from hf_xlt.trimming.trim import Options, check_output, trim_vocabulary

T5 = {"d_model": 32, "d_ff": 48, "d_kv": 16, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 1}
ARCHITECTURES = {
    "BertForMaskedLM": {},
    "XLMRobertaForMaskedLM": {"type_vocab_size": 1},
    "RobertaForTokenClassification": {"num_labels": 5},
    "BertForQuestionAnswering": {},
    "ElectraForMaskedLM": {"embedding_size": 16},
    "DebertaV2ForMaskedLM": {
        "relative_attention": True,
        "pos_att_type": ["p2c", "c2p"],
        "position_biased_input": False,
    },
    "ModernBertForMaskedLM": {"cls_token_id": 0, "sep_token_id": 2, "global_attn_every_n_layers": 1},
    "GPT2LMHeadModel": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 72},
    "GPT2ForSequenceClassification": {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 72},
    "LlamaForCausalLM": {"tie_word_embeddings": False},
    "XGLMForCausalLM": {"d_model": 32, "ffn_dim": 48, "num_layers": 1, "attention_heads": 2},
    "T5ForConditionalGeneration": T5,
    "MT5ForConditionalGeneration": {**T5, "tie_word_embeddings": False},
    "MBartForConditionalGeneration": SIDES,
    "BartForSequenceClassification": SIDES,
    "M2M100ForConditionalGeneration": SIDES,
    "MarianMTModel": SIDES,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("trim")
    text_files(root / "text", each=6)
    text_files(root / "other", "languages", each=6)
    save(root / "model", make_model("XLMRobertaForMaskedLM", make_tokenizer("unigram")), make_tokenizer("unigram"))
    return root


def texts(world, name="text"):
    return read_texts([str(world / name / "{lang}.jsonl")])


def inputs(model, ids):
    more = {"decoder_input_ids": torch.tensor([ids])} if model.config.is_encoder_decoder else {}
    return {"input_ids": torch.tensor([ids]), **more}


@torch.no_grad()
def answer(model, ids):
    made = model(**inputs(model, ids))
    return made.logits[0] if "logits" in made else made[0][0]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_says_the_same_on_kept_tokens_and_loads_whole(name, world, tmp_path):
    tokenizer = make_tokenizer("unigram")
    source = ModelSource.find(save(tmp_path / "model", make_model(name, tokenizer, **ARCHITECTURES[name]), tokenizer))
    old = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
    report = trim_vocabulary(source, texts(world), tmp_path / "out", Options(documents=1))
    new, loading = getattr(transformers, name).from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values())
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    rows = [tokenizer.convert_tokens_to_ids(made.convert_ids_to_tokens(index)) for index in range(len(made))]
    assert torch.equal(new.get_input_embeddings().weight, old.get_input_embeddings().weight[rows])
    for locale in LOCALES:
        first, second = (each(phrases(locale, "territories")[3])["input_ids"] for each in (tokenizer, made))
        assert tokenizer.convert_ids_to_tokens(first) == made.convert_ids_to_tokens(second)
        before, after = answer(old, first), answer(new.eval(), second)
        before = before[..., rows] if before.shape[-1] == report.before.rows else before
        assert before.shape == after.shape and torch.allclose(before, after, atol=1e-5)
    assert report.outputs.same == len(LOCALES) and report.outputs.largest < 1e-5 < report.outputs.scale
    assert new.config.vocab_size == len(made) == report.after.rows < report.before.rows == len(tokenizer) + 5
    assert report.after.parameters == new.num_parameters() < old.num_parameters()


def test_tied_weights_stay_one_and_others_two(world, tmp_path):
    for tied in (True, False):
        tokenizer = make_tokenizer("byte-level")
        folder = tmp_path / str(tied)
        old = make_model("LlamaForCausalLM", tokenizer, tie_word_embeddings=tied)
        trim_vocabulary(ModelSource.find(save(folder / "model", old, tokenizer)), texts(world), folder / "out")
        new = transformers.LlamaForCausalLM.from_pretrained(folder / "out")
        assert (new.lm_head.weight is new.model.embed_tokens.weight) == tied
        assert ("lm_head.weight" in load_file(folder / "out" / "model.safetensors")) != tied


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_serves_every_kind_of_tokenizer(kind, world, tmp_path, capsys):
    tokenizer = make_tokenizer(kind)
    save(tmp_path / "model", make_model("BertModel", tokenizer), tokenizer)
    pattern = str(world / "text" / "{lang}.jsonl")
    assert main(["trim-vocab", str(tmp_path / "model"), "--text", pattern, "-o", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    count = len(LOCALES) * 6
    assert f"All {count} texts are cut into the same pieces as before." in out
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    model, loading = AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()) and len(model.get_input_embeddings().weight) == len(made)
    lines = [line for locale in LOCALES for line in phrases(locale, "territories")[:6]]
    both = ([each.convert_ids_to_tokens(ids) for ids in each(lines)["input_ids"]] for each in (tokenizer, made))
    assert next(both) == next(both)
    assert re.search(rf"Embeddings +{len(tokenizer) + 5:,} -> {len(made):,} rows", out)


def test_the_padding_token_moves_and_positions_with_it(world, tmp_path):
    tokens = [*(f"▁fill{number}" for number in range(20)), "<s>", "</s>", "<pad>", "<unk>", *"abcdefghijklmnop▁"]
    pieces = [(token, -float(rank)) for rank, token in enumerate(tokens)]
    tokenizer = unigram([("<unk>", -99.0), *(entry for entry in pieces if entry[0] != "<unk>")])
    tokenizer.add_special_tokens({"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"})
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.jsonl").write_text('{"text": "a bad face"}\n{"text": "deaf cab"}\n')
    given = read_texts([str(tmp_path / "text" / "{lang}.jsonl")])
    for name in ("RobertaForMaskedLM", "M2M100ForConditionalGeneration"):
        old = make_model(name, tokenizer, **(SIDES if "M2M" in name else {}))
        source = ModelSource.find(save(tmp_path / name, old, tokenizer))
        report = trim_vocabulary(source, given, tmp_path / f"{name} out")
        config = transformers.AutoConfig.from_pretrained(tmp_path / f"{name} out")
        # A learned table of positions moves; a reckoned one needs its padding id.
        assert (config.pad_token_id < 10) == ("Roberta" in name) and report.outputs.largest < 1e-5


def test_ids_in_configs_are_renumbered_and_kept(world, tmp_path):
    tokenizer = make_tokenizer("unigram")
    old = make_model("MBartForConditionalGeneration", tokenizer, **SIDES)
    rare = [2500, 2600, 2700, 2800]
    old.generation_config.eos_token_id = [2, rare[0]]
    old.generation_config.forced_bos_token_id = rare[1]
    old.generation_config.suppress_tokens = [rare[2]]
    old.generation_config.bad_words_ids = [[rare[3], 2], [5]]
    old.generation_config.max_length = 40
    trim_vocabulary(ModelSource.find(save(tmp_path / "model", old, tokenizer)), texts(world), tmp_path / "out")
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    new = [made.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(index)) for index in (*rare, 5)]
    settings = transformers.GenerationConfig.from_pretrained(tmp_path / "out")
    assert all(index < len(made) and index != made.unk_token_id for index in new)
    assert settings.eos_token_id == [2, new[0]] and settings.forced_bos_token_id == new[1]
    assert settings.suppress_tokens == [new[2]] and settings.bad_words_ids == [[new[3], 2], [new[4]]]
    assert settings.max_length == 40 and settings.decoder_start_token_id == 2


def test_a_limit_and_other_text_are_reported(world, tmp_path, capsys):
    patterns = ["--text", str(world / "text" / "{lang}.jsonl"), "--check-text", str(world / "other" / "{lang}.jsonl")]
    words = ["trim-vocab", str(world / "model"), *patterns, "--limit", "30", "--keep-characters", "none", "--json"]
    assert main([*words, "--languages", "en,ru", "--output-dir", str(tmp_path / "out")]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["text"]) == set(report["other"]) == {"en", "ru"}
    made, old = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", world / "model"))
    for name, part in (("territories", "text"), ("languages", "other")):
        for code in ("en", "ru"):
            fit, lines = report[part][code], phrases(code, name)[:6]
            before, after = ([t(line, return_offsets_mapping=True) for line in lines] for t in (old, made))
            assert fit["tokens_before"] == sum(len(one["input_ids"]) for one in before)
            assert fit["unknown_after"] == sum(one["input_ids"].count(made.unk_token_id) for one in after)
            assert fit["words"] == sum(len(line.split()) for line in lines)
            changed = 0
            for one, two in zip(before, after, strict=True):
                pairs = [
                    set(zip(t.convert_ids_to_tokens(e["input_ids"]), e["offset_mapping"], strict=True))
                    for t, e in ((old, one), (made, two))
                ]
                changed += sum(
                    pair not in pairs[1]
                    for pair in zip(old.convert_ids_to_tokens(one["input_ids"]), one["offset_mapping"], strict=True)
                )
            assert fit["changed"] == changed > 0 and 0 < fit["fell"] <= changed
    assert report["outputs"]["likeness"] < 1 and report["kept"]["text"] == 30
    card = (tmp_path / "out" / "README.md").read_text()
    assert "30 most frequent tokens" in card and "have become unknown" in card and not check(card)
    assert main([*words[:-1], "--languages", "en,ru", "-o", str(tmp_path / "out"), "--overwrite"]) == 0
    out = capsys.readouterr().out
    assert "--limit leaves them out" in out and "Other text:" in out and "texts cut otherwise" in out


def test_the_card_of_a_plain_model_keeps_licence_and_origin(world, tmp_path):
    shutil.copytree(world / "model", tmp_path / "model")
    (tmp_path / "model" / "README.md").write_text("---\nlicense: mit\n---\n\n# Old model\n\nCite us.\n")
    (tmp_path / "model" / "NOTICE").write_text("From somewhere.")
    report = trim_vocabulary(ModelSource.find(str(tmp_path / "model")), texts(world), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert card.startswith("---\n") and "license: mit" in card and "Cite us." in card and not check(card)
    assert f"{report.before.tokens:,} tokens" in card and "cut into the same pieces as before" in card
    assert (tmp_path / "out" / "NOTICE").read_text() == "From somewhere."
    assert str(tmp_path) not in "".join(path.read_text() for path in (tmp_path / "out").glob("*.json"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("run")
    data = write_data(root / "data")
    from tiny import save_encoder

    save_encoder(root / "encoder")
    words = ["run", "--model", str(root / "encoder"), "--dataset", data, "--max-steps", "3", "--no-floor"]
    words += ["--save-strategy", "no", "--disable-tqdm", "--output-dir", str(root / "out"), "--threads", "1"]
    assert main(words) == 0
    return root


def test_a_run_stays_a_run(run, tmp_path, capsys):
    out = tmp_path / "trimmed"
    words = ["trim-vocab", str(run / "out"), "--text", str(run / "data" / "{split}.{lang}.jsonl"), "--text-split"]
    assert main([*words, "test", "-o", str(out)]) == 0
    before, after = RunRecord.read(run / "out"), RunRecord.read(out)
    assert after.results == before.results and after.strategy == before.strategy and before.trimming is None
    assert after.model["parameters"] < before.model["parameters"]
    assert after.trimming["after"]["tokens"] == len(AutoTokenizer.from_pretrained(out))
    card = (out / "README.md").read_text()
    assert "## Vocabulary" in card and "Scores on this card are those of the model before" in card
    assert "is made for one text" in card.split("## Limits")[1]
    assert "## Vocabulary" not in (run / "out" / "README.md").read_text()
    assert (out / "results.json").read_bytes() == (run / "out" / "results.json").read_bytes()
    capsys.readouterr()
    data = str(run / "data" / "{split}.{lang}.jsonl")
    words = ["evaluate", str(out), "--dataset", data, "--json", "--output-dir", str(tmp_path / "scores")]
    assert main(words) == 0
    scored = json.loads(capsys.readouterr().out)["languages"]
    kept = json.loads((out / "results.json").read_text())["languages"]
    assert {code: entry["metrics"] for code, entry in scored.items()} == {
        code: entry["metrics"] for code, entry in kept.items()
    }
    assert main(["card", str(out), "--check"]) == 0
    report = push(out, "user/trimmed", dry_run=True)
    assert {"trimming.json", "results.json", "xlt_run.json", "model.safetensors"} <= set(report.files)


def test_a_record_without_trimming_is_rendered_as_ever():
    record = make_record()
    assert record.trimming is None and RunRecord.from_dict(record.to_dict()).trimming is None


def test_what_stands_in_the_way_is_one_line(world, run, tmp_path, capsys):
    pattern = str(world / "text" / "{lang}.jsonl")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    base = ["trim-vocab", str(world / "model"), "--text", pattern]
    cases = {
        (*base, "-o", str(world / "model")): "is the model that is read",
        (*base, "-o", str(tmp_path / "mine"), "--overwrite"): "holds no trimmed model",
        # A run is no trimmed model, and may be days of work.
        (*base, "-o", str(run / "out"), "--overwrite"): "holds no trimmed model",
        (*base, "-o", str(tmp_path / "x"), "--limit", "0"): "`--limit` is 0",
        (*base, "-o", str(tmp_path / "x"), "--check-documents", "0"): "`--check-documents` is 0",
        (*base, "-o", str(tmp_path / "x"), "--keep-characters", ""): "`--keep-characters` is empty",
        (*base, "-o", str(tmp_path / "x"), "--languages", "xx"): "language `xx` has no text",
        (*base[:2], "-o", str(tmp_path / "x")): "--text",
        (*base[:1], str(tmp_path / "no"), *base[2:], "-o", str(tmp_path / "x")): "missing",
    }
    for words, said in cases.items():
        assert main(list(words)) == 2, words
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and said in lines[0], lines
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine" and not (tmp_path / "x").exists()


def test_models_without_a_vocabulary_of_their_own_are_refused(world, tmp_path):
    tokenizer = make_tokenizer("unigram")
    save(tmp_path / "few", make_model("BertModel", tokenizer, extra_rows=-9), tokenizer)
    with pytest.raises(ConfigError, match="do not belong together"):
        trim_vocabulary(ModelSource.find(str(tmp_path / "few")), texts(world), tmp_path / "out")
    shutil.copytree(world / "model", tmp_path / "quantized")
    config = json.loads((tmp_path / "quantized" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (tmp_path / "quantized" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="quantized"):
        trim_vocabulary(ModelSource.find(str(tmp_path / "quantized")), texts(world), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_difference_is_an_error_and_nothing_is_written(world, tmp_path, monkeypatch):
    real = trimming.save_model

    def damaged(model, missing, folder):
        model.get_input_embeddings().weight.data[7] += 1
        real(model, missing, folder)

    monkeypatch.setattr(trimming, "save_model", damaged)
    source = ModelSource.find(str(world / "model"))
    with pytest.raises(RunError, match="outputs of the trimmed model differ by up to"):
        trim_vocabulary(source, texts(world), tmp_path / "out")
    monkeypatch.setattr(trimming, "save_model", real)
    chosen = trimming.select
    monkeypatch.setattr(trimming, "select", lambda *words, **options: chosen(*words, **{**options, "limit": 50}))
    with pytest.raises(RunError, match="cut in another way by the trimmed tokenizer"):
        trim_vocabulary(source, texts(world), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_weights_that_the_files_lack_are_not_made_up(world, tmp_path):
    tokenizer = make_tokenizer("wordpiece")
    save(tmp_path / "model", make_model("BertModel", tokenizer), tokenizer)
    weights = load_file(tmp_path / "model" / "model.safetensors")
    from safetensors.torch import save_file

    kept = {name: tensor for name, tensor in weights.items() if "pooler" not in name}
    save_file(kept, tmp_path / "model" / "model.safetensors", {"format": "pt"})
    trim_vocabulary(ModelSource.find(str(tmp_path / "model")), texts(world), tmp_path / "out")
    assert load_file(tmp_path / "out" / "model.safetensors").keys() == kept.keys()


def test_precision_stays(world, tmp_path):
    tokenizer = make_tokenizer("unigram")
    old = make_model("XLMRobertaForMaskedLM", tokenizer).to(torch.bfloat16)
    trim_vocabulary(ModelSource.find(save(tmp_path / "model", old, tokenizer)), texts(world), tmp_path / "out")
    assert {tensor.dtype for tensor in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16


def test_a_trimmed_model_may_be_replaced_and_nothing_else(world, tmp_path):
    check_output(tmp_path / "new", str(world / "model"), overwrite=False)
    trim_vocabulary(ModelSource.find(str(world / "model")), texts(world), tmp_path / "out", Options(documents=1))
    with pytest.raises(ConfigError, match="`overwrite`"):
        check_output(tmp_path / "out", str(world / "model"), overwrite=False)
    check_output(tmp_path / "out", str(world / "model"), overwrite=True)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match=r"notes\.txt"):
        check_output(tmp_path / "out", str(world / "model"), overwrite=True)

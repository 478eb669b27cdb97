"""Vocabularies of every architecture: tensors that count tokens wherever they are, padding ids, language codes."""

import copy
import json

import pytest
import torch
import transformers
from architectures import make_config
from transformers import AutoTokenizer, set_seed
from transformers.models.auto import modeling_auto
from trimming_setup import SIDES, SMALL, make_model, make_tokenizer, phrases, save, text_files

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.modelling.token_tensors import fixed_padding, renumber_settings, vocabulary_tensors
from hf_xlt.models import ModelSource
from hf_xlt.pretraining.texts import read_texts
from hf_xlt.pretraining.vocabulary import swap_vocabulary
from hf_xlt.trimming.trim import Options, trim_vocabulary

MASKED = modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES
CAUSAL = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
BOTH = modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
# Those whose sizes the tests' rule for tiny configs does not reach, and those that read no text alone.
LEFT_OUT = (
    *"funnel modernvbert neomme reformer luke perceiver ultravbert encoder-decoder fsmt t5gemma t5gemma2".split(),
    *"axk1 bailing_hybrid codegen cpmant fuyu longcat_flash mimo_v2_flash youtu".split(),
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return read_texts([text_files(tmp_path_factory.mktemp("text"), each=5, locales=("en", "ru", "th"))])


def build(kind, name, tokenizer, **changes):
    """A tiny model with random weights; skips what the rule for tiny configs does not reach."""
    cls = getattr(transformers, name)
    sizes = {"vocab_size": len(tokenizer) + 5, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, **changes}
    try:
        with torch.device("meta"):
            count = sum(parameter.numel() for parameter in cls(make_config(kind, **sizes)).parameters())
        if count > 2e7:
            pytest.skip(f"`{kind}` is not small")
        set_seed(0)
        model = cls(make_config(kind, **sizes)).eval()
    except pytest.skip.Exception:
        raise
    except Exception as error:
        pytest.skip(f"no tiny `{kind}` is made: {error}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.1)
    return model


def check_trimmed(model, texts, folder):
    tokenizer = make_tokenizer("unigram")
    report = trim_vocabulary(ModelSource.find(save(folder / "model", model, tokenizer)), texts, folder / "out")
    assert report.outputs.same == report.outputs.documents > 0 and report.outputs.scale > 0
    assert report.outputs.largest <= 1e-5 and report.after.rows == report.after.tokens < 200
    loaded, loading = type(model).from_pretrained(folder / "out", output_loading_info=True)
    assert not any(loading.values())
    # No tensor of the old size is left.
    assert not any(report.before.rows in tensor.shape for tensor in loaded.state_dict().values())
    return loaded


def check_swapped(model):
    old, new = make_tokenizer("unigram"), make_tokenizer("merges")
    before = copy.deepcopy(model)
    report = swap_vocabulary(model, old, new)
    assert 0 < report.copied < report.new_size == len(model.get_input_embeddings().weight) == len(new)
    shared = [piece for piece in old.get_vocab() if piece in new.get_vocab() and piece != old.pad_token]
    text = ["<s>", *shared[-6:], "</s>"]
    one, two = (tokenizer.convert_tokens_to_ids(text) for tokenizer in (old, new))
    with torch.no_grad():
        first, second = (made(input_ids=torch.tensor([ids]))[0][0] for made, ids in ((before, one), (model, two)))
    assert torch.allclose(first[:, one], second[:, two], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in MASKED if kind not in LEFT_OUT])
def test_every_masked_language_model_is_trimmed_and_takes_another_tokenizer(kind, texts, tmp_path):
    check_trimmed(build(kind, MASKED[kind], make_tokenizer("unigram")), texts, tmp_path)
    check_swapped(build(kind, MASKED[kind], make_tokenizer("unigram")))


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in (CAUSAL | BOTH) if kind not in LEFT_OUT])
def test_every_decoder_is_trimmed(kind, texts, tmp_path):
    if any(
        word in kind for word in ("audio", "speech", "voxtral", "seamless", "asr", "music", "vision", "_vl", "mos")
    ):
        pytest.skip(f"`{kind}` reads no text alone")
    check_trimmed(build(kind, {**CAUSAL, **BOTH}[kind], make_tokenizer("unigram")), texts, tmp_path)


# One of each way to hold tensors of the vocabulary's size besides embeddings: row biases, columns, integers, indices.
@pytest.mark.parametrize("kind", ["bart", "xlm", "ibert", "mobilebert", "rembert", "nystromformer", "mpnet"])
def test_another_tokenizer_reaches_all_tensors_of_the_tokens(kind, texts, tmp_path):
    own = {"hidden_size": 48, "embedding_size": 32} if kind == "mobilebert" else {}
    own |= {"use_bottleneck": False, "true_hidden_size": 48} if kind == "mobilebert" else {}
    own |= {"output_embedding_size": 40} if kind == "rembert" else {}
    model = build(kind, MASKED[kind], make_tokenizer("unigram"), **own)
    places = vocabulary_tensors(model)
    assert len(places) > 1 and all(len(dimensions) == 1 for dimensions in places.values())
    check_swapped(model)
    check_trimmed(build(kind, MASKED[kind], make_tokenizer("unigram"), **own), texts, tmp_path)


@pytest.mark.parametrize("named", [0, 1, 5])
def test_a_padding_id_that_the_code_fixes_is_the_one_that_counts(named, texts, tmp_path):
    tokenizer = make_tokenizer("unigram")
    model = make_model("MPNetForMaskedLM", tokenizer, pad_token_id=named)
    assert fixed_padding(model) == 1
    check_trimmed(model, texts, tmp_path)
    check_swapped(make_model("MPNetForMaskedLM", tokenizer, pad_token_id=named))
    other = make_tokenizer("wordpiece")
    model = make_model("MPNetForMaskedLM", tokenizer, pad_token_id=named)
    before = copy.deepcopy(model.state_dict())
    assert other.pad_token_id == 0
    with pytest.raises(ConfigError, match="from padding id 1, whatever its config names, and the new"):
        swap_vocabulary(model, tokenizer, other, "random")
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert fixed_padding(make_model("RobertaForMaskedLM", tokenizer)) is None
    assert fixed_padding(make_model("BertModel", tokenizer)) is None


def test_a_model_without_rows_for_tokens_ends_in_one_line(tmp_path, capsys):
    tokenizer = make_tokenizer("unigram")
    config = transformers.PerceiverConfig(
        **{"num_latents": 8, "d_latents": 32, "d_model": 32, "num_blocks": 1, "num_self_attends_per_block": 1},
        **{"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "max_position_embeddings": 64},
        vocab_size=len(tokenizer),
    )
    model = str(tmp_path / "model")
    save(tmp_path / "model", transformers.PerceiverForMaskedLM(config), tokenizer)
    make_tokenizer("merges").save_pretrained(tmp_path / "new")
    text = text_files(tmp_path / "text", each=3)
    for words in (["trim-vocab", model, "--text", text], ["swap-vocab", model, "--tokenizer", str(tmp_path / "new")]):
        capsys.readouterr()
        assert main([*words, "-o", str(tmp_path / "out")]) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert len(lines) == 1 and "has no table of embeddings with a row for each token" in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_model_that_cannot_read_the_text_ends_in_one_line(texts, tmp_path, monkeypatch):
    model = make_model("BertModel", make_tokenizer("unigram"))
    source = ModelSource.find(save(tmp_path / "model", model, make_tokenizer("unigram")))

    def broken(self, input_ids=None, **_):
        raise RuntimeError("a shape\nis wrong.")

    monkeypatch.setattr(transformers.BertModel, "forward", broken)
    with pytest.raises(ConfigError, match=r"it fails on the text \(RuntimeError: a shape is wrong\)"):
        trim_vocabulary(source, texts, tmp_path / "out")


GEMMA = {
    **{"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16},
    **{"intermediate_size": 48, "layer_types": ["sliding_attention", "full_attention"]},
    **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
}


def test_embeddings_of_each_layer_are_cut_too_or_refused(texts, tmp_path):
    rows = len(make_tokenizer("unigram")) + 5
    own = {"hidden_size_per_layer_input": 8, "laurel_rank": 8, "altup_num_inputs": 2, "num_kv_shared_layers": 0}
    for size in (rows, rows - 40):
        config = transformers.Gemma3nTextConfig(
            **GEMMA, **own, vocab_size=rows, vocab_size_per_layer_input=size, activation_sparsity_pattern=[0.0, 0.0]
        )
        set_seed(0)
        model = transformers.Gemma3nForCausalLM(config).eval()
        assert len(model.model.embed_tokens_per_layer.weight) == size
        if size == rows:
            loaded = check_trimmed(model, texts, tmp_path / "same")
            assert len(loaded.model.embed_tokens_per_layer.weight) == loaded.config.vocab_size_per_layer_input < 200
        else:
            source = ModelSource.find(save(tmp_path / "model", model, make_tokenizer("unigram")))
            with pytest.raises(ConfigError, match=f"in each layer some for {size:,} tokens"):
                trim_vocabulary(source, texts, tmp_path / "out")


def test_configs_inside_configs_name_the_vocabulary(texts, tmp_path):
    rows = len(make_tokenizer("unigram")) + 5
    vision = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
    config = transformers.Gemma3Config(
        text_config={**GEMMA, "vocab_size": rows},
        vision_config={**vision, "image_size": 28, "patch_size": 14},
        mm_tokens_per_image=4,
        image_token_index=2900,
        boi_token_index=2901,
        eoi_token_index=2902,
    )
    set_seed(0)
    loaded = check_trimmed(transformers.Gemma3ForConditionalGeneration(config).eval(), texts, tmp_path / "nested")
    made = AutoTokenizer.from_pretrained(tmp_path / "nested" / "out")
    assert loaded.config.text_config.vocab_size == len(made)
    old = make_tokenizer("unigram")
    for name, index in (("image_token_id", 2900), ("boi_token_index", 2901), ("eoi_token_index", 2902)):
        assert made.convert_ids_to_tokens(getattr(loaded.config, name)) == old.convert_ids_to_tokens(index)
    side = {**SMALL, "vocab_size": rows, "pad_token_id": 1}
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**side), transformers.BertConfig(**side), decoder_start_token_id=0, pad_token_id=1
    )
    set_seed(0)
    loaded = check_trimmed(transformers.EncoderDecoderModel(config).eval(), texts, tmp_path / "both")
    assert loaded.config.encoder.vocab_size == loaded.config.decoder.vocab_size < 200


def test_every_setting_that_names_tokens_follows(texts, tmp_path):
    tokenizer, rare = make_tokenizer("unigram"), list(range(2500, 2512))
    model = make_model("BartForConditionalGeneration", tokenizer, **SIDES, forced_eos_token_id=2)
    settings = model.generation_config
    settings._from_model_config = False
    settings.begin_suppress_tokens, settings.suppress_tokens = rare[:2], [rare[2]]
    settings.bad_words_ids, settings.forced_bos_token_id = [[rare[3], rare[4]], [2]], rare[5]
    settings.eos_token_id, settings.decoder_start_token_id = [2, rare[6]], rare[7]
    settings.lang_to_id, settings.forced_decoder_ids = {"<|ru|>": rare[8]}, [[1, rare[9]]]
    settings.sequence_bias = [[[rare[10], 2], -5.0]]
    settings.max_length, settings.num_beams = 2500, 3
    save(tmp_path / "model", model, tokenizer)
    path = tmp_path / "model" / "generation_config.json"
    kept = {name: getattr(settings, name) for name in ("lang_to_id", "forced_decoder_ids")}
    path.write_text(json.dumps({**json.loads(path.read_text()), **kept}))
    trim_vocabulary(ModelSource.find(str(tmp_path / "model")), texts, tmp_path / "out", Options(documents=1))
    made = AutoTokenizer.from_pretrained(tmp_path / "out")
    new = [made.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(index)) for index in rare]
    assert [index for index in range(12) if new[index] == made.unk_token_id] == [11]
    assert new[11] == made.unk_token_id
    found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert found["begin_suppress_tokens"] == new[:2] and found["suppress_tokens"] == [new[2]]
    assert found["bad_words_ids"] == [[new[3], new[4]], [2]] and found["forced_bos_token_id"] == new[5]
    assert found["eos_token_id"] == [2, new[6]] and found["decoder_start_token_id"] == new[7]
    assert found["lang_to_id"] == {"<|ru|>": new[8]} and found["forced_decoder_ids"] == [[1, new[9]]]
    assert found["sequence_bias"] == [[[new[10], 2], -5.0]] and (found["max_length"], found["num_beams"]) == (2500, 3)


def test_a_token_that_is_gone_is_named_by_no_setting():
    settings = transformers.GenerationConfig(eos_token_id=[2, 9], suppress_tokens=[8], forced_bos_token_id=9)
    renumber_settings([settings], {2: 3}.get)
    assert settings.eos_token_id == [3] and settings.suppress_tokens == [] and settings.forced_bos_token_id is None


def _scored():
    special = ("<s>", "<pad>", "</s>", "<unk>")
    model = json.loads(make_tokenizer("unigram").backend_tokenizer.to_str())["model"]
    return [(token, 0.0) for token in special] + [
        tuple(entry) for entry in model["vocab"] if entry[0] not in (*special, "<mask>")
    ]


def _merged(cls, **languages):
    model = json.loads(make_tokenizer("merges").backend_tokenizer.to_str())["model"]
    return cls(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], **languages)


CODES = {
    "MBartTokenizer": (lambda cls: cls(vocab=_scored(), src_lang="en_XX"), "MBartForConditionalGeneration", "ru_RU"),
    "MBart50Tokenizer": (lambda cls: cls(vocab=_scored(), src_lang="en_XX"), "MBartForConditionalGeneration", "ru_RU"),
    "NllbTokenizer": (lambda cls: _merged(cls, src_lang="eng_Latn"), "M2M100ForConditionalGeneration", "rus_Cyrl"),
}


@pytest.mark.parametrize("name", CODES)
def test_codes_of_languages_stay(name, texts, tmp_path):
    make, architecture, code = CODES[name]
    tokenizer = make(getattr(transformers, name))
    model = make_model(architecture, tokenizer, **SIDES)
    model.generation_config.forced_bos_token_id = tokenizer.convert_tokens_to_ids(code)
    source = ModelSource.find(save(tmp_path / "model", model, tokenizer))
    report = trim_vocabulary(source, texts, tmp_path / "out", Options(documents=1))
    old, new = (AutoTokenizer.from_pretrained(tmp_path / folder) for folder in ("model", "out"))
    assert type(new) is type(old) and report.after.tokens < report.before.tokens
    line = phrases("ru", "territories")[0]
    for language in (None, code):
        both = []
        for each in (old, new):
            if language:
                each.src_lang = each.tgt_lang = language
            encoded = each(line, text_target=line)
            both.append([each.convert_ids_to_tokens(encoded[part]) for part in ("input_ids", "labels")])
        assert both[0] == both[1] and new.unk_token not in both[1][0]
        assert (code in both[1][0]) == (language == code)
    forced = transformers.GenerationConfig.from_pretrained(tmp_path / "out").forced_bos_token_id
    assert new.convert_ids_to_tokens(forced) == code

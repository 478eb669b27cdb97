"""Tokenizer and model are made to fit, or refused, before anything is written; a config keeps no old habits."""

import json
import shutil

import pytest
import torch
from architectures import make_config, save_model
from safetensors.torch import load_file
from tiny import CLASSES, make_model, make_tokenizer, save_encoder, write_data
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ByT5Tokenizer,
    CanineConfig,
    CanineModel,
    CanineTokenizer,
    PerceiverConfig,
    PerceiverForMaskedLM,
    PerceiverTokenizer,
    T5Config,
    T5Model,
    pipeline,
    set_seed,
)

from hf_xlt.averaging.average import average_checkpoints
from hf_xlt.averaging.heads import head_names, head_parameters, load_shared_head
from hf_xlt.cli.main import main
from hf_xlt.data.labels import LabelInventory
from hf_xlt.modelling.classes import describe_head
from hf_xlt.modelling.limits import find_limits
from hf_xlt.models import ModelSource
from hf_xlt.record import RunRecord
from hf_xlt.tasks import get_task

FAST = "--max-steps 2 --use-cpu --per-device-train-batch-size 8"


@pytest.fixture(scope="module")
def pattern(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"), languages=("en", "de"), train=12)


@pytest.fixture
def go(pattern, tmp_path, capsys):
    """Run on a model; return exit code, output directory, stdout, stderr."""

    def run(model, line=""):
        argv = f"run --model {model} --dataset {pattern} {FAST} --output-dir {tmp_path / 'out'} {line}"
        code = main(argv.split())
        captured = capsys.readouterr()
        return code, tmp_path / "out", captured.out, captured.err

    return run


def edit(path, **changes):
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, **changes}))


# ---- Positions


@pytest.mark.parametrize(
    ("kind", "free"),
    [
        ("bert", 0),
        ("xlm-roberta", 1),
        ("xlm-roberta-xl", 1),
        ("xmod", 1),
        ("mpnet", 2),
        ("roberta-prelayernorm", 1),
        ("camembert", 1),
        ("longformer", 1),
        ("bart", 0),
        ("opt", 0),
        ("gpt2", 0),
        ("xlm", 0),
        ("ctrl", 0),
        ("llama", 0),
    ],
)
def test_the_places_a_table_leaves_free_are_taken_off(kind, free):
    config = make_config(kind, **({"n_positions": 64} if kind == "gpt2" else {}))
    assert find_limits(config).positions == 64 - free


@pytest.mark.parametrize("kind", ["xmod", "mpnet", "roberta-prelayernorm", "xlm-roberta-xl"])
def test_texts_longer_than_the_table_are_cut_with_a_note(kind, go, tmp_path):
    folder = save_model(kind, tmp_path / "model", max_position_embeddings=8)
    edit(folder / "tokenizer_config.json", model_max_length=10**30)
    code, out, text, _ = go(folder, "--max-length 100")
    assert code == 0
    used = RunRecord.read(out).arguments["max_length"]
    assert used in (6, 7) and f"no more than {used} tokens" in text
    assert f"| `max_length` | {used} |" in (out / "README.md").read_text()


def test_a_length_that_the_tokenizer_forbids_is_told_and_resuming_takes_it(go, tmp_path):
    folder = save_encoder(tmp_path / "model")
    code, _, text, _ = go(folder, "--max-length 100 --dry-run")
    assert code == 0 and "tokenizer announces no more than 32 tokens" in text
    code, out, _, _ = go(folder, "--max-length 100")
    assert code == 0 and RunRecord.read(out).arguments["max_length"] == 32
    assert go(folder, "--max-length 100 --resume")[0] == 0


# ---- Tokens


def save_larger(folder):
    save_encoder(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["great", "lovely"])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_a_tokenizer_with_tokens_that_have_no_embedding_is_refused(dry, go, tmp_path):
    code, out, _, err = go(save_larger(tmp_path / "model"), dry)
    assert code == 2 and "`great`" in err and "`--resize-embeddings`" in err and not out.exists()


def test_embeddings_grow_on_request(go, tmp_path):
    code, out, text, _ = go(save_larger(tmp_path / "model"), "--resize-embeddings")
    assert code == 0 and "have no embedding" in text
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert len(model.get_input_embeddings().weight) == len(AutoTokenizer.from_pretrained(out)) == 67
    assert main(["evaluate", str(out), "--dataset", str(write_data(tmp_path / "d", languages=("en", "de")))]) == 0


def save_decoder(folder, **changes):
    save_model("llama", folder, **changes)
    edit(folder / "tokenizer_config.json", pad_token=None)
    return folder


@pytest.mark.parametrize("dry", ["", "--dry-run"])
def test_a_model_without_a_padding_token_gets_one(dry, go, tmp_path):
    code, out, text, _ = go(save_decoder(tmp_path / "model"), dry)
    assert code == 0 and "has no padding token; `[SEP]` serves as one" in text
    if not dry:
        assert AutoTokenizer.from_pretrained(out).pad_token == "[SEP]"
        assert json.loads((out / "config.json").read_text())["pad_token_id"] == 3
        scores = pipeline("text-classification", str(out), device="cpu")(["w1 w2", "w1 w2 w3 w4"], batch_size=2)
        assert {entry["label"] for entry in scores} <= set(CLASSES)


@pytest.mark.parametrize(
    ("kind", "changes", "told"),
    [
        ("big_bird", {"attention_type": "block_sparse"}, "not equal to one in one go"),
        ("big_bird", {}, None),
        ("reformer", {}, "neither be repeated nor resumed"),
    ],
)
def test_what_cannot_be_repeated_bit_by_bit_is_told(kind, changes, told, go, tmp_path):
    code, _, text, _ = go(save_model(kind, tmp_path / "model", **changes))
    assert code == 0 and ("bit by bit" in text) == (told is not None) and (told or "") in text


def test_a_model_with_nothing_to_pad_with_is_refused_before_the_output_is_claimed(go, tmp_path):
    folder = save_decoder(tmp_path / "model")
    edit(folder / "tokenizer_config.json", eos_token=None, unk_token=None)
    code, out, _, err = go(folder)
    assert code == 2 and "no padding token" in err and not out.exists()


def test_evaluate_takes_the_tokenizers_padding_where_the_config_names_none(go, tmp_path, pattern, capsys):
    _, out, _, _ = go(save_model("llama", tmp_path / "model"))
    assert main(["evaluate", str(out), "--dataset", pattern, "--output-dir", str(tmp_path / "one"), "--json"]) == 0
    edit(out / "config.json", pad_token_id=None)
    assert main(["evaluate", str(out), "--dataset", pattern, "--output-dir", str(tmp_path / "two"), "--json"]) == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["languages"] for name in ("one", "two"))
    assert one == two


# ---- Slow tokenizers


def save_slow(kind, folder):
    set_seed(0)
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    if kind == "canine":
        CanineModel(CanineConfig(**small, num_hash_buckets=32)).save_pretrained(folder)
        CanineTokenizer().save_pretrained(folder)
    elif kind == "byt5":
        config = T5Config(vocab_size=384, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
        config.decoder_start_token_id = 0
        T5Model(config).save_pretrained(folder)
        ByT5Tokenizer().save_pretrained(folder)
    else:
        sizes = {"num_latents": 8, "d_latents": 32, "d_model": 32, "num_self_attends_per_block": 1}
        heads = {"num_self_attention_heads": 2, "num_cross_attention_heads": 2, "qk_channels": 16, "v_channels": 32}
        config = PerceiverConfig(**sizes, **heads, max_position_embeddings=64)
        PerceiverForMaskedLM(config).save_pretrained(folder)
        PerceiverTokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["canine", "byt5", "perceiver"])
def test_slow_tokenizers_classify(kind, go, tmp_path):
    folder = save_slow(kind, tmp_path / "model")
    code, out, _, err = go(folder)
    assert (code, err if code else "") == (0, "")
    assert not AutoTokenizer.from_pretrained(out).is_fast


def test_slow_tokenizers_are_refused_where_tokens_have_to_be_placed(go, tmp_path):
    folder = save_slow("canine", tmp_path / "model")
    (tmp_path / "t").mkdir()
    row = json.dumps({"tokens": ["w1"], "tags": ["A"]}) + "\n" + json.dumps({"tokens": ["w2"], "tags": ["B"]}) + "\n"
    for name in ("train.en", "validation.en", "test.en", "test.de"):
        (tmp_path / "t" / f"{name}.jsonl").write_text(row.replace("w", name))
    line = f"--task token-classification --dataset {tmp_path / 't'}/{{split}}.{{lang}}.jsonl"
    code, out, _, err = go(folder, line)
    assert code == 2 and "no fast tokenizer" in err and not out.exists()


# ---- What the base model was for


@pytest.mark.parametrize("problem", ["multi_label_classification", "regression"])
@pytest.mark.parametrize("how", ["", "--average --average-every 1", "--peft lora"])
def test_what_the_base_was_for_does_not_stay(problem, how, go, tmp_path, pattern):
    folder = save_encoder(tmp_path / "model")
    habits = {"problem_type": problem, "finetuning_task": "sst2", "task_specific_params": {"x": {"max_length": 3}}}
    habits |= {"output_hidden_states": True, "return_dict": False, "num_beams": 4}
    labels = {"id2label": {"0": "x"}, "label2id": {"x": 0}} if problem == "regression" else {}
    edit(folder / "config.json", **habits, **labels)
    code, out, _, err = go(folder, how)
    assert (code, err if code else "") == (0, "")
    for place in [out, *([out / "last"] if "--average" in how else [])]:
        config = json.loads((place / "config.json").read_text())
        assert config["problem_type"] == "single_label_classification"
        assert not {"finetuning_task", "task_specific_params", "num_beams"} & {k for k, v in config.items() if v}
        assert not config.get("output_hidden_states")
    scores = pipeline("text-classification", str(out), top_k=None, device="cpu")("w1 w2")
    scores = scores[0] if isinstance(scores[0], list) else scores
    assert sum(entry["score"] for entry in scores) == pytest.approx(1)
    assert main(["evaluate", str(out), "--dataset", pattern]) == 0


@pytest.mark.parametrize("kind", ["xlm-roberta", "bert", "distilbert", "gpt2", "bart"])
def test_a_trained_head_is_brought_into_the_order_of_the_runs_classes(kind, tmp_path):
    config = make_config(kind, id2label={0: "Good", 1: "plain", 2: "bad"}, label2id={"Good": 0, "plain": 1, "bad": 2})
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model.save_pretrained(tmp_path / "model")
    wanted = LabelInventory(("bad", "Good", "plain"))
    source = ModelSource.find(str(tmp_path / "model"))
    loaded = source.load(get_task("text-classification"), wanted).eval()
    assert loaded.config.id2label == wanted.id2label
    ids = torch.tensor([[5, 6, 7, 8, 3]])
    with torch.no_grad():
        assert torch.allclose(loaded(ids).logits, model(ids).logits[:, [2, 0, 1]], atol=1e-6)
    assert "in another order (Good, plain, bad)" in describe_head(source.load_config(), wanted)[0]


@pytest.mark.parametrize("line", ["", "--dry-run"])
def test_a_run_says_what_becomes_of_a_trained_head(line, go, tmp_path):
    turned = tuple(reversed(CLASSES))
    labels = {"id2label": dict(enumerate(turned)), "label2id": {name: index for index, name in enumerate(turned)}}
    make_model(0, **labels).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    code, _, text, _ = go(tmp_path / "model", line)
    assert code == 0 and text.count("in another order") == 1 and f"({', '.join(turned)})" in text


def test_a_head_for_other_classes_is_told_and_one_of_the_same_is_left(tmp_path):
    config = make_config("xlm-roberta", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    config.architectures = ["XLMRobertaForSequenceClassification"]
    assert describe_head(config, LabelInventory(("a", "b"))) == []
    assert describe_head(config, LabelInventory(("a", "b", "c"))) == []
    assert "as many other classes (a, b)" in describe_head(config, LabelInventory(("x", "y")))[0]
    config.architectures = ["XLMRobertaForMaskedLM"]
    assert describe_head(config, LabelInventory(("x", "y"))) == []


def test_an_average_on_disk_says_what_its_run_was_for(go, tmp_path):
    _, out, _, _ = go(save_encoder(tmp_path / "model"), "--save-steps 1")
    checkpoints = [out / "checkpoint-1", out / "checkpoint-2"]
    for checkpoint in checkpoints:
        edit(checkpoint / "config.json", problem_type="multi_label_classification")
    average_checkpoints(checkpoints, tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["problem_type"] == "single_label_classification"


def test_an_average_of_adapters_says_what_they_were_trained_for(go, tmp_path):
    folder = save_encoder(tmp_path / "model")
    edit(folder / "config.json", problem_type="regression")
    _, out, _, _ = go(folder, "--peft lora")
    shutil.copytree(out, tmp_path / "other")
    adapters = [tmp_path / "other" / "adapter", out / "adapter"]
    average_checkpoints(adapters, tmp_path / "mean", lora_mode="merge", base=str(folder))
    assert json.loads((tmp_path / "mean" / "config.json").read_text())["problem_type"] == "single_label_classification"


# ---- Names of weights


@pytest.mark.parametrize("kind", ["qwen2", "llama", "smollm3", "mistral"])
def test_a_causal_models_encoder_is_loaded_under_the_head_for_answers(kind, tmp_path):
    from transformers import AutoModelForCausalLM

    set_seed(0)
    causal = AutoModelForCausalLM.from_config(make_config(kind))
    causal.save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    model = ModelSource(str(tmp_path / "model"), None).load(get_task("question-answering"), None)
    held = model.base_model.state_dict()
    assert all(torch.equal(held[name], value) for name, value in causal.model.state_dict().items())
    model.save_pretrained(tmp_path / "out")
    prefixes = (f"{model.base_model_prefix}.", "qa_outputs.")
    assert all(name.startswith(prefixes) for name in load_file(tmp_path / "out" / "model.safetensors"))
    again, report = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(again.state_dict()[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", ["gte", "nomic_bert", "jina_embeddings_v3", "qwen3_moe", "gemma3_text", "bert"])
def test_a_head_is_found_and_shared_whatever_files_call_the_encoder(kind, tmp_path):
    source = ModelSource(str(save_model(kind, tmp_path / "model")), None, pad_token_id=0)
    inventory = LabelInventory(CLASSES)
    donor = source.load(get_task("text-classification"), inventory)
    donor.save_pretrained(tmp_path / "donor")
    names = load_file(tmp_path / "donor" / "model.safetensors")
    assert len(head_names(tmp_path / "donor", names)) == len(head_parameters(donor)) > 0
    set_seed(1)
    other = source.load(get_task("text-classification"), inventory)
    load_shared_head(other, tmp_path / "donor")
    assert all(torch.equal(head_parameters(other)[name], value) for name, value in head_parameters(donor).items())

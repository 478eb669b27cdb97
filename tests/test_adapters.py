"""Adapters on the architectures we name, what is saved of them, and a run with them from start to end."""

import dataclasses
import json

import pytest
import torch
from contexts import LORA, make_context
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from safetensors.torch import load_file
from tiny import make_features, make_model, make_tokenizer, same_weights, save_encoder, write_data
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    BertConfig,
    CTRLConfig,
    DebertaV2Config,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    ReformerConfig,
    T5Config,
    XLMRobertaConfig,
    Zamba2Config,
)

from hf_xlt import evaluation
from hf_xlt.adapters import ADAPTER_NAME, describe, head_modules, merged, merged_size, wrap
from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.modelling.saving import save_final
from hf_xlt.models import is_adapted
from hf_xlt.output import check_space
from hf_xlt.peft_arguments import PeftArguments
from hf_xlt.record import RunRecord
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.strategies.finetune import FinetuneTrainer
from hf_xlt.tasks import get_task
from hf_xlt.training.phases import RunPhase, run_phases, single_phase

TASK = get_task("text-classification")
SHAPE = {
    "vocab_size": 70,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
    "num_labels": 3,
    "initializer_range": 0.2,
}
SMALL = {"vocab_size": 70, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "max_position_embeddings": 40}
RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8, "share_att_key": True}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}

# Config, modules that are adapted by default, head.
FAMILIES = {
    "bert": (BertConfig(**SHAPE), ["query", "value"], ["classifier", "pooler"]),
    "xlm-roberta": (XLMRobertaConfig(**SHAPE), ["query", "value"], ["classifier"]),
    "distilbert": (
        DistilBertConfig(**SMALL, num_labels=3, initializer_range=0.2),
        ["k_lin", "lin1", "lin2", "out_lin", "q_lin", "v_lin"],
        ["classifier", "pre_classifier"],
    ),
    "deberta-v2": (DebertaV2Config(**SHAPE, **RELATIVE), ["query_proj", "value_proj"], ["classifier", "pooler"]),
    "modernbert": (ModernBertConfig(**SHAPE, **IDS), ["Wi", "Wo", "Wqkv"], ["classifier", "head"]),
}
every_family = pytest.mark.parametrize("family", FAMILIES)


def build(family, seed=0):
    torch.manual_seed(seed)
    return AutoModelForSequenceClassification.from_config(FAMILIES[family][0])


def batch(labels=False):
    keys = ("input_ids", "attention_mask", "labels") if labels else ("input_ids", "attention_mask")
    rows = [{key: row[key] for key in keys} for row in make_features(5)]
    return make_tokenizer().pad(rows, return_tensors="pt")


def adapted_model(family="bert", settings=LORA, seed=0):
    """A model whose adapters are trained a little: a new adapter changes nothing."""
    model = wrap(build(family), settings, TASK, seed)
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.5)
    for _ in range(3):
        model(**batch(labels=True)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


@every_family
def test_adapters_and_head_get_gradients_and_nothing_else(family):
    model = wrap(build(family), LORA, TASK, 0)
    model(**batch(labels=True)).loss.backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert with_gradient == {name for name, weight in model.named_parameters() if weight.requires_grad}
    _, targets, head = FAMILIES[family]
    adapters = {name for name in with_gradient if ".lora_" in name}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in adapters} == set(targets)
    heads = {name.split(".modules_to_save.")[0].rpartition(".")[2] for name in with_gradient - adapters}
    assert heads == set(head) == set(head_modules(build(family)))
    assert describe(model)["target_modules"] == targets and describe(model)["modules_to_save"] == head


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@every_family
def test_the_merged_model_loads_plainly_and_the_adapter_on_its_base(family, tmp_path):
    build(family).save_pretrained(tmp_path / "base")
    model = adapted_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    save_final(merged(model), make_tokenizer(), tmp_path, {ADAPTER_NAME: model})
    assert same_weights(before, model.state_dict())
    assert {path.name for path in (tmp_path / ADAPTER_NAME).iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }

    plain, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    with torch.no_grad():
        untrained = base.eval()(**batch()).logits
        unmerged = model(**batch()).logits
        with_adapter = PeftModel.from_pretrained(base, tmp_path / ADAPTER_NAME).eval()(**batch()).logits
        saved = plain.eval()(**batch()).logits
    assert not torch.allclose(untrained, unmerged, atol=1e-2)
    torch.testing.assert_close(saved, unmerged, rtol=0, atol=1e-5)
    torch.testing.assert_close(with_adapter, unmerged, rtol=0, atol=1e-6)


@every_family
def test_sizes_are_those_of_the_merged_model_and_of_what_is_trained(family):
    model = wrap(build(family), LORA, TASK, 0)
    assert merged_size(model) == sum(weight.numel() for weight in merged(model).parameters())
    assert describe(model)["trainable_parameters"] == model.get_nb_trainable_parameters()[0]


GPT2 = {"vocab_size": 70, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40, "num_labels": 3}
T5 = {"vocab_size": 70, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2, "num_labels": 3}
REFORMER = {
    "vocab_size": 70,
    "hidden_size": 16,
    "attention_head_size": 8,
    "num_attention_heads": 2,
    "feed_forward_size": 16,
    "attn_layers": ["local"] * 2,
    "axial_pos_embds": False,
    "max_position_embeddings": 40,
    "local_attn_chunk_length": 4,
    "num_labels": 3,
}
ZAMBA2 = {
    "vocab_size": 70,
    "hidden_size": 16,
    "num_hidden_layers": 4,
    "layers_block_type": ["mamba", "hybrid"] * 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "mamba_d_state": 4,
    "mamba_headdim": 8,
    "n_mamba_heads": 4,
    "mamba_ngroups": 1,
    "num_mem_blocks": 1,
    "use_shared_attention_adapter": True,
    "chunk_size": 4,
    "num_labels": 3,
}
IDS_OF_A_DECODER = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
OTHER_LAYOUTS = {
    "gpt2": (GPT2Config, GPT2),
    "ctrl": (CTRLConfig, {**GPT2, "dff": 16}),
    "reformer": (ReformerConfig, REFORMER),
    "zamba2": (Zamba2Config, ZAMBA2),
    "t5": (T5Config, {**T5, "decoder_start_token_id": 0}),
}


def other_layout(name, auto=AutoModelForSequenceClassification):
    torch.manual_seed(0)
    config, settings = OTHER_LAYOUTS[name]
    return auto.from_config(config(**settings, **IDS_OF_A_DECODER)).eval()


@pytest.mark.filterwarnings("error:fan_in_fan_out")
@pytest.mark.parametrize("name", OTHER_LAYOUTS)
def test_adapters_lie_on_linear_leaves_of_any_layout_and_merge_exactly(name):
    model = wrap(other_layout(name), LORA, TASK, 0).eval()
    adapted = {place.split(".lora_A")[0] for place, _ in model.named_modules() if place.endswith("lora_A.default")}
    leaves = {place for place, module in model.named_modules() if isinstance(module, LoraLinear)}
    assert adapted == leaves and adapted
    with torch.no_grad():
        for place, weight in model.named_parameters():
            if ".lora_" in place:
                weight.add_(torch.randn_like(weight) / 8)
        ids = torch.arange(4, 36).reshape(2, 16)
        # BART and T5 classify at the end-of-sentence piece.
        ids[:, -1] = 3
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        expected = model(**inputs).logits
        assert not torch.allclose(other_layout(name)(**inputs).logits, expected, atol=1e-4)
        torch.testing.assert_close(merged(model)(**inputs).logits, expected, rtol=1e-4, atol=1e-5)


def test_names_asked_for_fit_no_container():
    settings = dataclasses.replace(LORA, lora_target_modules=["dense"])
    model = wrap(other_layout("reformer"), settings, TASK, 0)
    targets = describe(model)["target_modules"]
    assert len(targets) == 6 and all(name.startswith("reformer.encoder.layers.") for name in targets)


def test_shared_weights_are_left_alone_and_refused_by_name():
    assert not any(
        "shared_transformer" in name
        for name in describe(wrap(other_layout("zamba2"), LORA, TASK, 0))["target_modules"]
    )
    with pytest.raises(ConfigError, match="shared with other modules"):
        wrap(other_layout("zamba2"), dataclasses.replace(LORA, lora_target_modules=["q_proj"]), TASK, 0)


def test_the_question_head_of_t5_is_trained_beside_adapters_of_its_body():
    model = other_layout("t5", AutoModelForQuestionAnswering)
    assert head_modules(model) == ["qa_outputs"]
    facts = describe(wrap(model, LORA, get_task("question-answering"), 0))
    assert facts["modules_to_save"] == ["qa_outputs"] and facts["target_modules"] == ["q", "v"]


def test_wrapping_changes_neither_weights_nor_the_global_generator():
    models = [make_model() for _ in range(3)]
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model = wrap(models[0], LORA, TASK, 0)
    assert torch.equal(torch.rand(3), expected)
    assert same_weights(merged(model), make_model())
    # The generator stands elsewhere by now; the adapters are those of the seed.
    assert same_weights(model, wrap(models[1], LORA, TASK, 0))
    assert not same_weights(model, wrap(models[2], LORA, TASK, 1))


def test_saving_asks_nobody_about_the_base(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr("peft.utils.save_and_load.check_file_exists_on_hf_hub", refuse)
    base = make_model()
    base.name_or_path = "org/encoder"
    model = wrap(base, LORA, TASK, 0)
    for _ in range(2):
        model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "adapter_config.json").read_text())["base_model_name_or_path"] == "org/encoder"
    assert not (tmp_path / "README.md").exists()


def test_a_module_is_named_by_the_end_of_its_path():
    settings = dataclasses.replace(LORA, lora_target_modules=["attention.self.key", "1.intermediate.dense"])
    model = wrap(make_model(), settings, TASK, 0)
    adapted = {name.split(".lora_")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    ends = ("layer.0.attention.self.key", "layer.1.attention.self.key", "layer.1.intermediate.dense")
    assert len(adapted) == 3 and all(any(name.endswith(end) for name in adapted) for end in ends)


def test_an_unknown_module_is_named_with_those_there_are():
    settings = dataclasses.replace(LORA, lora_target_modules=["q_proj"])
    with pytest.raises(ConfigError, match='`lora_target_modules="q_proj"`.* It has dense, key, query, value'):
        wrap(make_model(), settings, TASK, 0)


@pytest.mark.parametrize("name", [name for name in STRATEGIES if get_strategy(name).peft])
def test_embeddings_can_be_trained_in_full_beside_adapters(name, tmp_path):
    settings = dataclasses.replace(LORA, lora_modules_to_save=["word_embeddings"])
    trainer, _ = run_phases(make_context(get_strategy(name), tmp_path, peft=settings), tmp_path, resume=False)
    embedding = trainer.bare_model().get_input_embeddings()
    assert not torch.equal(embedding.weight, make_model().get_input_embeddings().weight)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded.get_input_embeddings().weight, embedding.weight)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed_activations_leave_adapters_their_gradients(reentrant, tmp_path):
    runs = []
    for checkpointing in (False, True):
        folder = tmp_path / str(checkpointing)
        folder.mkdir()
        changes = {"activation_checkpointing": checkpointing, "save_strategy": "no", "peft": LORA}
        if checkpointing:
            changes["activation_checkpointing_kwargs"] = {"use_reentrant": reentrant}
        context = make_context(get_strategy("finetune"), folder, dropout=False, **changes)
        runs.append(run_phases(context, folder, resume=False)[0].bare_model())
    for (name, one), two in zip(runs[0].named_parameters(), runs[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-6, msg=name)


def test_a_checkpoint_holds_the_adapter_alone_and_the_chosen_one_is_loaded(tmp_path):
    chosen = {}
    for greater in (True, False):
        folder = tmp_path / str(greater)
        folder.mkdir()
        settings = {"eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True, "learning_rate": 0.02}
        settings |= {"metric_for_best_model": "eval_avg_loss", "greater_is_better": greater}
        context = make_context(get_strategy("finetune"), folder, peft=LORA, **settings)
        trainer, ledger = run_phases(context, folder, resume=False)
        chosen[greater] = folder / f"checkpoint-{ledger.done[0]['selected_checkpoint']}"
        adapter = load_file(folder / ADAPTER_NAME / "adapter_model.safetensors")
        assert same_weights(adapter, load_file(chosen[greater] / "adapter_model.safetensors"))
        trained = [name for name, weight in trainer.bare_model().named_parameters() if weight.requires_grad]
        assert len(adapter) == len(trained)
        assert not {path.name for path in chosen[greater].iterdir()} & {"model.safetensors", "README.md"}
    # So that one of them at least is not the last, which needs no loading.
    assert chosen[True].name != chosen[False].name


def test_every_phase_leaves_a_merged_model(tmp_path):
    phases = [RunPhase(name, single_phase(FinetuneTrainer)) for name in ("first", "second")]
    strategy = dataclasses.replace(get_strategy("finetune"), phases=lambda config: phases)
    context = make_context(strategy, tmp_path, peft=LORA)

    def load(folder):
        model = make_model() if folder is None else AutoModelForSequenceClassification.from_pretrained(folder)
        return wrap(model, LORA, TASK, 0)

    context.load_model = load
    run_phases(context, tmp_path, resume=False)
    finals = [tmp_path / f"phase-{index}-{phase.name}" / "final" for index, phase in enumerate(phases)]
    for folder in (*finals, tmp_path):
        _, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert not same_weights(*(load_file(folder / "model.safetensors") for folder in finals))
    for name in ("model.safetensors", f"{ADAPTER_NAME}/adapter_model.safetensors"):
        assert (tmp_path / name).read_bytes() == (finals[1] / name).read_bytes()


def test_a_plain_model_is_not_adapted():
    assert is_adapted(adapted_model()) and not is_adapted(make_model())


def test_checkpoints_of_adapters_need_little_space(tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=6 * 10**6))
    check_space(tmp_path / "out", 10**6, True, False, trainable=10**4)
    with pytest.raises(Exception, match="MiB free"):
        check_space(tmp_path / "out", 10**6, True, False)


RUN = (
    "run --model encoder --dataset data/{split}.{lang}.jsonl --target-languages de,sw --max-steps 6 --threads 1 "
    "--per-device-train-batch-size 8 --learning-rate 0.02 --peft lora --lora-rank 4 --disable-tqdm"
)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder, data, and a run with adapters."""
    root = tmp_path_factory.mktemp("adapters")
    save_encoder(root / "encoder")
    write_data(root / "data")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*RUN.split(), "--output-dir", "out"]) == 0
    return root


def test_a_run_says_what_was_trained_and_names_no_folder(world):
    record = RunRecord.read(world / "out")
    plain = AutoModelForSequenceClassification.from_pretrained(world / "out")
    adapter = record.model["adapter"]
    # Two layers of width 32, two modules each; the pooler and a head of three classes.
    assert adapter["trainable_parameters"] == 2 * 2 * (2 * 4 * 32) + (32 * 32 + 32) + (3 * 32 + 3)
    assert record.model["parameters"] == sum(weight.numel() for weight in plain.parameters())
    assert (record.settings["peft"], record.arguments["lora_rank"], adapter["rank"]) == ("lora", 4, 4)
    card = (world / "out" / "README.md").read_text()
    assert "Only adapters and the head were trained: [LoRA](https://arxiv.org/abs/2106.09685) of rank 4" in card
    assert "on `query` and `value`, and `classifier` and `pooler` in full: 2,179 parameters" in card
    config = (world / "out" / ADAPTER_NAME / "adapter_config.json").read_text()
    assert json.loads(config)["base_model_name_or_path"] is None and "encoder" not in config


def test_what_was_scored_is_what_was_saved(world, monkeypatch):
    monkeypatch.chdir(world)
    original, scored = evaluation.score, []

    def score(trainer, *arguments):
        scored.append(trainer.bare_model())
        return original(trainer, *arguments)

    monkeypatch.setattr(evaluation, "score", score)
    assert main([*RUN.split(), "--output-dir", "scored"]) == 0
    assert same_weights(scored[0], load_file(world / "scored" / "model.safetensors"))
    line = "evaluate out --dataset data/{split}.{lang}.jsonl --target-languages de,sw --output-dir again"
    assert main(line.split()) == 0
    first, second = (json.loads((world / name / "results.json").read_text()) for name in ("out", "again"))
    assert first["languages"] == second["languages"]


def test_a_push_sends_the_merged_model_and_no_adapter(world, capsys):
    assert main(["push", str(world / "out"), "user/name", "--dry-run", "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert "model.safetensors" in files and not [name for name in files if "adapter" in name]


def test_a_run_cut_before_its_model_was_saved_ends_the_same(world, monkeypatch, tmp_path):
    import shutil

    monkeypatch.chdir(world)
    shutil.copytree(world / "out", tmp_path / "out")
    for name in ("phases.json", "model.safetensors", "results.json"):
        (tmp_path / "out" / name).unlink()
    shutil.rmtree(tmp_path / "out" / ADAPTER_NAME)
    record = RunRecord.read(tmp_path / "out")
    record.status = "running"
    record.write(tmp_path / "out")
    assert main([*RUN.split(), "--output-dir", str(tmp_path / "out"), "--resume"]) == 0
    for name in (
        "model.safetensors",
        f"{ADAPTER_NAME}/adapter_model.safetensors",
        f"{ADAPTER_NAME}/adapter_config.json",
    ):
        assert (tmp_path / "out" / name).read_bytes() == (world / "out" / name).read_bytes()


def test_the_plan_and_the_first_line_say_how_much_is_trained(world, monkeypatch, capsys):
    monkeypatch.chdir(world)
    assert main([*RUN.split(), "--output-dir", "none", "--dry-run"]) == 0
    plan = capsys.readouterr().out
    size = RunRecord.read(world / "out").model["parameters"]
    said = f"LoRA of rank 4 trains 2,179, {2179 / size:.2%}"
    assert f"Parameters {size:,}; {said}\nAdapters   on query, value; trained in full: classifier, pooler" in plan
    assert not (world / "none").exists()
    assert main([*RUN.split(), "--output-dir", "shown"]) == 0
    assert said in capsys.readouterr().out.splitlines()[0]


def test_settings_of_adapters_are_no_settings_of_a_plain_run(world, monkeypatch):
    monkeypatch.chdir(world)
    assert main([*RUN.replace("--peft lora --lora-rank 4", "").split(), "--output-dir", "plain"]) == 0
    record = RunRecord.read(world / "plain")
    assert "adapter" not in record.model
    assert not [name for name in (*record.arguments, *record.settings) if "lora" in name or name == "peft"]


def test_names_are_split_at_commas():
    settings = PeftArguments(peft="lora", lora_target_modules=["query,value", "key"])
    assert settings.lora_target_modules == ["query", "value", "key"]

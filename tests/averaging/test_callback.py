"""`CheckpointAveragingCallback` in a stock Trainer: the mean, and the end of training."""

import warnings

import pytest
import torch
from averaging_training import Recorder, Stop, assert_close, load_averaged, make_trainer
from safetensors.torch import load_file
from tiny import make_config, make_features, make_model, same_weights
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertForMaskedLM,
    TrainerCallback,
    set_seed,
)

from hf_xlt import CheckpointAveragingCallback
from hf_xlt.averaging import average_checkpoints
from hf_xlt.averaging.parameters import trained_names
from hf_xlt.averaging.state_file import STATE_NAME
from hf_xlt.errors import ConfigError, RunError

pytestmark = pytest.mark.filterwarnings("ignore:.*snapshot of step.*:UserWarning")


# ---- The mean


MODES = {
    "uniform": ({}, {}),
    "weighted": ({"weight_fn": float}, {"weights": [2, 4, 6, 8, 10]}),
    "last_k": ({"last_k": 3}, {"last_k": 3}),
    "ema": ({"ema_decay": 0.6}, {"ema_decay": 0.6}),
}


def test_the_mean_in_training_is_that_of_its_checkpoints_on_disk_in_every_mode(tmp_path):
    callbacks = [
        CheckpointAveragingCallback(every=0.2, mode=mode, output_name=mode, swap_at_end=False, **settings)
        for mode, (settings, _) in MODES.items()
    ]
    trainer = make_trainer(tmp_path, *callbacks, save_steps=1)
    trainer.train()
    kept = [tmp_path / f"checkpoint-{step}" for step in (2, 4, 6, 8, 10)]
    last = load_file(kept[-1] / "model.safetensors")
    means = {}
    for mode, (_, settings) in MODES.items():
        average_checkpoints(
            kept, tmp_path / "offline" / mode, mode={"last_k": "last-k"}.get(mode, mode), strict=False, **settings
        )
        means[mode] = load_averaged(tmp_path, mode)
        assert_close(means[mode], load_file(tmp_path / "offline" / mode / "model.safetensors"))
        assert not same_weights(means[mode], last)
    assert len({value["classifier.bias"].sum().item() for value in means.values()}) == len(MODES)
    # `swap_at_end=False` leaves the last weights in memory.
    assert same_weights(dict(trainer.model.state_dict()), last)


def test_ten_snapshots_by_default_written_loadable_and_put_into_the_model(tmp_path):
    callback, recorder = CheckpointAveragingCallback(), Recorder()
    trainer = make_trainer(tmp_path, callback, recorder, max_steps=20, save_strategy="no")
    trainer.train()
    assert callback.steps == tuple(range(2, 21, 2))
    loaded, report = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "averaged", output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert same_weights(loaded, trainer.model)
    assert_close(dict(loaded.named_parameters()), recorder.mean(callback.steps))
    assert AutoTokenizer.from_pretrained(tmp_path / "averaged")("w1")["input_ids"] == [2, 6, 3]
    assert [path.name for path in tmp_path.iterdir()] == ["averaged"]


def test_accumulation_does_not_change_the_number_of_snapshots(tmp_path):
    callback = CheckpointAveragingCallback(every=2)
    make_trainer(
        tmp_path, callback, per_device_train_batch_size=2, gradient_accumulation_steps=4, save_strategy="no"
    ).train()
    assert callback.steps == (2, 4, 6, 8, 10)


@pytest.mark.parametrize(
    ("every", "settings", "expected"),
    [
        ("epoch", {"num_train_epochs": 3, "max_steps": -1}, (6, 12, 18)),
        ("epoch", {"gradient_accumulation_steps": 4, "max_steps": 5}, (2, 4, 5)),
        ("save", {"save_steps": 4}, (4, 8, 10)),
        ("save", {"save_strategy": "epoch"}, (6, 10)),
        ("save", {"save_steps": 0.5}, (5, 10)),
    ],
)
def test_snapshots_at_epochs_and_saves(tmp_path, every, settings, expected):
    callback = CheckpointAveragingCallback(every=every)
    make_trainer(tmp_path, callback, **settings).train()
    assert callback.steps == expected


@pytest.mark.parametrize("strategy", ["no", "best"])
def test_snapshots_at_saves_need_regular_saves(tmp_path, strategy):
    settings = {"eval_strategy": "steps", "metric_for_best_model": "loss", "eval_count": 8}
    trainer = make_trainer(
        tmp_path, CheckpointAveragingCallback(every="save"), save_strategy=strategy, eval_steps=5, **settings
    )
    with pytest.raises(ConfigError, match=f"the save strategy is `{strategy}`"):
        trainer.train()


def test_frozen_weights_and_buffers_come_out_bit_for_bit(tmp_path):
    model = make_model()
    for name, weight in model.named_parameters():
        weight.requires_grad = not name.startswith(("classifier", "bert.embeddings"))
    model.register_buffer("counter", torch.arange(3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = make_trainer(tmp_path, CheckpointAveragingCallback(every=3), model=model, save_strategy="no")
    trainer.train()
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad} | {"counter"}
    averaged = load_averaged(tmp_path)
    assert len(frozen) > 5 and {name for name in before if torch.equal(averaged[name], before[name])} == frozen


def test_a_weight_opened_in_training_is_refused(tmp_path):
    class Open(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            model.classifier.weight.requires_grad = state.global_step > 3

    model = make_model()
    model.classifier.weight.requires_grad = False
    trainer = make_trainer(tmp_path, CheckpointAveragingCallback(every=1), Open(), model=model, save_strategy="no")
    with pytest.raises(
        RunError, match="`classifier.weight` was frozen when training began and is trained by update 5"
    ):
        trainer.train()


def test_tied_weights_are_averaged_once_and_stay_tied(tmp_path):
    set_seed(0)
    model, recorder = BertForMaskedLM(make_config()), Recorder()
    rows = [{**row, "input_ids": (row["input_ids"] * 9)[:12]} for row in make_features(48)]
    rows = [{"input_ids": row["input_ids"], "labels": row["input_ids"]} for row in rows]
    trainer = make_trainer(tmp_path, CheckpointAveragingCallback(every=5), recorder, model=model, save_strategy="no")
    trainer.train_dataset = rows
    trainer.train()
    loaded, report = BertForMaskedLM.from_pretrained(tmp_path / "averaged", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert_close(dict(loaded.named_parameters()), recorder.mean((5, 10)))


def test_names_are_those_without_wrappers(tmp_path):
    model = make_model()
    plain = trained_names(model)
    assert trained_names(torch.compile(model, backend="eager")) == plain
    model.bert = torch.compile(model.bert, backend="eager")
    assert trained_names(model) == plain


def test_a_compiled_model_is_averaged_and_saved_without_the_wrapper(tmp_path):
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path,
        CheckpointAveragingCallback(every=2),
        recorder,
        max_steps=4,
        save_steps=2,
        torch_compile_backend="eager",
    )
    trainer.train()
    assert_close(load_averaged(tmp_path), recorder.mean((2, 4)))
    assert set(load_file(tmp_path / "checkpoint-2" / STATE_NAME)) == set(trained_names(make_model()))


def test_divided_weights_are_refused(tmp_path):
    model = make_model()
    model.classifier.bias = torch.nn.Parameter(torch.empty(0))
    with pytest.raises(ConfigError, match="that ZeRO-3 divides. Average its .* with `hf-xlt average`"):
        make_trainer(tmp_path, CheckpointAveragingCallback(), model=model).train()
    callback, trainer = CheckpointAveragingCallback(), make_trainer(tmp_path)
    trainer.args.fsdp = "full_shard"
    with pytest.raises(ConfigError, match="that FSDP divides"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "weighted"}, "`mode` weighted needs `weight_fn`"),
        ({"weight_fn": float}, "no other mode takes it"),
        ({"dtype": torch.bfloat16}, "kept in torch.float32 or torch.float64"),
        ({"output_name": "a/b"}, "the plain name of a subfolder"),
        ({"output_name": "checkpoint-1"}, "would be rotated away"),
    ],
)
def test_settings_that_cannot_be_used(settings, message):
    with pytest.raises(ConfigError, match=message):
        CheckpointAveragingCallback(**settings)


# ---- The end of training


def test_training_that_stops_early_divides_by_what_was_taken(tmp_path):
    callback, recorder = CheckpointAveragingCallback(every=2), Recorder()
    make_trainer(tmp_path, callback, recorder, Stop(5), save_strategy="no").train()
    assert callback.steps == (2, 4)
    assert_close(load_averaged(tmp_path), recorder.mean((2, 4)))


def test_without_a_snapshot_the_model_stays_with_a_warning(tmp_path):
    trainer = make_trainer(tmp_path, CheckpointAveragingCallback(every=4), Stop(3), save_steps=3)
    with pytest.warns(UserWarning, match="ended before the first snapshot: the model is the last one"):
        trainer.train()
    assert same_weights(load_averaged(tmp_path), load_file(tmp_path / "checkpoint-3" / "model.safetensors"))


@pytest.mark.parametrize("swap", [None, False])
def test_the_last_snapshots_of_a_training_that_stops_before_them_are_an_error(tmp_path, swap):
    callback = CheckpointAveragingCallback(mode="last_k", last_k=2, swap_at_end=swap)
    trainer = make_trainer(tmp_path, callback, Stop(5), save_strategy="no")
    with pytest.raises(
        RunError, match=r"stopped after update 5, before the first of the last 2 snapshots \(update 9\)"
    ):
        trainer.train()


def test_weights_that_are_all_zero_or_negative_are_an_error(tmp_path):
    with pytest.raises(RunError, match="gave every snapshot the weight 0"):
        make_trainer(tmp_path, CheckpointAveragingCallback(mode="weighted", weight_fn=lambda step: 0)).train()
    with pytest.raises(ConfigError, match="`weight_fn` gives -1.0 for update 1"):
        make_trainer(tmp_path, CheckpointAveragingCallback(mode="weighted", weight_fn=lambda step: -1)).train()


def test_a_snapshot_that_is_not_finite_is_an_error(tmp_path):
    class Break(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if state.global_step == 3:
                model.classifier.bias.data[0] = float("nan")

    with pytest.raises(RunError, match="the average holds NaN or infinity"):
        make_trainer(tmp_path, Break(), CheckpointAveragingCallback(every=1), save_strategy="no").train()


BEST = {
    "eval_strategy": "steps",
    "eval_steps": 5,
    "load_best_model_at_end": True,
    "metric_for_best_model": "loss",
    "eval_count": 8,
    # The loss grows under this rate, so that the first checkpoint is the best one.
    "learning_rate": 0.3,
}


@pytest.mark.parametrize("swap", [None, True, False])
def test_the_best_checkpoint_stays_in_memory_unless_asked_otherwise(tmp_path, swap):
    recorder = Recorder()
    trainer = make_trainer(
        tmp_path, CheckpointAveragingCallback(every=2, swap_at_end=swap), recorder, save_total_limit=1, **BEST
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.train()
    assert any("the best checkpoint is in memory" in str(entry.message) for entry in caught) == (swap is None)
    expected = recorder.mean((2, 4, 6, 8, 10))
    assert_close(load_averaged(tmp_path), expected)
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    in_memory = dict(trainer.model.named_parameters())
    if swap:
        assert_close(in_memory, expected)
    else:
        assert same_weights(dict(trainer.model.state_dict()), best)


def test_rotation_does_not_touch_the_average(tmp_path):
    ends = []
    for limit in (1, None):
        folder = tmp_path / str(limit)
        make_trainer(folder, CheckpointAveragingCallback(every=1), save_steps=1, save_total_limit=limit).train()
        ends.append(load_averaged(folder))
    assert same_weights(*ends)
    assert sorted(path.name for path in (tmp_path / "1").iterdir()) == ["averaged", "checkpoint-10"]


def test_an_earlier_average_is_replaced(tmp_path):
    (tmp_path / "averaged").mkdir()
    for name in ("model.safetensors", "notes.txt"):
        (tmp_path / "averaged" / name).write_text("old")
    make_trainer(tmp_path, CheckpointAveragingCallback(every=5), save_strategy="no").train()
    assert load_file(tmp_path / "averaged" / "model.safetensors")
    assert (tmp_path / "averaged" / "notes.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["averaged"]


@pytest.mark.filterwarnings("default")
def test_a_slow_run_is_warned_of(tmp_path):
    # Nothing is logged before the warm-up's end: it is known all the same.
    with pytest.warns(UserWarning, match="snapshot of step 1 lies in the warm-up.*step 6: .* with `start=0.2`"):
        trainer = make_trainer(
            tmp_path, CheckpointAveragingCallback(), warmup_steps=6, logging_steps=8, save_strategy="no"
        )
        trainer.train()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        callback = CheckpointAveragingCallback(start=0.7)
        make_trainer(tmp_path, callback, warmup_steps=6, save_strategy="no", learning_rate=1e-5).train()
    assert not [entry for entry in caught if "snapshot" in str(entry.message)]

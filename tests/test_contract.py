"""What every entry of the registry promises, checked for each one."""

import dataclasses

import pytest
import torch
from contexts import LORA, make_context
from safetensors.torch import load_file
from tiny import make_features, make_tokenizer, same_weights
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_xlt.errors import Interrupted
from hf_xlt.files import write_json
from hf_xlt.registry import ACCUMULATION, INVARIANCES, PADDING, RESUME, ROLES, STRATEGIES, get_strategy
from hf_xlt.training.checkpoints import list_checkpoints
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.phases import Ledger, phase_folders, run_phases
from hf_xlt.training.trainer import XLTTrainer

ENTRIES = [get_strategy(name) for name in STRATEGIES]
every_entry = pytest.mark.parametrize("strategy", ENTRIES, ids=lambda entry: entry.name)
ADAPTED = [pytest.param(entry, LORA, id=f"{entry.name}-lora") for entry in ENTRIES if entry.peft]
every_variant = pytest.mark.parametrize(
    ("strategy", "peft"), [*(pytest.param(entry, None, id=entry.name) for entry in ENTRIES), *ADAPTED]
)


def run(strategy, folder, **changes):
    folder.mkdir(parents=True, exist_ok=True)
    trainer, ledger = run_phases(make_context(strategy, folder, **changes), folder, resume=False)
    return trainer, ledger


def last_folder(strategy, folder, peft=None):
    """Where the last phase, which trains the task, keeps its checkpoints."""
    return phase_folders(make_context(strategy, folder, peft=peft).phases(), folder)[-1][0]


def forget_the_end(strategy, folder):
    """Undo what is written after the last update of the last phase."""
    ledger = Ledger.read(folder)
    write_json(folder / "phases.json", {"phases": ledger.done[:-1]})
    (folder / "model.safetensors").unlink()


def resumptions(ledger):
    return [entry["resumed_from"] for entry in ledger.done if entry["resumed_from"] is not None]


@every_entry
def test_the_entry_is_whole(strategy):
    assert STRATEGIES[strategy.name].startswith("hf_xlt.strategies.")
    assert issubclass(strategy.config_cls, XLTConfig) and issubclass(strategy.trainer_cls, XLTTrainer)
    assert strategy.roles[0] == "source" and set(strategy.roles + strategy.optional_roles) <= set(ROLES)
    assert strategy.invariances <= set(INVARIANCES)
    assert strategy.summary.endswith(".") and strategy.title


@every_entry
def test_every_own_field_has_help(strategy):
    inherited = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = [entry for entry in dataclasses.fields(strategy.config_cls) if entry.name not in inherited]
    assert [entry.name for entry in own if not entry.metadata.get("help")] == []


@every_variant
def test_training_moves_every_trainable_parameter_and_no_other(strategy, peft, tmp_path):
    context = make_context(strategy, tmp_path, peft=peft)
    before = {name: value.clone() for name, value in context.load_model(None).named_parameters()}
    trainer, _ = run_phases(context, tmp_path, resume=False)
    after = dict(trainer.bare_model().named_parameters())
    frozen = [name for name, value in after.items() if not value.requires_grad]
    assert [name for name in before if torch.equal(before[name], after[name])] == frozen
    assert bool(frozen) == (peft is not None)
    assert all(torch.isfinite(torch.tensor(log["loss"])) for log in trainer.state.log_history if "loss" in log)


@every_variant
def test_two_runs_are_bit_equal(strategy, peft, tmp_path):
    first, second = (run(strategy, tmp_path / name, peft=peft)[0] for name in "ab")
    assert same_weights(first.bare_model(), second.bare_model())


@every_entry
def test_another_seed_gives_another_run(strategy, tmp_path):
    first, second = (run(strategy, tmp_path / str(seed), seed=seed)[0] for seed in (1, 2))
    assert not same_weights(first.bare_model(), second.bare_model())


@every_variant
@pytest.mark.parametrize("stop_after", [1, 3, 5])
def test_interrupted_and_resumed_equals_uninterrupted(strategy, peft, tmp_path, stop_after):
    assert RESUME in strategy.invariances
    settings = {"save_total_limit": 1, "peft": peft}
    whole, _ = run(strategy, tmp_path / "whole", **settings)
    context = make_context(strategy, tmp_path / "cut", **settings)
    original = context.build_trainer

    def build_and_interrupt(*args, **kwargs):
        trainer = original(*args, **kwargs)
        step = trainer.training_step

        def counted(*step_args):
            context.flag.raised = context.flag.raised or trainer.state.global_step + 1 == stop_after
            return step(*step_args)

        trainer.training_step = counted
        return trainer

    context.build_trainer = build_and_interrupt
    (tmp_path / "cut").mkdir()
    with pytest.raises(Interrupted, match=f"stopped after update {stop_after}"):
        run_phases(context, tmp_path / "cut", resume=False)
    assert not (tmp_path / "cut" / "model.safetensors").exists()
    resumed, ledger = run_phases(make_context(strategy, tmp_path / "cut", **settings), tmp_path / "cut", resume=True)
    assert resumptions(ledger) == [stop_after]
    assert same_weights(whole.bare_model(), resumed.bare_model())


@every_variant
@pytest.mark.parametrize(
    "changes",
    [
        {"train_sampling_strategy": "group_by_length"},
        {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
        {"bf16": True},
        {"activation_checkpointing": True},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_resuming_in_the_second_epoch_is_exact_under_trainer_options(strategy, peft, tmp_path, changes):
    settings = {"max_steps": 11, "save_steps": 8, "peft": peft, **changes}
    whole, _ = run(strategy, tmp_path, **settings)
    forget_the_end(strategy, tmp_path)
    (last_folder(strategy, tmp_path, peft) / "checkpoint-11/complete.json").unlink()
    resumed, ledger = run_phases(make_context(strategy, tmp_path, **settings), tmp_path, resume=True)
    assert resumptions(ledger) == [8]
    assert same_weights(whole.bare_model(), resumed.bare_model())


@every_entry
def test_resuming_a_finished_run_does_nothing(strategy, tmp_path):
    run(strategy, tmp_path)
    before = (tmp_path / "model.safetensors").stat().st_mtime_ns
    trainer, _ = run_phases(make_context(strategy, tmp_path), tmp_path, resume=True)
    assert trainer is None and (tmp_path / "model.safetensors").stat().st_mtime_ns == before


@every_entry
def test_killed_after_the_last_checkpoint_resumes_to_the_same_model(strategy, tmp_path):
    # Update 8 is in the middle of the second epoch, where the stock Trainer would do one more.
    whole, _ = run(strategy, tmp_path, max_steps=8)
    final = load_file(tmp_path / "model.safetensors")
    forget_the_end(strategy, tmp_path)
    resumed, _ = run_phases(make_context(strategy, tmp_path, max_steps=8), tmp_path, resume=True)
    assert resumed.state.global_step == whole.state.global_step
    assert same_weights(final, load_file(tmp_path / "model.safetensors"))


@every_variant
def test_accumulation_gives_the_update_of_the_whole_batch(strategy, peft, tmp_path):
    if ACCUMULATION not in strategy.invariances:
        pytest.skip("not claimed")
    ends = []
    for size in (8, 2):
        trainer, _ = run(
            strategy,
            tmp_path / str(size),
            dropout=False,
            peft=peft and dataclasses.replace(peft, lora_dropout=0.0),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=8 // size,
            optim="sgd",
            max_steps=3,
            save_strategy="no",
        )
        ends.append(trainer.bare_model())
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


@every_entry
def test_padding_changes_nothing(strategy, tmp_path):
    if PADDING not in strategy.invariances:
        pytest.skip("not claimed")
    ends = []
    for extra in (0, 9):
        folder = tmp_path / str(extra)
        folder.mkdir()
        context = make_context(strategy, folder, dropout=False, optim="sgd", max_steps=3, save_strategy="no")

        def collator(tokenizer, extra=extra):
            def collate(rows):
                width = max(len(row["input_ids"]) for row in rows) + extra
                return tokenizer.pad(rows, padding="max_length", max_length=width, return_tensors="pt")

            return collate

        context.task = dataclasses.replace(context.task, collator=collator)
        trainer, _ = run_phases(context, folder, resume=False)
        ends.append(trainer.bare_model())
    for one, two in zip(ends[0].parameters(), ends[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


@every_variant
def test_the_saved_model_loads_with_plain_classes_and_gives_the_same_logits(strategy, peft, tmp_path):
    trainer, _ = run(strategy, tmp_path, peft=peft)
    loaded, report = AutoModelForSequenceClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"))
    _, bare = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert all(
        "pooler" in key or "classifier" in key for kind in ("missing_keys", "unexpected_keys") for key in bare[kind]
    )
    batch = make_tokenizer().pad(
        [{key: row[key] for key in ("input_ids", "attention_mask")} for row in make_features(5)], return_tensors="pt"
    )
    with torch.no_grad():
        saved, trained = (model.eval()(**batch).logits for model in (loaded, trainer.bare_model()))
    # Merging adapters rounds; nothing else does.
    torch.testing.assert_close(saved, trained, rtol=0, atol=1e-5 if peft else 0)
    assert not list(tmp_path.glob("*.bin"))


@every_entry
def test_rotation_keeps_the_newest_complete_checkpoint(strategy, tmp_path):
    run(strategy, tmp_path, save_total_limit=1, save_steps=1)
    assert [folder.name for folder in list_checkpoints(last_folder(strategy, tmp_path))] == ["checkpoint-6"]

"""The trainer of a pre-training phase: exact losses, exact resumption, one language after the other."""

import json
import math
import random

import pytest
import torch
from pretraining_setup import ALL_OBJECTIVES, TOKENIZER, make_encoder, make_phase, make_text, make_trainer
from tiny import WORDS, same_weights
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer

from hf_xlt.errors import ConfigError, Interrupted
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.corpus import build_corpus
from hf_xlt.pretraining.loading import phase_text
from hf_xlt.pretraining.plan import Source
from hf_xlt.training.checkpoints import newest_complete
from hf_xlt.training.interruption import InterruptionCallback, InterruptionFlag


def train(folder, phase=None, *, resume=None, **changes):
    trainer = make_trainer(folder, phase, **changes)
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def stop_after(trainer, update):
    """Interrupt after an update, as a signal would."""
    flag = InterruptionFlag()
    callback = InterruptionCallback(flag)
    trainer.add_callback(callback)
    step = trainer.training_step

    def counted(*args):
        flag.raised = flag.raised or trainer.state.global_step + 1 == update
        return step(*args)

    trainer.training_step = counted
    return callback


@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlm-roberta"])
def test_the_loss_is_the_weighted_sum_of_means_over_the_update(tmp_path, kind):
    phase = make_phase(objectives={"mlm": 0.7, "tlm": 0.3})
    trainer = make_trainer(tmp_path, phase, model=make_encoder(kind, dropout=False))
    trainer.model.eval()
    batches = [trainer.batches.batch(number) for number in range(2)]
    _, units = trainer.get_batch_samples(iter(batches), 2, torch.device("cpu"))
    total = sum(trainer.compute_loss(trainer.model, batch, num_items_in_batch=units) for batch in batches)
    sums, counts = [0.0, 0.0], [0, 0]
    for batch in batches:
        logits = trainer.model(input_ids=batch["input_ids"]).logits
        losses = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"].flatten(), reduction="none"
        ).reshape(batch["labels"].shape)
        for index in (0, 1):
            mine = batch["objective"] == index
            sums[index] += losses[mine].sum()
            counts[index] += int((batch["labels"][mine] != -100).sum())
    torch.testing.assert_close(total, 0.7 * sums[0] / counts[0] + 0.3 * sums[1] / counts[1], rtol=1e-5, atol=1e-6)


def test_accumulation_gives_loss_and_gradient_of_the_whole_batch(tmp_path):
    phase = make_phase(objectives={"mlm": 1.0, "tlm": 0.5})
    grads, losses = [], []
    for size, steps in ((16, 1), (4, 4)):
        trainer = make_trainer(
            tmp_path / str(size),
            phase,
            model=make_encoder(dropout=False),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=steps,
        )
        loader = iter(trainer.get_train_dataloader())
        batches, units = trainer.get_batch_samples(loader, steps, torch.device("cpu"))
        loss = sum(trainer.training_step(trainer.model, batch, units) for batch in batches)
        losses.append(loss)
        grads.append([parameter.grad for parameter in trainer.model.parameters()])
    torch.testing.assert_close(losses[0], losses[1], rtol=1e-5, atol=1e-6)
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-7)


def test_an_update_without_a_masked_token_is_finite(tmp_path):
    trainer = make_trainer(tmp_path, make_phase(objectives={"mlm": 1.0}))
    batch = trainer.batches.batch(0)
    batch["labels"].fill_(-100)
    batches, units = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
    assert float(trainer.training_step(trainer.model, batches[0], units)) == 0
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in trainer.model.parameters())


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [(1,), (7,), (2, 5)])
def test_interrupted_runs_end_with_the_same_weights_and_rows(tmp_path, stops, workers):
    phase = make_phase(objectives=ALL_OBJECTIVES)
    settings = {"dataloader_num_workers": workers, "gradient_accumulation_steps": 2}
    whole = train(tmp_path / "whole", phase, **settings)
    resume = None
    for update in stops:
        trainer = make_trainer(tmp_path / "cut", phase, **settings)
        callback = stop_after(trainer, update)
        trainer.train(resume_from_checkpoint=resume)
        assert callback.stopped
        resume = str(newest_complete(tmp_path / "cut"))
        assert resume.endswith(f"checkpoint-{update}")
    resumed = train(tmp_path / "cut", phase, resume=resume, **settings)
    assert same_weights(whole.model, resumed.model)
    assert resumed.state.epoch == whole.state.epoch == 1
    assert resumed.strategy_state() == whole.strategy_state()


def streamed_text():
    from datasets import Dataset

    text = make_text(("en", "de"))
    streams = {}
    for code, subset in text.corpora.items():
        rows = [{"text": TOKENIZER.decode(subset.document(index).tolist())} for index in range(len(subset.lengths))]
        streams[code] = (Dataset.from_list(rows).to_iterable_dataset(num_shards=2), "text")
    return PhaseText({}, streams=streams, sizes=text.sizes, estimated=frozenset(streams))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("stops", [(1,), (3, 6)])
def test_streamed_text_resumes_exactly_twice_in_succession(tmp_path, stops, workers):
    phase = make_phase(objectives={"mlm": 1.0}, steps=12)
    settings = {"dataloader_num_workers": workers, "text": streamed_text()}
    whole = train(tmp_path / "whole", phase, **settings)
    resume = None
    for update in stops:
        trainer = make_trainer(tmp_path / "cut", phase, **settings)
        stop_after(trainer, update)
        trainer.train(resume_from_checkpoint=resume)
        resume = str(newest_complete(tmp_path / "cut"))
    state = json.loads((tmp_path / "cut" / f"checkpoint-{stops[-1]}" / "data_state-rank0.json").read_text())
    assert state["layout"] == [1, workers] and len(state["readers"]) == max(min(workers, stops[-1]), 1)
    resumed = train(tmp_path / "cut", phase, resume=resume, **settings)
    assert same_weights(whole.model, resumed.model)


def test_streams_with_another_number_of_workers_start_over_or_are_refused(tmp_path, capsys):
    phase = make_phase(objectives={"mlm": 1.0}, steps=6)
    trainer = make_trainer(tmp_path, phase, text=streamed_text())
    stop_after(trainer, 3)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(ConfigError, match="saved with 1 processes and 0 loader workers and goes on with 1 and 2"):
        train(tmp_path, phase, resume=checkpoint, text=streamed_text(), dataloader_num_workers=2, strict_resume=True)
    train(tmp_path, phase, resume=checkpoint, text=streamed_text(), dataloader_num_workers=2)
    assert "Warning: the run was saved with 1 processes and 0" in capsys.readouterr().out


def test_a_changed_phase_is_refused_unless_allowed(tmp_path):
    trainer = make_trainer(tmp_path, make_phase(alpha=0.7))
    stop_after(trainer, 3)
    trainer.train()
    checkpoint = str(tmp_path / "checkpoint-3")
    with pytest.raises(ConfigError, match=r"another definition \(changed: alpha\)"):
        train(tmp_path, make_phase(alpha=0.5), resume=checkpoint)
    train(tmp_path, make_phase(alpha=0.5), resume=checkpoint, allow_phase_change=True)


def test_the_schedule_is_the_phases_own(tmp_path):
    trainer = train(tmp_path, make_phase(steps=10), warmup_steps=2, lr_scheduler_type="linear")
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert trainer.state.max_steps == 10 and rates[0] < rates[1] and rates[-1] < 0.2 * max(rates)
    assert trainer.lr_scheduler.get_last_lr()[0] == 0


def test_logs_tell_phase_parts_speed_and_waiting(tmp_path):
    phase = make_phase(objectives=ALL_OBJECTIVES)
    trainer = make_trainer(tmp_path, phase)
    trainer.steps_before = 100
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert entry["phase"] == "cross" and entry["total_step"] == 101
    assert entry["loss_masked"] + entry["loss_contrastive"] == pytest.approx(entry["loss"], abs=1e-3)
    assert entry["tokens_per_second"] > 0 and 0 <= entry["data_wait_ratio"] < 1


@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlm-roberta"])
def test_every_parameter_moves_and_the_model_loads_plainly(tmp_path, kind):
    model = make_encoder(kind)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    trainer = train(tmp_path, make_phase(objectives=ALL_OBJECTIVES), model=model)
    unmoved = [name for name, value in trainer.model.named_parameters() if torch.equal(before[name], value)]
    assert unmoved == []
    trainer.model.save_pretrained(tmp_path / "saved")
    TOKENIZER.save_pretrained(tmp_path / "saved")
    loaded, report = AutoModelForMaskedLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    inputs = AutoTokenizer.from_pretrained(tmp_path / "saved")("w1 w2 w3", return_tensors="pt")
    inputs.pop("token_type_ids", None)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(**inputs).logits, trainer.model.eval()(**inputs).logits)
    AutoModel.from_pretrained(tmp_path / "saved")


@pytest.mark.parametrize("kind", ["bert", "modernbert", "xlm-roberta"])
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_isolated_documents_do_not_see_each_other(tmp_path, kind, attention):
    phase = make_phase(objectives={"mlm": 1.0}, isolated=True)
    trainer = make_trainer(tmp_path, phase, model=make_encoder(kind, dropout=False))
    trainer.model.set_attn_implementation(attention)
    trainer.model.eval()
    batch = next(
        batch
        for batch in map(trainer.batches.batch, range(50))
        if (batch["input_ids"][0, 3:12] == TOKENIZER.sep_token_id).any()
    )
    end = 3 + int((batch["input_ids"][0, 3:12] == TOKENIZER.sep_token_id).nonzero()[0])
    seen = []

    def keep(module, args, kwargs, output):
        seen.append((output[0].detach().clone(), kwargs["position_ids"]))

    from hf_xlt.pretraining.objectives import base_model

    base_model(trainer.model).register_forward_hook(keep, with_kwargs=True)
    for token in (10, 20):
        batch["input_ids"][0, 1] = token
        trainer.compute_loss(trainer.model, batch)
    assert not torch.equal(seen[0][0][0, : end + 1], seen[1][0][0, : end + 1])
    assert torch.equal(seen[0][0][0, end + 1 :], seen[1][0][0, end + 1 :])
    # XLM-R's table starts after the padding index, 0 here.
    assert int(seen[0][1][0, end + 1]) == (1 if kind == "xlm-roberta" else 0)


def test_embeddings_alone_move_in_the_embedding_warmup(tmp_path):
    model = make_encoder()
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    phase = make_phase(steps=3, embedding_warmup_steps=3, objectives={"mlm": 1.0})
    trainer = train(tmp_path, phase, model=model, weight_decay=0.1)
    moved = {name for name, value in trainer.model.named_parameters() if not torch.equal(before[name], value)}
    assert moved == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}


def test_what_does_not_fit_the_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="the tokenizer has 65 pieces and the model 60 rows"):
        make_trainer(tmp_path, model=make_encoder(vocab_size=60))
    with pytest.raises(ConfigError, match="`row_length` is 64, the model's position table ends at 40"):
        make_trainer(tmp_path, row_length=64)
    with pytest.raises(ConfigError, match="position table ends at 39"):
        make_trainer(tmp_path, model=make_encoder("xlm-roberta"), row_length=40)


def relabelled(count, seed, shift):
    """Sentences with a strict grammar; language B is A with other words."""
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        start = rng.randrange(10)
        words = [WORDS[shift + (start + step) % 10] for step in range(rng.randint(6, 12))]
        rows.append({"text": " ".join(words)})
    return rows


def test_two_phases_beat_one_at_equal_budget_on_the_first_language(tmp_path):
    corpora = {
        code: build_corpus([relabelled(200, seed=index, shift=20 * index)], TOKENIZER, code)
        for index, code in enumerate(("a", "b"))
    }
    text = phase_text(corpora, 0, 0.2)
    first = PhaseText.of_corpora({"a": text.corpora["a"]}, {"a": text.held_out["a"]})
    held, settings = text.held_out, {"learning_rate": 3e-3, "per_device_train_batch_size": 8, "save_strategy": "no"}
    meta = make_phase(name="meta", steps=60, objectives={"mlm": 1.0})
    cross = make_phase(name="cross", steps=60, objectives={"mlm": 1.0}, alpha=1.0, floors={"b": 0.8})
    one = train(tmp_path / "meta", meta, text=first, model=make_encoder(dropout=False), **settings)
    before = one.evaluate(held)
    two = train(tmp_path / "cross", cross, text=text, model=one.model, **settings)
    after = two.evaluate(held)
    single_phase = make_phase(name="cross", steps=120, objectives={"mlm": 1.0}, alpha=1.0, floors={"b": 0.8})
    single = train(tmp_path / "single", single_phase, text=text, model=make_encoder(dropout=False), **settings)
    assert after["eval_a_loss"] < single.evaluate(held)["eval_a_loss"]
    assert after["eval_b_loss"] < before["eval_b_loss"] - 1.0
    assert all(math.isfinite(value) for key, value in after.items() if key.endswith("loss"))


def test_interruption_type_is_importable_for_users():
    assert issubclass(Interrupted, Exception) and Source("x").languages == ("all",)

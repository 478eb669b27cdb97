"""What passes from one pre-training phase to the next: moments of the optimizer, and rows of unseen pieces."""

import json

import pytest
import torch
from broken_shards import BROKEN, make_shards
from pretraining_setup import TOKENIZER, make_encoder, make_phase, make_trainer
from tiny import make_rows, same_weights
from transformers import TrainerCallback

from hf_xlt.errors import ConfigError, RunError
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.corpus import build_corpus
from hf_xlt.pretraining.loading import phase_text
from hf_xlt.pretraining.vocabulary import vocabulary_parameters
from hf_xlt.strategies.meta_pretraining.carry import CarriedMoments, last_checkpoint, parameter_names, read_moments
from hf_xlt.training.checkpoints import newest_complete

MLM = {"mlm": 1.0}


class State(TrainerCallback):
    """Keeps the optimizer's state by name, as it is before the first update."""

    def __init__(self):
        self.moments = None

    def on_step_begin(self, args, state, control, model=None, optimizer=None, **kwargs):
        if self.moments is None:
            names, saved = parameter_names(optimizer, model), optimizer.state_dict()["state"]
            self.moments = {
                names[number]: {key: value.clone() for key, value in entry.items()} for number, entry in saved.items()
            }
            self.rates = [group["lr"] for group in optimizer.param_groups]


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished phase: its folder, and its trainer."""
    folder = tmp_path_factory.mktemp("first")
    trainer = make_trainer(folder, make_phase(name="meta", steps=5, objectives=MLM), weight_decay=0.1)
    trainer.train()
    return folder, trainer


def second(folder, first, *, resume=None, watched=None, before=None, **changes):
    """Train a second phase from the first one's weights, with its moments."""
    source, trainer = first
    phase = make_phase(name="cross", steps=6, objectives=MLM, optimizer_carry=True, **changes)
    before = before or trainer.phase
    moments = CarriedMoments(phase, before, None if resume else last_checkpoint(source, before, phase))
    model = make_encoder()
    model.load_state_dict(trainer.model.state_dict())
    made = make_trainer(folder, phase, model=model, moments=moments, weight_decay=0.1)
    if watched is not None:
        made.add_callback(watched)
    made.train(resume_from_checkpoint=resume)
    return made


def end_of(first):
    """Return the moments of the first phase's end by name, straight from its optimizer."""
    _, trainer = first
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    return {names[id(parameter)]: entry for parameter, entry in trainer.optimizer.optimizer.state.items()}


def same_entries(one, two):
    return one.keys() == two.keys() and all(torch.equal(torch.as_tensor(one[key]), two[key]) for key in one)


def test_the_phase_starts_with_the_moments_of_the_end_of_the_one_before(tmp_path, first, capsys):
    watched, expected = State(), end_of(first)
    trainer = second(tmp_path, first, watched=watched)
    assert watched.moments.keys() == expected.keys() == {name for name, _ in trainer.model.named_parameters()}
    assert all(same_entries(entry, expected[name]) for name, entry in watched.moments.items())
    assert {int(entry["step"]) for entry in watched.moments.values()} == {5}
    assert (
        f"Phase cross: AdamW moments of {len(expected)} parameters are carried over, 0 start"
        in capsys.readouterr().out
    )
    # The schedule is the phase's own: a linear fall from the highest rate to 0.
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    assert watched.rates == [1e-3, 1e-3] and rates[0] == 1e-3 and trainer.lr_scheduler.get_last_lr()[0] == 0


@pytest.mark.parametrize("change", ["tokenizer", "redrawn rows"])
def test_embeddings_that_changed_start_anew(tmp_path, first, change):
    watched = State()
    changes = {"tokenizer": "new"} if change == "tokenizer" else {"before": make_phase(steps=5, unseen_rows="redraw")}
    trainer = second(tmp_path, first, watched=watched, **changes)
    dropped = set(vocabulary_parameters(trainer.model))
    assert dropped == {"bert.embeddings.word_embeddings.weight", "cls.predictions.bias"}
    assert watched.moments.keys() == end_of(first).keys() - dropped


def test_moments_of_another_shape_are_left_out(tmp_path, first):
    source, trainer = first
    phase = make_phase(name="cross", steps=2, objectives=MLM, optimizer_carry=True)
    watched = State()
    moments = CarriedMoments(phase, trainer.phase, last_checkpoint(source, trainer.phase, phase))
    made = make_trainer(tmp_path, phase, model=make_encoder(max_position_embeddings=50), moments=moments)
    made.add_callback(watched)
    made.train()
    assert end_of(first).keys() - watched.moments.keys() == {"bert.embeddings.position_embeddings.weight"}


def test_without_being_asked_nothing_is_carried_over(tmp_path, first):
    watched = State()
    trainer = make_trainer(tmp_path, make_phase(name="cross", steps=2, objectives=MLM))
    trainer.add_callback(watched)
    trainer.train()
    assert watched.moments == {}


def test_a_phase_with_carried_moments_resumes_with_its_own(tmp_path, first):
    whole = second(tmp_path / "whole", first)
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    resumed = second(tmp_path / "cut", first, resume=str(tmp_path / "cut" / "checkpoint-3"))
    assert same_weights(whole.model, resumed.model)
    plain = make_trainer(tmp_path / "plain", make_phase(name="cross", steps=6, objectives=MLM), weight_decay=0.1)
    plain.model.load_state_dict(first[1].model.state_dict())
    plain.train()
    assert not same_weights(whole.model, plain.model)


def test_names_follow_the_order_of_the_saved_optimizer(first):
    folder, _ = first
    moments, expected = read_moments(newest_complete(folder)), end_of(first)
    assert moments.keys() == expected.keys()
    assert all(same_entries(entry, expected[name]) for name, entry in moments.items())


def copy_of(first, folder):
    import shutil

    shutil.copytree(first[0], folder)
    return folder


def test_a_missing_or_earlier_checkpoint_is_refused(tmp_path, first):
    meta, cross = first[1].phase, make_phase(name="cross")
    with pytest.raises(ConfigError, match="of update 5 of phase `meta` in `empty`; there is no complete checkpoint"):
        last_checkpoint(tmp_path / "empty", meta, cross)
    folder = copy_of(first, tmp_path / "copy")
    (folder / "checkpoint-5" / "complete.json").unlink()
    with pytest.raises(
        ConfigError, match="the newest there is `checkpoint-3`. Set `optimizer_carry: false`, or start"
    ):
        last_checkpoint(folder, meta, cross)
    folder = copy_of(first, tmp_path / "without")
    (folder / "checkpoint-5" / "optimizer.pt").unlink()
    sealed = json.loads((folder / "checkpoint-5" / "complete.json").read_text())
    del sealed["files"]["optimizer.pt"]
    (folder / "checkpoint-5" / "complete.json").write_text(json.dumps(sealed))
    with pytest.raises(ConfigError, match="`checkpoint-5` has no `optimizer.pt`"):
        last_checkpoint(folder, meta, cross)


def test_a_checkpoint_that_names_no_parameters_or_is_damaged_is_refused(tmp_path, first):
    checkpoint = copy_of(first, tmp_path / "old") / "checkpoint-5"
    state = json.loads((checkpoint / "xlt_state.json").read_text())
    del state["values"]["optimizer"]
    (checkpoint / "xlt_state.json").write_text(json.dumps(state))
    with pytest.raises(ConfigError, match="`old/checkpoint-5` does not name its parameters: an earlier version"):
        read_moments(checkpoint)
    (checkpoint / "optimizer.pt").write_bytes((checkpoint / "optimizer.pt").read_bytes()[:1000])
    with pytest.raises(RunError, match="the optimizer in `old/checkpoint-5` cannot be read"):
        read_moments(checkpoint)


# ---- Rows of unseen pieces


def english(words=40):
    """Text that holds only some of the vocabulary's words."""
    rows = make_rows("en", 200, seed=0)
    for row in rows:
        row["text"] = " ".join(f"w{int(word[1:]) % words}" for word in row["text"].split())
    return phase_text({"en": build_corpus([rows], TOKENIZER, "the text")}, 0)


UNSEEN = torch.arange(45, 65)
SETTINGS = {"weight_decay": 0.1, "max_grad_norm": 0.01, "gradient_accumulation_steps": 2}


def rows_of(model):
    tables = {id(table): table for table in (model.get_input_embeddings(), model.get_output_embeddings())}
    return [table.weight.detach()[UNSEEN].clone() for table in tables.values()]


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("tied", [True, False])
def test_frozen_rows_end_the_phase_as_they_began_it(tmp_path, kind, tied):
    phase = make_phase(objectives=MLM, unseen_rows="freeze", steps=4)
    model = make_encoder(kind, tie_word_embeddings=tied)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    kept = rows_of(model)
    trainer = make_trainer(tmp_path, phase, text=english(), model=model, **SETTINGS)
    trainer.train()
    assert all(torch.equal(one, two) for one, two in zip(kept, rows_of(trainer.model), strict=True))
    unmoved = {name for name, value in trainer.model.named_parameters() if torch.equal(before[name], value)}
    # Untied, these heads have an output layer with a bias of its own, and leave their old bias out.
    assert unmoved <= ({"cls.predictions.bias", "lm_head.bias"} if not tied else set())
    table = trainer.model.get_input_embeddings().weight
    assert (trainer.optimizer.optimizer.state[table]["exp_avg"][UNSEEN] == 0).all()


def test_left_alone_they_move_together_and_shrink(tmp_path):
    model = make_encoder()
    kept = rows_of(model)[0]
    make_trainer(tmp_path, make_phase(objectives=MLM, steps=4), text=english(), model=model, **SETTINGS).train()
    assert not (rows_of(model)[0] == kept).all(dim=1).any()


def test_frozen_rows_do_not_count_in_the_clipped_norm(tmp_path):
    """The clipped gradient is that of the other parameters alone."""
    phase = make_phase(objectives=MLM, unseen_rows="freeze", steps=1)
    trainer = make_trainer(tmp_path, phase, text=english(), model=make_encoder(dropout=False))
    norms = []

    class Norm(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            norms.append(torch.stack([parameter.grad.norm() for parameter in model.parameters()]).norm())
            assert not model.get_input_embeddings().weight.grad[UNSEEN].any()

    trainer.add_callback(Norm())
    trainer.train()
    torch.testing.assert_close(float(norms[0]), min(trainer.state.log_history[0]["grad_norm"], 1.0), rtol=1e-4, atol=0)


@pytest.mark.parametrize("rows", ["leave", "freeze"])
def test_a_cut_phase_ends_with_the_same_rows(tmp_path, rows):
    phase = make_phase(objectives=MLM, unseen_rows=rows)
    whole = make_trainer(tmp_path / "whole", phase, text=english(), **SETTINGS)
    whole.train()
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-3").rename(tmp_path / "cut" / "checkpoint-3")
    resumed = make_trainer(tmp_path / "cut", phase, text=english(), model=make_encoder(seed=9), **SETTINGS)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-3"))
    assert same_weights(whole.model, resumed.model)
    logged = [
        {entry["step"]: entry["unseen_row_norm"] for entry in trainer.state.log_history if "unseen_row_norm" in entry}
        for trainer in (whole, resumed)
    ]
    assert logged[0] == logged[1] and list(logged[0]) == list(range(1, 9))
    assert (len(set(logged[0].values())) == 1) == (rows == "freeze")
    norm = whole.model.get_input_embeddings().weight.detach()[UNSEEN].norm(dim=1).mean()
    assert logged[0][8] == pytest.approx(float(norm), rel=1e-4)


def test_without_unseen_rows_no_norm_is_logged(tmp_path):
    trainer = make_trainer(tmp_path, make_phase(objectives=MLM, steps=2, unseen_rows="freeze"))
    trainer.train()
    assert not [entry for entry in trainer.state.log_history if "unseen_row_norm" in entry]


def test_what_needs_whole_parameters_is_refused_where_they_are_divided(tmp_path):
    from hf_xlt.strategies.meta_pretraining.fit import check_whole

    check_whole(make_phase(unseen_rows="redraw"))
    for changes, name in (
        ({"optimizer_carry": True}, "optimizer_carry"),
        ({"unseen_rows": "freeze"}, "unseen_rows: fre"),
    ):
        with pytest.raises(ConfigError, match=f"`{name}.*` does not work with FSDP or DeepSpeed"):
            check_whole(make_phase(**changes))


# ---- Skipped shards


def shards_text():
    stream = {"en": (make_shards(10), "text")}
    return PhaseText({}, streams=stream, sizes={"en": 450.0}, estimated=frozenset(stream), names={"en": "org/text"})


@pytest.fixture
def quick(monkeypatch):
    BROKEN.clear()
    monkeypatch.setattr("hf_xlt.pretraining.streaming._ATTEMPTS", 1)
    yield
    BROKEN.clear()


@pytest.mark.parametrize("workers", [0, 2])
def test_skipped_shards_are_logged_saved_and_resumed(tmp_path, workers, quick):
    BROKEN[4] = 3
    phase = make_phase(objectives=MLM, steps=20)
    settings = {"text": shards_text(), "dataloader_num_workers": workers, "max_failed_shards": 0.2}
    whole = make_trainer(tmp_path / "whole", phase, **settings)
    whole.train()
    counts = [entry.get("skipped_shards_en", 0) for entry in whole.state.log_history if "loss" in entry]
    assert counts == sorted(counts) and counts[-1] > counts[0]
    assert whole.phase_facts()["skipped_shards"] == {"en": counts[-1]}
    state = json.loads((tmp_path / "whole" / "checkpoint-20" / "data_state-rank0.json").read_text())
    assert sum(reader["en"]["skipped"] for reader in state["readers"].values()) == counts[-1]
    (tmp_path / "cut").mkdir()
    (tmp_path / "whole" / "checkpoint-9").rename(tmp_path / "cut" / "checkpoint-9")
    resumed = make_trainer(tmp_path / "cut", phase, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "cut" / "checkpoint-9"))
    assert same_weights(whole.model, resumed.model)
    assert resumed.streams.readers == whole.streams.readers and resumed.streams.skipped == whole.streams.skipped


@pytest.mark.parametrize("workers", [0, 2])
def test_too_many_failing_shards_end_training_in_one_line(tmp_path, workers, quick):
    BROKEN.update(dict.fromkeys(range(1, 9), 0))
    phase = make_phase(objectives=MLM, steps=8)
    trainer = make_trainer(tmp_path, phase, text=shards_text(), dataloader_num_workers=workers)
    with pytest.raises(RunError, match=r"^the text of `en`.* of 10 shards cannot be read") as caught:
        trainer.train()
    assert len(str(caught.value).splitlines()) == 1


def test_losses_of_several_readers_count_together(tmp_path, quick):
    BROKEN.update({4: 0, 5: 0})
    settings = {"text": shards_text(), "dataloader_num_workers": 2, "max_failed_shards": 0.1}
    trainer = make_trainer(tmp_path, make_phase(objectives=MLM, steps=12), **settings)
    with pytest.raises(RunError, match=r"^the text of `en`: 2 of 10 shards cannot be read \(the warnings say why\)"):
        trainer.train()

"""Distillation: which texts are drawn, what the teacher makes of them, what is kept of it, and the student's start."""

import dataclasses
import json

import numpy as np
import pytest
import torch
import yaml
from pretraining_setup import (
    STILL,
    TOKENIZER,
    make_encoder,
    make_phase,
    make_plan,
    make_text,
    make_trainer,
    make_world,
)
from safetensors.torch import load_file
from tiny import SPECIAL, WORDS, make_rows, make_tokenizer, same_weights, save_encoder
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast

from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.corpus import build_corpus
from hf_xlt.pretraining.distillation import DistillationTexts, TeacherText, TextSampler
from hf_xlt.pretraining.encoders import choose_layers, with_layers
from hf_xlt.pretraining.objectives import distances, distillation_losses, mean_pool
from hf_xlt.pretraining.teacher import Teacher, orthonormal_projection, plan_cache

LENGTH = 8


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return str(save_encoder(tmp_path_factory.mktemp("teacher") / "e", **STILL))


def phase_with(place, **changes):
    settings = {"objectives": {"distill": 1.0}, "teacher": place, "text_length": LENGTH, "steps": 6}
    return make_phase(**{**settings, **changes})


def text_with(teacher_tokenizer=TOKENIZER, **changes):
    text = make_text(**changes)
    corpora = {
        code: build_corpus([make_rows(code, 40, seed=index)], teacher_tokenizer, code, numbered_by=TOKENIZER)
        for index, code in enumerate(text.corpora)
    }
    return dataclasses.replace(text, teacher=TeacherText(teacher_tokenizer, corpora))


def texts_of(text, tokenizer=TOKENIZER, **changes):
    shares = dict.fromkeys(text.corpora, 1 / len(text.corpora))
    return DistillationTexts(text.corpora, shares, text.teacher, tokenizer, LENGTH, 0, "texts", **changes)


def caches(folder):
    return sorted(path.name for path in folder.glob("teacher-*"))


def stamps(folder):
    return {path: path.stat().st_mtime_ns for path in folder.glob("teacher-*/states-*.safetensors")}


def test_a_pass_reads_every_text_once_and_any_slice_is_the_same():
    text = make_text(("en",))
    sampler = TextSampler(text.corpora, {"en": 1.0}, 0)
    documents = sampler.draw(0, 80)[1]
    assert sorted(documents[:40]) == sorted(documents[40:]) == list(range(40))
    assert documents[:40].tolist() != documents[40:].tolist()
    assert sampler.draw(33, 20)[1].tolist() == documents[33:53].tolist()


def test_all_texts_are_those_of_the_batches():
    texts = texts_of(text_with())
    languages, documents = texts.all_texts(5, 4)
    known = set(zip(languages.tolist(), documents.tolist(), strict=True))
    drawn = {
        pair for slot in range(5) for pair in zip(*(part.tolist() for part in texts.batch_texts(slot, 4)), strict=True)
    }
    assert drawn <= known and len(known) == len(languages)


def test_targets_are_those_of_a_plain_computation(teacher, tmp_path):
    trainer = make_trainer(tmp_path, phase_with(teacher), text_with())
    trainer.get_train_dataloader()
    batch = trainer.batches.batch(0)
    assert "missing" not in batch
    model = AutoModel.from_pretrained(teacher).eval()
    ids, mask = batch["text_input_ids"], batch["text_attention_mask"]
    for row in range(len(ids)):
        own = ids[row][mask[row].bool()][None]
        with torch.no_grad():
            hidden = model(input_ids=own).last_hidden_state[0]
        torch.testing.assert_close(batch["teacher_vectors"][row].float(), hidden.mean(0), atol=2e-3, rtol=2e-3)
        inner = slice(1, len(own[0]) - 1)
        assert batch["state_mask"][row].tolist() == [0 < place < len(own[0]) - 1 for place in range(ids.shape[1])]
        torch.testing.assert_close(batch["teacher_states"][row, inner].float(), hidden[inner], atol=2e-3, rtol=2e-3)


def test_the_loss_is_that_of_the_formula(teacher, tmp_path):
    phase = phase_with(teacher, objectives={"distill": 2.0}, token_weight=0.5)
    trainer = make_trainer(tmp_path, phase, text_with(), make_encoder(dropout=False))
    trainer.get_train_dataloader()
    batch = trainer.batches.batch(0)
    loss = trainer.compute_loss(trainer.model, dict(batch))
    hidden = trainer.model.bert(batch["text_input_ids"], batch["text_attention_mask"]).last_hidden_state
    pooled = mean_pool(hidden, batch["text_attention_mask"])
    cosine = torch.nn.functional.cosine_similarity
    target = batch["teacher_vectors"].float()
    # BERT's own head reads the first state, so that has to hold the vector as well.
    vectors = (2 - cosine(pooled, target) - cosine(hidden[:, 0], target)) / 2
    chosen = batch["state_mask"]
    tokens = 1 - cosine(hidden[chosen], batch["teacher_states"][chosen].float())
    torch.testing.assert_close(loss, 2 * vectors.mean() + tokens.mean())


@pytest.mark.parametrize(("kind", "changes", "poolings"), [
    ("bert", {}, ("mean", "first")),
    ("modernbert", {"classifier_pooling": "mean"}, ("mean",)),
    ("modernbert", {"classifier_pooling": "cls"}, ("mean", "first")),
])  # fmt: skip
def test_the_place_that_the_own_head_reads_is_trained(teacher, tmp_path, kind, changes, poolings):
    assert make_trainer(tmp_path, phase_with(teacher), text_with(), make_encoder(kind, **changes)).poolings == poolings


def test_mse_and_cosine_distances():
    one, two = torch.tensor([[1.0, 0.0], [2.0, 0.0]]), torch.tensor([[0.0, 1.0], [4.0, 0.0]])
    assert distances(one, two, "cosine").tolist() == [1.0, 0.0]
    assert distances(one, two, "mse").tolist() == [1.0, 2.0]
    batch = {"text_attention_mask": torch.tensor([[1, 1, 0]]), "teacher_vectors": torch.tensor([[2.0, 0.0]])}
    hidden = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [9.0, 9.0]]])
    assert distillation_losses(hidden, batch, "mse", ("mean",))[0].tolist() == [0.0]
    assert distillation_losses(hidden, batch, "mse", ("mean", "first"))[0].tolist() == [0.25]


@pytest.mark.parametrize("match", ["cosine", "mse"])
def test_the_loss_falls_and_the_teacher_is_found(teacher, tmp_path, match):
    phase = phase_with(teacher, steps=60, match=match, texts=8)
    trainer = make_trainer(tmp_path, phase, text_with(), learning_rate=5e-3, save_strategy="no")
    trainer.train()
    log = [entry for entry in trainer.state.log_history if "loss_distill" in entry]
    assert log[-1]["loss_distill"] < 0.5 * log[0]["loss_distill"]
    assert log[-1]["loss_distill_tokens"] < 0.8 * log[0]["loss_distill_tokens"]


def test_the_parts_do_not_depend_on_accumulation(teacher, tmp_path):
    still, text = make_encoder(dropout=False), text_with()
    whole = make_trainer(tmp_path / "a", phase_with(teacher, steps=1), text, still)
    split = make_trainer(
        tmp_path / "b", phase_with(teacher, steps=1), text, make_encoder(dropout=False),
        gradient_accumulation_steps=2, per_device_train_batch_size=2,
    )  # fmt: skip
    for trainer in (whole, split):
        trainer.get_train_dataloader()
    # Texts are grouped by length within windows of batches, so the same ones are put into both.
    batch = whole.batches.batch(0)
    units = whole._units(batch)
    parts = [{name: value[rows] for name, value in batch.items()} for rows in (slice(0, 2), slice(2, 4))]
    full = whole.compute_loss(whole.model, dict(batch), num_items_in_batch=units)
    sums = sum(split.compute_loss(split.model, part, num_items_in_batch=units) for part in parts)
    torch.testing.assert_close(full, sums)


def test_states_are_kept_found_again_and_never_stale(teacher, tmp_path, capsys):
    text = text_with()
    make_trainer(tmp_path, phase_with(teacher), text).get_train_dataloader()
    assert "computed in" in capsys.readouterr().out
    first, before = caches(tmp_path), stamps(tmp_path)
    assert len(first) == 1 and before
    make_trainer(tmp_path, phase_with(teacher), text).get_train_dataloader()
    assert "found there" in capsys.readouterr().out
    assert caches(tmp_path) == first and stamps(tmp_path) == before
    # Longer texts, other texts and another teacher are computed anew, and what was there goes.
    make_trainer(tmp_path, phase_with(teacher, text_length=LENGTH + 2), text).get_train_dataloader()
    longer = caches(tmp_path)
    assert longer != first and len(longer) == 1
    make_trainer(tmp_path, phase_with(teacher), text_with(languages=("en", "de"))).get_train_dataloader()
    assert caches(tmp_path) not in (first, longer)
    other = save_encoder(tmp_path / "other", **STILL, initializer_range=0.05)
    make_trainer(tmp_path, phase_with(str(other)), text).get_train_dataloader()
    assert caches(tmp_path) not in (first, longer) and len(caches(tmp_path)) == 1


def test_a_computation_that_was_cut_short_goes_on(teacher, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("hf_xlt.pretraining.teacher.PART_TEXTS", 16)
    make_trainer(tmp_path, phase_with(teacher), text_with()).get_train_dataloader()
    whole = {path.name: path.read_bytes() for path in stamps(tmp_path)}
    assert len(whole) > 2
    lost = sorted(stamps(tmp_path))
    lost[1].unlink()
    lost[2].write_bytes(lost[2].read_bytes()[:50])
    kept = lost[0].stat().st_mtime_ns
    make_trainer(tmp_path, phase_with(teacher), text_with()).get_train_dataloader()
    assert {path.name: path.read_bytes() for path in stamps(tmp_path)} == whole
    assert lost[0].stat().st_mtime_ns == kept and not list(tmp_path.rglob("*.part"))


def test_the_cap_holds_and_what_is_left_out_is_computed_again(teacher, tmp_path, capsys):
    text = text_with()
    full = make_trainer(tmp_path / "full", phase_with(teacher), text)
    full.get_train_dataloader()
    size = full.batches.distillation.cache.bytes()
    capsys.readouterr()
    capped = make_trainer(tmp_path / "cap", phase_with(teacher, teacher_cache_gb=size / 2**31), text)
    capped.get_train_dataloader()
    cache = capped.batches.distillation.cache
    assert 0 < cache.kept < len(cache.documents) and cache.bytes() <= size / 2
    printed = capsys.readouterr().out
    assert f"leaves out {len(cache.documents) - cache.kept} of them" in printed and "reads again" in printed
    missing = 0
    for number in range(6):
        one, two = full.batches.batch(number), capped.batches.batch(number)
        if "missing" in two:
            missing += len(two["missing"])
            capped.teacher.complete(two, capped.batches.distillation)
        for name in ("teacher_vectors", "teacher_states"):
            torch.testing.assert_close(one[name], two[name], atol=2e-3, rtol=2e-3) if name == "teacher_vectors" else (
                torch.testing.assert_close(
                    one[name][one["state_mask"]], two[name][two["state_mask"]], atol=2e-3, rtol=2e-3
                )
            )
    assert missing
    none = make_trainer(tmp_path / "none", phase_with(teacher, teacher_cache_gb=0.0), text)
    none.train()
    assert not list((tmp_path / "none").rglob("states-*")) and none.state.global_step == 6


@pytest.mark.parametrize("cap", [2.0, 2e-6])
def test_resuming_ends_with_the_same_weights(teacher, tmp_path, cap):
    phase, text = phase_with(teacher, teacher_cache_gb=cap), text_with()
    whole = make_trainer(tmp_path / "whole", phase, text)
    whole.train()
    part = make_trainer(tmp_path / "whole", phase, text, make_encoder(seed=3))
    part.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same_weights(whole.model, part.model)


def test_another_teacher_in_the_same_place_is_no_way_to_go_on(tmp_path):
    phase, text = phase_with(str(save_encoder(tmp_path / "e"))), text_with()
    make_trainer(tmp_path, phase, text).train()
    save_encoder(tmp_path / "e", initializer_range=0.1)
    resumed = make_trainer(tmp_path, phase, text)
    with pytest.raises(ConfigError, match="started with another teacher"):
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


@pytest.mark.parametrize("width", [16, 48])
def test_another_width_takes_a_fixed_projection(teacher, tmp_path, width):
    student = make_encoder(hidden_size=width)
    trainer = make_trainer(tmp_path, phase_with(teacher, steps=40), text_with(), student, learning_rate=5e-3)
    trainer.get_train_dataloader()
    matrix = trainer.teacher.projection
    small = matrix @ matrix.T if width < 32 else matrix.T @ matrix
    torch.testing.assert_close(small, torch.eye(min(width, 32)), atol=1e-5, rtol=1e-5)
    assert trainer.batches.batch(0)["teacher_vectors"].shape[-1] == width
    trainer.train()
    log = [entry["loss_distill"] for entry in trainer.state.log_history if "loss_distill" in entry]
    assert log[-1] < 0.7 * log[0]
    # Read, and not made again, on the way back.
    again = make_trainer(tmp_path, phase_with(teacher, steps=40), text_with(), make_encoder(hidden_size=width))
    again.get_train_dataloader()
    assert torch.equal(again.teacher.projection, matrix)


def test_a_narrower_projection_keeps_the_directions_that_hold_most():
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((50, 3)) @ rng.standard_normal((3, 8))
    matrix = orthonormal_projection(vectors, 3)
    np.testing.assert_allclose(vectors @ matrix.T @ matrix, vectors, atol=1e-4)


def other_tokenizer():
    """One that shares every second piece under other ids, and reads others as unknown."""
    spec = json.loads(make_tokenizer().backend_tokenizer.to_str())
    pieces = [*SPECIAL, *reversed(WORDS[::2])]
    spec["model"]["vocab"] = {piece: index for index, piece in enumerate(pieces)}
    from tokenizers import Tokenizer

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    )  # fmt: skip


def test_token_states_are_matched_where_the_pieces_are_the_same():
    other = other_tokenizer()
    text = text_with(other)
    texts = texts_of(text)
    for document in range(10):
        own = TOKENIZER.convert_ids_to_tokens(texts.corpora[0].document(document)[: LENGTH - 2].tolist())
        same = texts.agreeing(0, document)
        expected = [piece in WORDS[::2] for piece in own]
        assert (same is None and not any(expected)) or same.tolist() == expected


def test_texts_keep_their_numbers_where_one_tokenizer_makes_nothing_of_some():
    rows = [{"id": str(place), "text": word} for place, word in enumerate(["w1", "​", "w2 w3", "w4"])]

    class Deaf:
        is_fast, unk_token_id = True, None

        def __len__(self):
            return len(TOKENIZER)

        def __call__(self, texts, **_):
            return {"input_ids": [[] if text == "w2 w3" else [7] for text in texts]}

    own = build_corpus([rows], TOKENIZER, "text")
    other = build_corpus([rows], Deaf(), "text", numbered_by=TOKENIZER)
    assert other.ids.tolist() == own.ids.tolist() and other.lengths[own.ids.tolist().index("2")] == 0


def test_layers_are_chosen():
    assert (
        choose_layers(4, 12) == [0, 4, 7, 11]
        and choose_layers(1, 12) == [0]
        and choose_layers(12, 12) == list(range(12))
    )
    assert choose_layers([0, 4, 8], 12) == [0, 4, 8]
    for asked in (0, 13, [], [3, 1], [1, 1], [0, 12]):
        with pytest.raises(ConfigError, match="student_layers"):
            choose_layers(asked, 12)


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_layers_are_copied_to_their_new_places(kind):
    model = make_encoder(kind, num_hidden_layers=5).eval()
    small = with_layers(model, [0, 2, 4]).eval()
    assert small.config.num_hidden_layers == 3 and model.config.num_hidden_layers == 5
    stack = {"bert": "bert.encoder.layer", "xlm-roberta": "roberta.encoder.layer", "modernbert": "model.layers"}[kind]
    own, other = small.state_dict(), model.state_dict()
    for name, tensor in own.items():
        place = name.removeprefix(f"{stack}.").split(".")[0]
        source = name.replace(f"{stack}.{place}.", f"{stack}.{2 * int(place)}.") if place.isdecimal() else name
        assert torch.equal(tensor, other[source]), name
    ids = torch.tensor([[2, 9, 11, 3]])
    assert small(ids).logits.isfinite().all()
    assert torch.equal(with_layers(model, 5).eval()(ids).logits, model(ids).logits)


def test_a_model_whose_layers_are_shared_is_refused():
    from transformers import AlbertConfig

    albert = AutoModelForMaskedLM.from_config(
        AlbertConfig(vocab_size=65, embedding_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                     intermediate_size=16)
    )  # fmt: skip
    with pytest.raises(ConfigError, match="cannot be taken one by one"):
        with_layers(albert, 1)


@pytest.mark.parametrize(("changes", "message"), [
    ({"teacher": None}, "`distill` needs `teacher`"),
    ({"match": "dot"}, "`match` is 'dot'"),
    ({"token_weight": -1.0}, "`token_weight` is -1.0"),
    ({"texts": 0}, "`texts` is 0"),
    ({"text_length": 3}, "`text_length` is 3"),
    ({"teacher_cache_gb": -1.0}, "`teacher_cache_gb` is -1.0"),
    ({"objectives": {"mlm": 1.0}}, "`teacher` is of the objective `distill`"),
])  # fmt: skip
def test_what_does_not_go_together_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        phase_with("somewhere", **changes)


def test_a_text_longer_than_the_teacher_reads_is_refused(teacher, tmp_path):
    with pytest.raises(ConfigError, match="`text_length` is 41, and the teacher takes 40 tokens"):
        make_trainer(tmp_path, phase_with(teacher, text_length=41), text_with())
    with pytest.raises(ConfigError, match="`held_out_share` reports a masked-LM loss"):
        make_trainer(tmp_path, phase_with(teacher), text_with(held_out_share=0.2))


def test_the_cache_counts_what_it_keeps(teacher):
    texts, phase = texts_of(text_with()), phase_with(teacher)
    cache = plan_cache(texts, 4, 4, 32, phase)
    tokens = sum(
        len(texts.frame.cut(texts.corpora[code].document(document), LENGTH)) for code, document in cache.texts(0, None)
    )
    assert cache.kept == len(cache.documents) and cache.bytes() == 2 * 32 * (cache.kept + tokens)
    assert Teacher(teacher, torch.device("cpu")).width == 32


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_world(tmp_path_factory.mktemp("pretraining"))


def plan_of(world, folder, teacher, training=None, **changes):
    phase = {"name": "distill", "steps": 4, "objectives": ["distill"], "teacher": teacher, "text_length": LENGTH}
    path = make_plan(world, folder, phases=[phase], model=teacher, tokenizer=None, student_layers=[1], **changes)
    plan = yaml.safe_load(open(path, encoding="utf-8"))
    plan["training"] |= training or {}
    with open(path, "w", encoding="utf-8") as file:
        yaml.safe_dump(plan, file)
    return path


def test_the_command_makes_a_smaller_encoder_and_says_of_whom(world, teacher, tmp_path, capsys):
    from pathlib import Path

    (Path(teacher) / "README.md").write_text("---\nlicense: mit\n---\n", encoding="utf-8")
    plan, out = plan_of(world, tmp_path, teacher), tmp_path / "out"
    assert main(["pretrain", "--config", plan, "--dry-run"]) == 0
    assert f"teacher: {teacher}" in capsys.readouterr().out and not out.exists()
    assert main(["pretrain", "--config", plan]) == 0
    model = AutoModel.from_pretrained(out)
    assert model.config.num_hidden_layers == 1
    assert AutoTokenizer.from_pretrained(out)("w1")["input_ids"] == TOKENIZER("w1")["input_ids"]
    record = json.loads((out / "xlt_run.json").read_text())
    assert record["data"]["distill"]["teacher"] == {"name": Path(teacher).name, "license": "mit"}
    assert str(Path(teacher).parent) not in json.dumps(record)
    card = (out / "README.md").read_text()
    assert f"teacher of phase `distill` is `{Path(teacher).name}`, license: mit" in card
    assert "fills in masked" not in card and 'pipeline("fill-mask"' not in card and "student_layers: [1]" in card
    # The same from the last checkpoint but one, bit for bit.
    before = load_file(out / "model.safetensors")
    (out / "phases.json").unlink()
    (out / "model.safetensors").unlink()
    import shutil

    shutil.rmtree(out / "checkpoint-4")
    assert main(["pretrain", "--config", plan, "--resume"]) == 0
    assert "found there" in capsys.readouterr().out
    assert same_weights(before, load_file(out / "model.safetensors"))
    # All of it is a run's own, and goes with it.
    assert main(["pretrain", "--config", plan, "--overwrite"]) == 0
    assert "was not written by a run" not in capsys.readouterr().out


def test_the_command_refuses_what_does_not_go_together(world, teacher, tmp_path, capsys):
    plan = plan_of(world, tmp_path, teacher)
    assert main(["pretrain", "--config", plan, "--total-steps", "4"]) == 2
    assert "divide a budget of equal updates" in capsys.readouterr().err
    assert main(["pretrain", "--config", plan, "--student-layers", "3"]) == 2
    assert "the model has 2 layers" in capsys.readouterr().err
    assert main(["pretrain", "--config", plan, "--student-layers", "a"]) == 2
    assert "give numbers of layers" in capsys.readouterr().err
    assert main(["pretrain", "--config", plan_of(world, tmp_path, teacher, {"held_out_share": 0.2})]) == 2
    assert "`held_out_share` reports" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

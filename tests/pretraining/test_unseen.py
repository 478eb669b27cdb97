"""Embeddings of pieces that the text does not hold: which they are, and how they are drawn anew."""

import numpy as np
import pytest
import torch
from pretraining_setup import TOKENIZER, make_config, make_encoder, make_phase, make_text
from tiny import SPECIAL

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.batches import PhaseText
from hf_xlt.pretraining.boundary import check_boundaries
from hf_xlt.pretraining.corpus import Subset, build_corpus
from hf_xlt.pretraining.plan import Source
from hf_xlt.pretraining.unseen import mean_norm, redraw_rows, seen_pieces
from hf_xlt.pretraining.vocabulary import vocabulary_parameters

ROWS = len(TOKENIZER) + 3


def text_of(*documents):
    corpus = build_corpus([[{"text": document} for document in documents]], TOKENIZER, "the text")
    return PhaseText.of_corpora({"en": Subset(corpus, np.arange(len(documents)))})


def seen_words(text):
    seen = seen_pieces(text, TOKENIZER, ROWS)
    return {TOKENIZER.convert_ids_to_tokens(int(number)) for number in seen.nonzero()[0]} - set(SPECIAL)


def test_seen_are_the_special_tokens_and_the_pieces_to_train_on():
    text = text_of("w1 w2", "w3", "w2 w4", "w5")
    seen = seen_pieces(text, TOKENIZER, ROWS)
    assert seen.shape == (ROWS,) and seen[: len(SPECIAL)].all() and not seen[-3:].any()
    assert seen_words(text) == {"w1", "w2", "w3", "w4", "w5"}
    held = PhaseText.of_corpora({"en": Subset(text.corpora["en"].corpus, np.array([0, 2]))})
    assert seen_words(held) == {"w1", "w2", "w4"}
    assert Subset(held.corpora["en"].corpus, np.arange(0)).pieces(ROWS).sum() == 0


def test_long_text_is_read_in_parts(monkeypatch):
    monkeypatch.setattr("hf_xlt.pretraining.corpus._TOKENS", 3)
    assert seen_words(text_of("w1 w2 w3 w4", "w5 w6 w7")) == {f"w{number}" for number in range(1, 8)}


def test_pieces_of_streamed_text_are_not_known():
    assert seen_pieces(PhaseText({}, streams={"en": (None, "text")}), TOKENIZER, ROWS) is None


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
@pytest.mark.parametrize("tied", [True, False])
def test_unseen_rows_are_drawn_like_the_seen_ones(kind, tied):
    model = make_encoder(kind, vocab_size=4000, tie_word_embeddings=tied)
    tables = vocabulary_parameters(model)
    assert sum(table.dim() == 2 for table in tables.values()) == (1 if tied else 2)
    assert any(table.dim() == 1 for table in tables.values())
    seen = np.zeros(4000, dtype=bool)
    seen[:2000] = True
    with torch.no_grad():
        for table in tables.values():
            table.mul_(3).add_(1)
            table[2000:] = 7
            table[0] = 100
    before = {name: table.detach().clone() for name, table in model.named_parameters()}
    assert redraw_rows(model, seen, seed=1) == 2000
    for name, table in tables.items():
        assert torch.equal(table[:2000], before[name][:2000])
        trained, drawn = table[1:2000].detach(), table[2000:].detach()
        if table.dim() == 1:
            torch.testing.assert_close(drawn, trained.mean().expand(2000))
        else:
            assert float((drawn.mean(0) - trained.mean(0)).abs().max()) < 0.01
            torch.testing.assert_close(drawn.std(0), trained.std(0), rtol=0.1, atol=0)
    assert all(torch.equal(before[name], value) for name, value in model.named_parameters() if name not in tables)


def test_drawn_rows_are_a_function_of_the_seed():
    seen = np.arange(65) < 40
    rows = []
    for seed in (1, 1, 2):
        model = make_encoder()
        redraw_rows(model, seen, seed)
        rows.append(model.get_input_embeddings().weight.detach()[40:])
    assert torch.equal(rows[0], rows[1]) and not torch.equal(rows[0], rows[2])


def test_without_a_seen_row_nothing_can_be_drawn():
    with pytest.raises(ConfigError, match="holds no piece of the vocabulary"):
        redraw_rows(make_encoder(), np.arange(65) == 0, 0)


def test_the_mean_norm_is_that_of_the_rows(monkeypatch):
    monkeypatch.setattr("hf_xlt.pretraining.unseen._ROWS", 2)
    table = torch.tensor([[3.0, 4.0], [9.0, 9.0], [0.0, 2.0], [0.0, 5.0]])
    assert mean_norm(table, torch.tensor([0, 2, 3])) == 4.0


STREAMED = (Source("x", streaming=True),)


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        ({"optimizer_carry": True}, {}, {}, "`a`: `optimizer_carry`: it is the first phase.* Leave it out"),
        ({}, {"optimizer_carry": True}, {"save_strategy": "no"}, "`save_strategy: no` there is none"),
        ({}, {"optimizer_carry": True}, {"optim": "adafactor"}, "works with `optim` adamw_torch .*; it is adafactor"),
        (
            {},
            {"optimizer_carry": True},
            {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 3},
            "`load_best_model_at_end` from the best one",
        ),
        ({"unseen_rows": "redraw"}, {}, {"new": False}, "`a`: `unseen_rows: redraw` is for a new encoder"),
        ({"tokenizer": "t"}, {"unseen_rows": "redraw"}, {}, r"`b`: .* does not go with a new tokenizer \(phase `a`\)"),
        ({"sources": STREAMED}, {"unseen_rows": "redraw"}, {}, r"`b`: .* streamed text \(phase `a`\)"),
    ],
)
def test_what_cannot_pass_a_boundary_is_refused(first, second, settings, message, tmp_path):
    own = {name: value for name, value in settings.items() if name != "new"}
    changes = {"a": first, "b": second}
    phases = [make_phase(name=name, objectives={"mlm": 1.0}, **changes[name]) for name in changes]
    with pytest.raises(ConfigError, match=message):
        check_boundaries(phases, make_config(tmp_path, **own), settings.get("new", True))


def test_what_can_pass_a_boundary_is_not_refused(tmp_path):
    phases = [make_phase(name="a", unseen_rows="redraw"), make_phase(name="b", optimizer_carry=True, tokenizer="t")]
    check_boundaries(phases, make_config(tmp_path), True)
    frozen = [make_phase(name="a", tokenizer="t"), make_phase(name="b", unseen_rows="freeze")]
    check_boundaries(frozen, make_config(tmp_path, save_strategy="no"), False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"unseen_rows": "freez"}, "`unseen_rows` is 'freez'; choose from leave, redraw, freeze"),
        ({"unseen_rows": "freeze", "sources": STREAMED}, "`unseen_rows: freeze` needs text that is not streamed"),
        ({"unseen_rows": "redraw", "sources": STREAMED}, "`unseen_rows: redraw` needs text that is not streamed"),
        ({"optimizer_carry": "yes"}, "`optimizer_carry` is 'yes'; it must be true or false"),
    ],
)
def test_values_that_a_phase_cannot_have_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_phase(objectives={"mlm": 1.0}, **changes)


def test_phases_of_before_keep_their_fingerprint():
    phase = make_phase()
    assert not {"optimizer_carry", "unseen_rows"} & phase.definition().keys()
    carried = make_phase(optimizer_carry=True, unseen_rows="freeze")
    assert carried.fingerprint() != phase.fingerprint()
    assert carried.changes_from(phase.definition()) == ["optimizer_carry", "unseen_rows"]
    assert phase.changes_from(carried.definition()) == ["optimizer_carry", "unseen_rows"]


def test_the_text_of_three_languages_has_no_unseen_piece():
    assert seen_pieces(make_text(), TOKENIZER, len(TOKENIZER)).all()

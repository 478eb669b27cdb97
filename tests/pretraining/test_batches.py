"""Batches of a phase: functions of their number, disjoint over processes, and packed without padding."""

import numpy as np
import pytest
import torch
from pretraining_setup import ALL_OBJECTIVES, TOKENIZER, make_phase, make_text

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.batches import BatchNumbers, Layout, PhaseBatches, batch_loader


def make_batches(phase=None, text=None, rows=4, rank=0, processes=1, length=16):
    layout = Layout(rows, length, rank, processes)
    return PhaseBatches(phase or make_phase(objectives=ALL_OBJECTIVES), text or make_text(), TOKENIZER, 0, layout)


def original(batch):
    """Undo the masking."""
    return torch.where(batch["labels"] != -100, batch["labels"], batch["input_ids"])


def test_a_batch_is_a_function_of_its_number():
    text = make_text()
    expected = [make_batches(text=text).batch(number) for number in range(20)]
    other = make_batches(text=text)
    for number in (19, 3, 0, 11):
        batch = other.batch(number)
        assert all(torch.equal(batch[name], expected[number][name]) for name in expected[number])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_gives_batches_in_order_and_skips_by_number(workers):
    from accelerate import skip_first_batches

    batches = make_batches()
    expected = [make_batches().batch(number) for number in range(6)]
    loader = batch_loader(BatchNumbers(batches, 6, workers, {}), workers)
    for found, wanted in zip(skip_first_batches(loader, 3), expected[3:], strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize(("rows", "processes"), [(2, 4), (4, 2), (2, 2)])
def test_splitting_an_update_does_not_change_its_rows(rows, processes):
    phase, text = make_phase(objectives={"mlm": 1.0, "tlm": 1.0}), make_text()
    whole = make_batches(phase, text, rows=8)
    parts = [make_batches(phase, text, rows=rows, rank=rank, processes=processes) for rank in range(processes)]
    steps = 8 // (rows * processes)
    for update in range(5):
        together = whole.batch(update)
        split = [parts[rank].batch(update * steps + step) for step in range(steps) for rank in range(processes)]
        for name in ("input_ids", "labels", "objective"):
            assert torch.equal(torch.cat([batch[name] for batch in split]), together[name])


def test_contrastive_pairs_of_processes_are_disjoint_and_cover_the_stream():
    phase, text = make_phase(objectives={"contrastive": 1.0}), make_text(documents=400)
    seen = []
    for rank in range(2):
        batches = make_batches(phase, text, rank=rank, processes=2)
        seen.append([tuple(row.tolist()) for number in range(8) for row in batches.batch(number)["pair_input_ids"]])
    alone = make_batches(phase, text)
    together = [tuple(row.tolist()) for number in range(16) for row in alone.batch(number)["pair_input_ids"]]
    assert sorted(seen[0] + seen[1]) == sorted(together)


def test_rows_hold_one_language_each_and_no_padding():
    text = make_text()
    batches = make_batches(make_phase(objectives={"mlm": 1.0}), text)
    documents = {}
    for code, subset in text.corpora.items():
        for index in range(len(subset.lengths)):
            documents.setdefault(tuple(subset.document(index).tolist()), set()).add(code)
    for number in range(10):
        ids = original(batches.batch(number))
        assert (ids != TOKENIZER.pad_token_id).all() and (ids[:, 0] == TOKENIZER.cls_token_id).all()
        for row in ids.tolist():
            inner = " ".join(map(str, row[1:])).split(f" {TOKENIZER.sep_token_id} ")[1:-1]
            codes = [documents[tuple(map(int, part.split()))] for part in inner if part]
            assert not codes or set.intersection(*codes)


def test_special_tokens_are_never_masked_and_masks_change_between_passes():
    batches = make_batches(make_phase(objectives={"mlm": 1.0}), make_text(("en",), documents=3), rows=64)
    batch = batches.batch(0)
    special = torch.isin(original(batch), torch.tensor(sorted(set(TOKENIZER.all_special_ids))))
    assert (batch["labels"][special] == -100).all()
    rows = {}
    for row, labels in zip(original(batch).tolist(), batch["labels"].tolist(), strict=True):
        rows.setdefault(tuple(row), []).append(tuple(labels))
    repeated = [labels for labels in rows.values() if len(labels) > 1]
    assert repeated and all(len(set(labels)) > 1 for labels in repeated)


def test_objectives_are_marked_and_shared_out():
    batches = make_batches(make_phase(objectives={"mlm": 1.0, "tlm": 1.0}, tlm_share=0.25), rows=64)
    share = torch.cat([batches.batch(number)["objective"] for number in range(20)]).float().mean()
    assert 0.2 < share < 0.3


def test_tlm_rows_hold_translations():
    text = make_text(("en", "de"))
    ids = original(make_batches(make_phase(objectives={"tlm": 1.0}), text, length=40).batch(0))
    sides = {
        code: {tuple(subset.document(index).tolist()): str(index) for index in range(len(subset.lengths))}
        for code, subset in text.corpora.items()
    }
    for row in ids.tolist():
        parts = [
            tuple(map(int, part.split()))
            for part in " ".join(map(str, row[1:])).split(f" {TOKENIZER.sep_token_id} ")[1:-1]
        ]
        numbers = [{sides[code].get(part) for code in sides} - {None} for part in parts]
        adjacent = sum(bool(one & two) for one, two in zip(numbers, numbers[1:], strict=False))
        assert adjacent >= (len(parts) - 1) // 2


def test_counts_per_language_are_those_of_the_batches():
    text = make_text()
    batches = make_batches(make_phase(objectives={"mlm": 1.0, "tlm": 1.0}), text, rows=8)
    rows = batches.rows_before(5)
    counted = batches.rows_per_language(rows)
    mlm = sum(int((batches.batch(number)["objective"] == 0).sum()) for number in range(5))
    assert rows == 40 and sum(counted.values()) == mlm
    assert batches.rows_per_language(0) == dict.fromkeys(text.corpora, 0)


def test_a_small_language_is_repeated_in_new_orders():
    text = make_text(("en", "de"), documents=40)
    small = make_text(("de",), documents=2)
    text.corpora["de"], text.sizes["de"] = small.corpora["de"], small.sizes["de"]
    batches = make_batches(make_phase(objectives={"mlm": 1.0}, alpha=0.0), text, rows=64)
    batches.batch(20)
    packer = batches._packers["mlm de"]
    assert batches.rows_per_language(64 * 20)["de"] * packer.body / packer.tokens_per_pass > 100
    assert {tuple(packer._pass(number)[0]) for number in range(20)} == {(0, 1), (1, 0)}


def test_pairs_are_cut_and_padded():
    batch = make_batches(make_phase(objectives={"contrastive": 1.0}, pair_length=6)).batch(0)
    ids, mask = batch["pair_input_ids"], batch["pair_attention_mask"]
    assert ids.shape == mask.shape and ids.shape[0] == 8 and ids.shape[1] <= 6
    assert (ids[mask == 0] == TOKENIZER.pad_token_id).all()
    lengths = mask.sum(1)
    assert (ids[np.arange(8), lengths - 1] == TOKENIZER.sep_token_id).all()


def test_tokens_that_a_tokenizer_lacks_are_named():
    from tiny import make_tokenizer

    tokenizer = make_tokenizer()
    tokenizer.mask_token = None
    with pytest.raises(ConfigError, match="mask"):
        PhaseBatches(make_phase(), make_text(), tokenizer, 0, Layout(4, 16))

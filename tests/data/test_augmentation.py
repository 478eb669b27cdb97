"""The stage between reading and encoding: copies, reads that are functions of (seed, epoch, row), resuming."""

import functools
import pickle

import pytest
import torch
from contexts import make_context
from datasets import ClassLabel, Dataset, concatenate_datasets
from tiny import CLASSES, WORDS, make_rows, make_tokenizer

from hf_xlt.data.augmentation import (
    COPIES,
    EQUAL_UPDATES,
    OFFLINE,
    ONLINE,
    Augmentation,
    OnlineDataset,
    join_features,
)
from hf_xlt.data.labels import LabelInventory
from hf_xlt.data.rewriting import WordAugmenter
from hf_xlt.errors import Interrupted
from hf_xlt.registry import get_strategy
from hf_xlt.tasks import Encoding, get_task
from hf_xlt.training.phases import run_phases

COLUMNS = {"text": "text", "label": "label"}


class Shift(WordAugmenter):
    """Replaces half of the words by the next word of the vocabulary."""

    def __init__(self, share=0.5):
        self.share = share

    def rewrite(self, word, random, *, one_word):
        return WORDS[(WORDS.index(word) + 1) % len(WORDS)] if random.random() < self.share else word


def encode(table, encoding):
    return get_task("text-classification").encode(table, encoding)


def encoder(columns=COLUMNS):
    encoding = Encoding(make_tokenizer(), columns, LabelInventory(CLASSES), 32, "toy data")
    return functools.partial(encode, encoding=encoding)


def make(mode, copies=1, seed=0, augmenter=None):
    return Augmentation(lambda: augmenter or Shift(), mode, copies, seed, describe=str)


def table(count=44, language="en", pair=False):
    return Dataset.from_list(make_rows(language, count, 0, pair))


def ids(features):
    return [row["input_ids"] for row in (features[index] for index in range(len(features)))]


def online(seed=0, count=44, augmenter=None):
    return make(ONLINE, seed=seed, augmenter=augmenter).encode(table(count), COLUMNS, "en", encoder())


def test_offline_data_are_exactly_so_many_copies_of_each_example_with_its_label():
    rows = table()
    features = make(OFFLINE, copies=5).encode(rows, COLUMNS, "en", encoder())
    plain = encoder()(rows)
    assert len(features) == 5 * len(rows) and features.column_names == plain.column_names
    assert features["labels"][:] == plain["labels"][:] * 5
    assert [len(row) for row in features["input_ids"]] == [len(row) for row in plain["input_ids"]] * 5
    copies = [features["input_ids"][start : start + len(rows)] for start in range(0, len(features), len(rows))]
    assert all(one != two for number, one in enumerate(copies) for two in copies[:number])
    assert all(copy != plain["input_ids"][:] for copy in copies)


def test_offline_copies_are_a_function_of_the_seed_and_the_language():
    one, same, other_seed, other_language = (
        ids(make(OFFLINE, copies=2, seed=seed).encode(table(), COLUMNS, language, encoder()))
        for seed, language in ((0, "en"), (0, "en"), (1, "en"), (0, "de"))
    )
    assert one == same and one != other_seed and one != other_language


def test_the_baselines_are_unchanged_copies_and_unchanged_data():
    plain = encoder()(table())
    copies = make(COPIES, copies=3).encode(table(), COLUMNS, "en", encoder())
    assert ids(copies) == ids(plain) * 3
    equal = make(EQUAL_UPDATES, copies=3).encode(table(), COLUMNS, "en", encoder())
    assert ids(equal) == ids(plain)


def test_other_columns_and_their_types_pass_through():
    seen, rows = [], table().cast_column("label", ClassLabel(names=list(CLASSES)))
    make(OFFLINE).encode(rows, COLUMNS, "en", lambda changed: seen.append(changed) or encoder()(changed))
    assert seen[0].features == rows.features
    unchanged = [name for name in rows.column_names if name != "text"]
    assert seen[0].select_columns(unchanged)[:] == rows.select_columns(unchanged)[:]
    assert seen[0]["text"][:] != rows["text"][:]


def test_equal_rows_are_drawn_independently():
    rows = Dataset.from_list([{"text": "w1 w2 w3 w4 w5 w6 w7 w8", "label": 0}] * 20)
    assert len({tuple(row) for row in ids(make(OFFLINE).encode(rows, COLUMNS, "en", encoder()))}) > 10
    assert len({tuple(row) for row in ids(make(ONLINE).encode(rows, COLUMNS, "en", encoder()))}) > 10


def test_an_item_is_a_function_of_seed_epoch_and_row():
    data, again = online(), online()
    first = ids(data)
    # In another order, in batches, by another process's copy: the same text.
    order = torch.randperm(44, generator=torch.Generator().manual_seed(0)).tolist()
    assert [row["input_ids"] for row in again.__getitems__(order)] == [first[index] for index in order]
    assert ids(pickle.loads(pickle.dumps(online()))) == first
    assert data[-1] == data[43] and data.__getitems__([5, 5])[0] == data.__getitems__([5])[0]
    assert first != ids(online(seed=1))
    data.set_epoch(1)
    second = ids(data)
    assert second != first and data.epoch == 1
    assert sum(one != two for one, two in zip(first, second, strict=True)) > 30
    data.set_epoch(0)
    assert ids(data) == first


def test_items_are_features_as_the_task_encodes_them():
    data, plain = online(augmenter=Shift(share=0.0)), encoder()(table())
    assert data.column_names == plain.column_names and len(data) == len(plain)
    assert [data[index] for index in range(len(data))] == [plain[index] for index in range(len(plain))]
    assert data["length"][:] == plain["length"][:]


def test_shots_are_joined_without_being_augmented():
    shots = encoder()(table(9, "de"))
    joined = join_features([online(), shots, online(seed=2)])
    assert isinstance(joined, OnlineDataset) and len(joined) == 44 + 9 + 44
    assert ids(joined)[44:53] == ids(shots)
    assert ids(joined)[:44] == ids(online()) and ids(joined)[53:] == ids(online(seed=2))
    assert [row["input_ids"] for row in joined.__getitems__([90, 45, 3])] == [ids(joined)[n] for n in (90, 45, 3)]
    plain = join_features([shots, shots])
    assert ids(plain) == ids(concatenate_datasets([shots, shots])) and join_features([shots]) is shots


def split_in_windows(rows, width=4):
    """Encode texts as windows of a few words, as tasks with long inputs do."""
    made = {"input_ids": [], "length": []}
    for text in rows["text"]:
        words = text.split()
        for start in range(0, len(words), width):
            made["input_ids"].append([WORDS.index(word) for word in words[start : start + width]])
            made["length"].append(len(made["input_ids"][-1]))
    return Dataset.from_dict(made)


def test_windows_of_a_split_row_come_from_one_draw_of_its_text():
    data = make(ONLINE).encode(table(), COLUMNS, "en", split_in_windows)
    windows = split_in_windows(table())
    assert len(data) == len(windows) > len(table())
    whole = data.parts[0].rows.augment(table(), 0)
    assert ids(data) == ids(split_in_windows(whole)) != ids(windows)


class Insert(WordAugmenter):
    """Puts a word before half of the words, so that answers move."""

    def rewrite(self, word, random, *, one_word):
        return f"w59 {word}" if random.random() < 0.5 else word


@pytest.mark.parametrize("mode", [OFFLINE, ONLINE])
def test_questions_are_labelled_with_the_answer_where_it_moved(mode):
    columns = {"question": "question", "context": "context", "answers": "answers"}
    rows = []
    for row in make_rows("en", 30, 0):
        context = f"{row['text']} w50 w51 {row['text']}"
        answers = {"text": ["w50 w51"], "answer_start": [context.index("w50 w51")]}
        rows.append({"question": "w7 w8", "context": context, "answers": answers})
    rows = Dataset.from_list(rows)
    encoding = Encoding(make_tokenizer(), columns, None, 16, "toy data", overlap=2)
    encode_rows = functools.partial(get_task("question-answering").encode, encoding=encoding)
    data = make(mode, augmenter=Insert()).encode(rows, columns, "en", encode_rows)
    assert ids(data) != ids(encode_rows(rows)) and len(encode_rows(rows)) > len(rows)
    vocabulary, found = make_tokenizer().get_vocab(), 0
    for number in range(len(data)):
        start, end = (data[number][name] for name in ("start_positions", "end_positions"))
        if start:
            tokens = data[number]["input_ids"][start : end + 1]
            assert tokens == [vocabulary["w50"], vocabulary["w51"]]
            found += 1
    assert found >= 20


class Lengthen(WordAugmenter):
    """Doubles or deletes words, by the epoch's draw."""

    def rewrite_text(self, text, random):
        return f"{text} {text}" if random.random() < 0.5 else text.split()[0]


def test_a_row_that_augmentation_lengthens_or_shortens_is_still_read():
    data = make(ONLINE, augmenter=Lengthen()).encode(table(), COLUMNS, "en", split_in_windows)
    assert len(ids(data)) == len(split_in_windows(table())) and all(ids(data))


# ---- In training


def train(folder, data, *, stop=None, resume=False, **changes):
    """Train with any strategy's trainer on online data; return the inputs of every update."""
    folder.mkdir(exist_ok=True)
    settings = {"max_steps": 11, "save_steps": 8, "seed": 5, **changes}
    context = make_context(get_strategy("finetune"), folder, **settings)
    context.training, seen, original = data, {}, context.build_trainer

    def build(*args, **kwargs):
        trainer = original(*args, **kwargs)
        step = trainer.training_step

        def watched(model, inputs, *rest):
            update = trainer.state.global_step
            seen.setdefault(update, []).append(inputs["input_ids"].tolist())
            context.flag.raised = context.flag.raised or update + 1 == stop
            return step(model, inputs, *rest)

        trainer.training_step = watched
        return trainer

    context.build_trainer = build
    if stop is None:
        run_phases(context, folder, resume=resume)
    else:
        with pytest.raises(Interrupted):
            run_phases(context, folder, resume=False)
    return seen


WORKERS = {
    "no workers": {},
    "workers": {"dataloader_num_workers": 2},
    "persistent workers": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True},
}


@pytest.mark.parametrize("workers", WORKERS.values(), ids=WORKERS)
def test_a_run_resumed_within_an_epoch_reads_the_same_text(tmp_path, workers):
    # 44 examples in batches of 8 are 6 updates, so update 8 lies in the second epoch.
    whole = train(tmp_path / "whole", online())
    assert train(tmp_path / "cut", online(), stop=8, **workers) == {number: whole[number] for number in range(8)}
    resumed = train(tmp_path / "cut", online(), resume=True, **workers)
    assert resumed == {number: whole[number] for number in range(8, 11)}


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_every_epoch_has_text_of_its_own_and_resuming_keeps_it(tmp_path, strategy):
    settings = {"train_sampling_strategy": strategy, "max_steps": 14}
    whole = train(tmp_path / "whole", online(), **settings)
    epochs = [
        sorted([token for token in row if token] for number in numbers for batch in whole[number] for row in batch)
        for numbers in (range(6), range(6, 12))
    ]
    expected = []
    for epoch in (0, 1):
        data = online()
        data.set_epoch(epoch)
        expected.append(sorted(ids(data)))
    assert epochs == expected and epochs[0] != epochs[1]
    for stop in (6, 9):
        train(tmp_path / f"cut {stop}", online(), stop=stop, **settings)
        resumed = train(tmp_path / f"cut {stop}", online(), resume=True, **settings)
        assert resumed == {number: whole[number] for number in range(stop, 14)}


def test_data_without_a_change_train_the_plain_model(tmp_path):
    plain = train(tmp_path / "plain", encoder()(table()))
    assert train(tmp_path / "online", online(augmenter=Shift(share=0.0))) == plain

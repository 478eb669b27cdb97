"""A checkpoint counts once it is sealed, and only while it is whole."""

import pytest

from hf_xlt.training.checkpoints import (
    COMPLETE_NAME,
    is_complete,
    list_checkpoints,
    newest_complete,
    remove_incomplete,
    rotate,
    seal,
)


def make(folder, step, sealed=True):
    path = folder / f"checkpoint-{step}"
    (path / "global_step1").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * step)
    (path / "global_step1" / "xlt_state.json").write_text("{}")
    if sealed:
        seal(path)
    return path


def test_an_unsealed_folder_does_not_count(tmp_path):
    make(tmp_path, 2)
    make(tmp_path, 4, sealed=False)
    assert newest_complete(tmp_path).name == "checkpoint-2"


@pytest.mark.parametrize("damage", ["truncate", "delete", "grow", "seal"])
def test_a_damaged_folder_does_not_count(tmp_path, damage):
    path = make(tmp_path, 3)
    weights = path / "model.safetensors"
    if damage == "truncate":
        weights.write_bytes(weights.read_bytes()[:-1])
    elif damage == "grow":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif damage == "delete":
        (path / "global_step1" / "xlt_state.json").unlink()
    else:
        (path / COMPLETE_NAME).write_text('{"files":')
    assert not is_complete(path) and newest_complete(tmp_path) is None


def test_folders_are_ordered_by_step_and_not_by_name(tmp_path):
    for step in (10, 2, 100):
        make(tmp_path, step)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-2", "checkpoint-10", "checkpoint-100"]


def test_only_incomplete_folders_are_removed(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2, sealed=False)
    (tmp_path / "checkpoint-best").mkdir()
    assert [path.name for path in remove_incomplete(tmp_path)] == ["checkpoint-2"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-best"]


@pytest.mark.parametrize(
    ("limit", "best", "kept"),
    [
        (None, None, [1, 2, 3, 4]),
        (2, None, [3, 4]),
        (1, None, [4]),
        (1, 2, [2, 4]),
        (3, 1, [1, 3, 4]),
        (9, None, [1, 2, 3, 4]),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, limit, best, kept):
    for step in (1, 2, 3, 4):
        make(tmp_path, step)
    rotate(tmp_path, limit, tmp_path / f"checkpoint-{best}" if best else None)
    assert [path.name for path in list_checkpoints(tmp_path)] == [f"checkpoint-{step}" for step in kept]


def test_rotation_leaves_an_incomplete_folder_to_the_resuming_run(tmp_path):
    make(tmp_path, 1)
    make(tmp_path, 2, sealed=False)
    rotate(tmp_path, 1, None)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["checkpoint-1", "checkpoint-2"]

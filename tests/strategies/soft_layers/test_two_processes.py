"""Two processes: the gates of one, exact gradients included, by the command that really starts two."""

import json
import os

import pytest
from contexts import STILL
from test_processes import launch
from tiny import save_encoder, write_data

from hf_xlt.cli.main import main

LINE = (
    "--strategy soft-layers --model encoder --dataset data/{split}.{lang}.jsonl --auxiliary-languages sw,zh "
    "--auxiliary-dataset data/{split}.{lang}.jsonl --max-steps 6 --optim sgd --learning-rate 0.2 --disable-tqdm "
    "--threads 1 --save-strategy no --inner-steps 3 --meta-gradient exact --mode online --init-logit 0 "
    "--logging-steps 1"
)


def test_two_processes_learn_the_gates_of_one(tmp_path):
    save_encoder(tmp_path / "encoder", **STILL)
    # Neither the query batch nor the data of an auxiliary language fit two processes evenly.
    write_data(tmp_path / "data", train=45)
    shared = f"{LINE} --auxiliary-batch-size 7"
    two = f"{shared} --per-device-train-batch-size 4 --output-dir two"
    done = launch(two.split(), tmp_path, launcher=["--multi_gpu", "--num_processes", "2"])
    assert done.returncode == 0, done.stderr[-3000:]
    previous = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main(["run", *f"{shared} --per-device-train-batch-size 8 --output-dir one".split()]) == 0
    finally:
        os.chdir(previous)
    one, other = (json.loads((tmp_path / name / "gates.json").read_text()) for name in ("one", "two"))
    assert one["gates"] == pytest.approx(other["gates"], rel=1e-3) and one["learned"]["updates"] == 2
    assert len(set(one["gates"])) == len(one["gates"])
    for group in one["groups"]:
        means = [side["evidence"][group]["mean_gradient"] for side in (one, other)]
        assert means[0] == pytest.approx(means[1], rel=1e-2, abs=1e-7)

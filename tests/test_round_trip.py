"""Run -> card -> push -> fresh process, empty cache -> plain `AutoModelFor…`: the same model, bit for bit.

For every strategy, by the commands that a user types; one process makes and pushes all runs, another one loads them.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hub_server import LoopbackHub
from huggingface_hub import HfApi
from records import make_record
from strategy_runs import NEEDS, run_command, write_world
from tiny import CLASSES, make_model, make_tokenizer

from hf_xlt.hub import push
from hf_xlt.model_cards.card import check
from hf_xlt.modelling.saving import save_final
from hf_xlt.record import RunRecord
from hf_xlt.registry import STRATEGIES

ROOT = Path(__file__).resolve().parent.parent
BASE = "user/tiny-encoder"
ADAPTER = "user/adapter"

MAKER = """
import json, sys
from hf_xlt.cli.main import main

for arguments in json.load(open(sys.argv[1])):
    if main(arguments) != 0:
        sys.exit(f"failed: {arguments}")
"""

# What a stranger does with nothing but the repository's name; the run's folder serves for comparison only.
STRANGER = """
import contextlib, io, json, sys
import torch
torch.set_num_threads(1)
from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

seen = {}
for repo_id, (folder, snippet, labels) in json.load(open(sys.argv[1])).items():
    tokenizer, printed, space = AutoTokenizer.from_pretrained(repo_id), io.StringIO(), {}
    with contextlib.redirect_stdout(printed):
        exec(compile(snippet, "README.md", "exec"), space)
    saved = load_file(folder + "/model.safetensors")
    inputs = tokenizer("w1 w2 w59", return_tensors="pt")
    entry = seen[repo_id] = {"answer": printed.getvalue(), "ids": inputs["input_ids"][0].tolist()}
    if labels is None:
        model, report = AutoModelForSequenceClassification.from_pretrained(repo_id, output_loading_info=True)
        loaded = model.state_dict()
        entry["keys"] = [sorted(saved), sorted(loaded)]
        entry["differing"] = [name for name in saved if loaded[name].dtype != saved[name].dtype
                              or not torch.equal(loaded[name], saved[name])]
        entry["misfits"] = sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"],
                                            *report["mismatched_keys"]]))
        entry["labels"] = [model.config.id2label[index] for index in range(model.config.num_labels)]
        continue
    merged = AutoModelForSequenceClassification.from_pretrained(folder)
    by_peft = AutoPeftModelForSequenceClassification.from_pretrained(repo_id, num_labels=len(labels))
    with torch.no_grad():
        wanted, *given = (model.eval()(**inputs).logits for model in (merged, space["model"], by_peft))
    entry["distances"] = [float((logits - wanted).abs().max()) for logits in given]
    entry["labels"] = [space["model"].config.id2label[index] for index in range(len(labels))]
print(json.dumps(seen))
"""


def environment(hub, folder):
    """The environment of a fresh process whose Hub is `hub`, with an empty cache in `folder`."""
    import os

    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    switches = ("DISABLE_XET", "DISABLE_TELEMETRY", "DISABLE_PROGRESS_BARS", "DISABLE_UPDATE_CHECK")
    return {
        **kept,
        **{f"HF_HUB_{name}": "1" for name in switches},
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": "hf_good",
        "HF_HOME": str(folder / "home"),
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
    }


def in_fresh_process(script, value, hub, folder, cwd):
    """Run a script, with a JSON value as its input file, and return the last line that it prints."""
    folder.mkdir()
    (folder / "input.json").write_text(json.dumps(value))
    done = subprocess.run(
        [sys.executable, "-c", script, str(folder / "input.json")],
        env=environment(hub, folder),
        cwd=cwd,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout.splitlines()[-1]


def card_of(hub, repo_id):
    return hub.store.files(repo_id)["README.md"].decode()


def snippet_of(card):
    return re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Every strategy's run, and one with LoRA, made and pushed by one process and loaded by another."""
    folder = tmp_path_factory.mktemp("round-trip")
    write_world(folder)
    with LoopbackHub() as hub:
        api = HfApi(endpoint=hub.url, token="hf_good")
        api.create_repo(BASE)
        api.upload_folder(repo_id=BASE, folder_path=folder / "encoder")
        commands = []
        for name in NEEDS:
            commands += [run_command(name, name), ["push", name, f"user/{name}"]]
        commands += [
            run_command("finetune", "lora", "--peft lora --lora-rank 4", model=BASE),
            ["push", "lora", "user/merged"],
            ["push", "lora", ADAPTER, "--adapter", "--tag", "v1"],
        ]
        in_fresh_process(MAKER, commands, hub, folder / "maker", folder)
        asked = {f"user/{name}": (name, snippet_of(card_of(hub, f"user/{name}")), None) for name in NEEDS}
        asked["user/merged"] = ("lora", snippet_of(card_of(hub, "user/merged")), None)
        asked[ADAPTER] = ("lora", snippet_of(card_of(hub, ADAPTER)), CLASSES)
        seen = json.loads(in_fresh_process(STRANGER, asked, hub, folder / "stranger", folder))
        assert not hub.store.unknown
        yield hub, folder, seen


def test_every_strategy_makes_the_round():
    assert set(NEEDS) == set(STRATEGIES)


@pytest.mark.parametrize("repo_id", [*(f"user/{name}" for name in NEEDS), "user/merged"])
def test_a_pushed_run_comes_back_bit_for_bit_and_its_snippet_runs(world, repo_id):
    hub, _, answers = world
    seen = answers[repo_id]
    assert seen["keys"][0] == seen["keys"][1] and seen["differing"] == [] and seen["misfits"] == []
    assert seen["labels"] == list(CLASSES)
    assert seen["ids"] == make_tokenizer()("w1 w2 w59")["input_ids"]
    # The snippet's own answer: one label and score for a text in a target language.
    assert re.fullmatch(r"\[\{'label': '(bad|good|plain)', 'score': 0\.\d+\}\]\n", seen["answer"])
    card = card_of(hub, repo_id)
    assert check(card) == [] and "# German" in card and "](results.png)" in card
    assert "results.png" in hub.store.files(repo_id)


def test_an_adapter_loads_into_its_base_model_by_transformers_and_by_peft(world):
    hub, folder, answers = world
    seen, files, card = answers[ADAPTER], hub.store.files(ADAPTER), card_of(hub, ADAPTER)
    assert max(seen["distances"]) < 1e-5 and len(seen["distances"]) == 2
    assert seen["labels"] == list(CLASSES) and "'label': " in seen["answer"]
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "xlt_run.json"} <= set(files)
    assert not {"model.safetensors", "config.json"} & set(files)
    assert check(card) == []
    for line in ("base_model: user/tiny-encoder", "base_model_relation: adapter", "library_name: peft", "- lora"):
        assert f"\n{line}\n" in card.split("\n---\n")[0]
    assert f"A LoRA adapter for [{BASE}]" in card and "pip install peft" in card
    assert [name for name in hub.store.repos[ADAPTER].refs if "tags" in name] == ["refs/tags/v1"]
    # The run's own card is that of the merged model, and stays.
    assert "merged in" in (folder / "lora" / "README.md").read_text()


def test_what_the_strategy_learned_is_told(world):
    hub, folder, _ = world
    gates = json.loads((folder / "soft-layers" / "gates.json").read_text())
    card = card_of(hub, "user/soft-layers")
    moved = RunRecord.read(folder / "soft-layers").phases[-1]["soft_layers"]["movement"]
    for group, gate in zip(gates["groups"], gates["gates"], strict=True):
        ratio, share = gates["evidence"][group]["signal_to_noise"], 100 * moved[group]["displacement"]
        assert f"| {group.replace('_', ' ')} | {gate:.3f} | {share:.3g} % | {ratio:.1f} |" in card
    assert "](gates.png)" in card and "gates.png" in hub.store.files("user/soft-layers")
    assert "Mean cosine" in card_of(hub, "user/xmaml")
    assert "12 labelled target examples" in card_of(hub, "user/metaxl")


def test_weights_in_several_parts_arrive_whole(hub, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    save_final(make_model(seed=5, **labels), make_tokenizer(), folder)
    make_record().write(folder)
    # Small enough parts to send the weights in several.
    hub.store.multipart_above, hub.store.part_size = 20_000, 30_000
    push(folder, "user/parts", private=True, api=HfApi(endpoint=hub.url, token="hf_good"))
    assert len(hub.store.requests("PUT", "/part/")) > 1
    assert hub.store.files("user/parts")["model.safetensors"] == (folder / "model.safetensors").read_bytes()

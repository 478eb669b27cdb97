"""Run directory -> push -> fresh process, empty cache -> plain `AutoModelFor…`: the same model, bit for bit."""

import json
import re
import subprocess
import sys

from huggingface_hub import HfApi
from records import make_record
from tiny import CLASSES, make_model, make_tokenizer

from hf_xlt.hub import push
from hf_xlt.models import save_final

REPO = "user/topic-robust"

# What a stranger does with nothing but the repository's name; the run's folder serves for comparison only.
STRANGER = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

repo_id, folder, snippet = sys.argv[1:]
model, report = AutoModelForSequenceClassification.from_pretrained(repo_id, output_loading_info=True)
saved, loaded = load_file(folder + "/model.safetensors"), model.state_dict()
tokenizer = AutoTokenizer.from_pretrained(repo_id)
exec(compile(snippet, "README.md", "exec"), {})
print(json.dumps({
    "keys": [sorted(saved), sorted(loaded)],
    "differing": [name for name in saved if loaded[name].dtype != saved[name].dtype
                  or not torch.equal(loaded[name], saved[name])],
    "misfits": sorted(map(str, [*report["missing_keys"], *report["unexpected_keys"], *report["mismatched_keys"]])),
    "labels": [model.config.id2label[index] for index in range(model.config.num_labels)],
    "ids": tokenizer("w1 w2 w59")["input_ids"],
}))
"""


def test_a_pushed_model_comes_back_bit_for_bit(hub, hub_env, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    labels = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: i for i, name in enumerate(CLASSES)}}
    save_final(make_model(seed=5, **labels), make_tokenizer(), folder)
    make_record().write(folder)
    # Small enough parts to send the weights in several.
    hub.store.multipart_above, hub.store.part_size = 20_000, 30_000
    push(folder, REPO, private=True, api=HfApi(endpoint=hub.url, token="hf_good"))
    assert len(hub.store.requests("PUT", "/part/")) > 1

    card = hub.store.files(REPO)["README.md"].decode()
    snippet = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, REPO, str(folder), snippet],
        env=hub_env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    *answer, last = done.stdout.splitlines()
    seen = json.loads(last)
    assert seen["keys"][0] == seen["keys"][1] and seen["differing"] == []
    assert seen["misfits"] == []
    assert seen["labels"] == list(CLASSES)
    assert seen["ids"] == make_tokenizer()("w1 w2 w59")["input_ids"]
    # The snippet's own answer: one label and score for a text in a target language.
    assert re.fullmatch(r"\[\{'label': '(bad|good|plain)', 'score': 0\.\d+\}\]", "".join(answer))
    assert hub.store.requests("GET", f"/{REPO}/resolve/") and hub.store.requests("GET", "^/_lfs/")

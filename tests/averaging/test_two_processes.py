"""The callback in a stock Trainer on two processes: one writes, all end with the same weights."""

import json
from pathlib import Path

from test_processes import launch

SCRIPT = """
import json, sys
from pathlib import Path
sys.path[:0] = {path!r}
import torch
from safetensors.torch import load_file
from averaging_training import WatchingTrainer, make_trainer
from tiny import same_weights
from hf_xlt import CheckpointAveragingCallback
from hf_xlt.averaging import callback as module

def train(name, checkpoint=None):
    callback = CheckpointAveragingCallback(every=2, evaluate_average=True, resume_from=checkpoint)
    trainer = make_trainer(Path(name), trainer_cls=WatchingTrainer, per_device_train_batch_size=4, max_steps=6,
                           save_steps=3, eval_strategy="steps", eval_steps=4, eval_count=6)
    callback.attach(trainer)
    trainer.train(resume_from_checkpoint=checkpoint)
    return callback, trainer

writes, write_model = [], module.write_model
module.write_model = lambda *args: (writes.append(1), write_model(*args))
callback, trainer = train("whole")
saved = load_file("whole/averaged/model.safetensors")
resumed = train("resumed", "whole/checkpoint-3")[1]
facts = {{
    "processes": trainer.args.world_size,
    "steps": callback.steps,
    "writes": len(writes),
    "in_memory": same_weights(trainer.model, saved),
    "resumed": same_weights(resumed.model, saved),
    "evaluated": not same_weights(trainer.seen[4], trainer.model),
    "seen": [float(value.double().sum()) for value in trainer.seen[4].values()],
}}
Path(f"facts-{{trainer.args.process_index}}.json").write_text(json.dumps(facts))
"""


def test_one_process_writes_and_all_end_with_the_average(tmp_path):
    tests = Path(__file__).resolve().parent.parent
    (tmp_path / "averaging_script.py").write_text(SCRIPT.format(path=[str(tests)]))
    done = launch([], tmp_path, launcher=["--multi_gpu", "--num_processes", "2"], module="averaging_script")
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"facts-{rank}.json").read_text()) for rank in (0, 1))
    assert first["processes"] == second["processes"] == 2
    assert (first["steps"], second["steps"]) == ([2, 4, 6], [])
    assert (first["writes"], second["writes"]) == (2, 0)
    assert first["in_memory"] and second["in_memory"] and first["resumed"] and second["resumed"]
    assert first["evaluated"] and first["seen"] == second["seen"]
    assert sorted(path.name for path in (tmp_path / "whole").iterdir()) == ["averaged", "checkpoint-3", "checkpoint-6"]

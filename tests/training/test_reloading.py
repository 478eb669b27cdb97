"""A resumed run, and a selected checkpoint, hold just the weights that were saved, whatever files call them."""

import shutil

import pytest
import torch
from architectures import WHOLE_LIBRARY, save_model
from safetensors.torch import load_file, save_file
from tiny import CLASSES, make_features, make_tokenizer, same_weights
from transformers import DataCollatorWithPadding, TrainerCallback, set_seed

from hf_xlt.adapters import wrap
from hf_xlt.data.labels import LabelInventory
from hf_xlt.errors import RunError
from hf_xlt.models import ModelSource
from hf_xlt.peft_arguments import PeftArguments
from hf_xlt.tasks import get_task
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.trainer import XLTTrainer

# transformers saves all of these under other names, or in other pieces, than it holds in memory; `legacy` is a BERT
# whose file calls the layer norms `gamma` and `beta`.
RENAMED = (
    "legacy",
    "gte",
    "gemma3_text",
    "qwen3_moe",
    "mixtral",
    "deepseek_v3",
    "esm",
    "nomic_bert",
    "jina_embeddings_v3",
)
# It seeds the generators anew from outside in every training pass, which a run tells.
UNREPEATABLE = {"reformer"}


def folder_of(kind, root):
    """Save a tiny model as its files are found on the Hub."""
    if kind != "legacy":
        return save_model(kind, root / "model")
    folder = save_model("bert", root / "model")
    path = folder / "model.safetensors"
    names = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    old = load_file(path)
    save_file({_renamed(name, names): value for name, value in old.items()}, path, {"format": "pt"})
    return folder


def _renamed(name, names):
    for new, legacy in names.items():
        name = name.replace(new, legacy)
    return name


class Keep(TrainerCallback):
    """Keeps the weights of the first update."""

    def on_save(self, args, state, control, model=None, **kwargs):
        """Copy them once."""
        if state.global_step == 1:
            self.weights = {name: value.clone() for name, value in model.state_dict().items()}


def make_trainer(source, folder, keep=None, adapted=False):
    task = get_task("text-classification")
    # Adapters keep the frozen head that they began with beside the trained one.
    set_seed(0)
    model = source.load(task, LabelInventory(CLASSES))
    if adapted:
        model = wrap(model, PeftArguments(peft="lora"), task, seed=0)
    tokenizer = make_tokenizer()
    features = [{name: row[name] for name in ("input_ids", "attention_mask", "labels")} for row in make_features(16)]
    config = XLTConfig(
        output_dir=str(folder),
        max_steps=2,
        save_steps=1,
        save_strategy="steps",
        per_device_train_batch_size=4,
        learning_rate=0.01,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    return XLTTrainer(
        model=model,
        args=config,
        train_dataset=features,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
        callbacks=[keep] if keep else [],
    )


def check_reloads(kind, root, adapted=False):
    """Train two updates in one go and in two, and select the first."""
    source = ModelSource(str(folder_of(kind, root)), None, pad_token_id=0)
    keep = Keep()
    whole = make_trainer(source, root / "out", keep, adapted)
    whole.train()
    resumed = make_trainer(source, root / "out", adapted=adapted)
    resumed.train(resume_from_checkpoint=str(root / "out" / "checkpoint-1"))
    assert same_weights(whole.model, resumed.model)
    assert not same_weights(whole.model, keep.weights)
    whole.state.best_model_checkpoint = str(root / "out" / "checkpoint-1")
    whole._load_best_model()
    assert same_weights(whole.model, keep.weights)


@pytest.mark.parametrize("kind", RENAMED)
def test_resuming_and_selecting_give_the_weights_that_were_saved(kind, tmp_path):
    check_reloads(kind, tmp_path)


@pytest.mark.parametrize("kind", RENAMED)
def test_so_do_adapters(kind, tmp_path):
    check_reloads(kind, tmp_path, adapted=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", sorted(set(WHOLE_LIBRARY["text-classification"]) - set(RENAMED) - UNREPEATABLE))
def test_every_architecture_resumes_and_selects(kind, tmp_path):
    try:
        make_trainer(ModelSource(str(folder_of(kind, tmp_path)), None, pad_token_id=0), tmp_path / "try").train()
    except Exception as error:
        # Whether such a model trains at all is the matter of the tests on architectures.
        pytest.skip(f"does not train: {type(error).__name__}")
    shutil.rmtree(tmp_path / "model")
    check_reloads(kind, tmp_path)


@pytest.mark.parametrize("change", ["missing", "unexpected"])
@pytest.mark.parametrize("how", ["resume", "select"])
def test_a_checkpoint_that_is_not_wholly_the_models_stops(change, how, tmp_path):
    source = ModelSource(str(folder_of("bert", tmp_path)), None)
    trainer = make_trainer(source, tmp_path / "out")
    trainer.train()
    checkpoint = tmp_path / "out" / "checkpoint-1"
    tensors = load_file(checkpoint / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    tensors |= {"another.weight": torch.zeros(1)} if change == "unexpected" else {}
    save_file(
        {key: value for key, value in tensors.items() if change == "unexpected" or key != name},
        checkpoint / "model.safetensors",
        {"format": "pt"},
    )
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    with pytest.raises(RunError, match=name if change == "missing" else "another.weight"):
        if how == "select":
            trainer.state.best_model_checkpoint = str(checkpoint)
            trainer._load_best_model()
        else:
            trainer._load_from_checkpoint(str(checkpoint))
    assert same_weights(trainer.model, before)

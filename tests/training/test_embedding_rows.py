"""Training on the rows of word embeddings whose tokens occur gives what training on all rows gives."""

import json

import numpy as np
import pytest
import torch
from contexts import make_context
from datasets import Dataset, IterableDataset
from safetensors.torch import load_file
from tiny import make_features, make_model, make_tokenizer, same_weights, save_encoder, write_data
from transformers import AutoModel, AutoModelForSequenceClassification, BertForMaskedLM, TrainerCallback
from two_processes import in_two_processes

from hf_xlt.averaging import CheckpointAveragingCallback
from hf_xlt.averaging.arguments import AverageArguments
from hf_xlt.cli.main import main
from hf_xlt.errors import ConfigError, Interrupted, RunError
from hf_xlt.modelling.seen_rows import SeenRows, embedding_to_cut
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.strategies.xmaml.config import XMAMLConfig
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.embedding_rows import ELEMENTWISE, seen_ids, special_ids
from hf_xlt.training.phases import run_phases
from hf_xlt.training.trainer import XLTTrainer

NAME = "bert.embeddings.word_embeddings.weight"
# The tokenizer has 65 tokens, and 5 special ones; all other rows are idle.
ROWS = 300
DECAYS = [
    {"weight_decay": 0.5, "learning_rate": 0.01},
    {"weight_decay": 0.1, "learning_rate": 0.1, "optim": "sgd", "optim_args": "momentum=0.9"},
]
CUT = [name for name in STRATEGIES if name != "meta-pretrain"]
ROBUST = {"method": "adv", "epsilon": 0.3, "eps_mode": "relative", "steps": 2}


def train(name, folder, rows, *, resume=False, **settings):
    """Run a strategy over the tiny data; without clipping unless told otherwise."""
    folder.mkdir(exist_ok=True)
    fields = {"max_grad_norm": 0.0, "embedding_rows": rows, "model": {"vocab_size": ROWS}, **settings}
    if name == "xmaml":
        fields["meta_max_grad_norm"] = fields["max_grad_norm"]
    averaging = fields.pop("averaging", None)
    context = make_context(get_strategy(name), folder, **fields)
    context.averaging = averaging
    return run_phases(context, folder, resume=resume)[0]


def both(name, tmp_path, **settings):
    return [train(name, tmp_path / rows, rows, **settings) for rows in ("all", "seen")]


def weights_of(trainer):
    return trainer.bare_model().state_dict()


def idle_rows(features):
    used = {token for row in features for token in row["input_ids"]} | set(range(5))
    return torch.tensor([token for token in range(ROWS) if token not in used])


# ---- Equal, bit for bit


@pytest.mark.parametrize("name", CUT)
def test_the_final_weights_are_equal_bit_for_bit(name, tmp_path):
    own = ROBUST if name == "robust" else {}
    first, second = both(name, tmp_path, **own)
    assert second.embedding_rows.weight is second.bare_model().get_input_embeddings().weight
    assert len(second.embedding_rows.ids) < 70
    assert same_weights(first.bare_model(), second.bare_model())
    assert same_weights(load_file(tmp_path / "all/model.safetensors"), load_file(tmp_path / "seen/model.safetensors"))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("finetune", {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}),
        ("finetune", {"optim": "sgd", "learning_rate": 0.1}),
        ("finetune", {"optim": "adamw_torch"}),
        ("finetune", {"neftune_noise_alpha": 5.0}),
        ("finetune", {"bf16": True}),
        ("finetune", {"activation_checkpointing": True}),
        ("finetune", {"train_sampling_strategy": "group_by_length"}),
        ("robust", {"method": "rs_rp", "epsilon": 0.3}),
        ("robust", {"method": "freelb", "epsilon": 0.3, "steps": 2, "perturb_special_tokens": False}),
        ("soft-layers", {"mode": "online", "inner_steps": 2, "audit_episodes": 0}),
        ("soft-layers", {"profile": "auto_rgn"}),
        ("xmaml", {"order": "second", "inner_learning_rate": 0.1}),
        ("metaxl", {"hypergrad": "finite_difference"}),
    ],
    ids=str,
)
def test_it_is_equal_under_other_settings(name, settings, tmp_path):
    if name == "metaxl" or settings.get("profile"):
        # Norms over more zeros round otherwise.
        first, second = both(name, tmp_path, **settings)
        for key, value in weights_of(first).items():
            torch.testing.assert_close(weights_of(second)[key], value, rtol=1e-4, atol=1e-5)
        return
    assert same_weights(*(trainer.bare_model() for trainer in both(name, tmp_path, **settings)))


def test_with_clipping_it_is_equal_up_to_the_rounding_of_one_norm(tmp_path):
    first, second = both("finetune", tmp_path, max_grad_norm=0.05, optim="sgd", learning_rate=0.5)
    for name, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[name], value, rtol=1e-5, atol=1e-7)


# ---- Weight decay


@pytest.mark.parametrize(
    ("name", "settings"), [*((name, DECAYS[0]) for name in CUT), ("finetune", DECAYS[1]), ("soft-layers", DECAYS[1])]
)
def test_idle_rows_get_the_decay_of_all_updates(name, settings, tmp_path):
    first, second = both(name, tmp_path, **settings)
    start = make_model(vocab_size=ROWS).state_dict()[NAME]
    idle = idle_rows(make_features(44))
    one, two = weights_of(first), weights_of(second)
    # X-MAML meta-trains without decay, after a stage that has it.
    assert not torch.equal(one[NAME][idle], start[idle])
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("mode", ["uniform", "last_k", "ema"])
def test_an_average_takes_the_decay_of_each_snapshot(mode, tmp_path):
    own = {"last_k": {"average_last_k": 2}, "ema": {"average_ema_decay": 0.7}}.get(mode, {})
    averaging = AverageArguments(average=True, average_mode=mode, average_every="2", **own)
    first, second = both("finetune", tmp_path, averaging=averaging, **DECAYS[0])
    last = load_file(tmp_path / "seen/last/model.safetensors")[NAME]
    assert not torch.equal(last, weights_of(second)[NAME])
    for key, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[key], value, rtol=2e-6, atol=1e-8)


def test_gated_decay_is_averaged(tmp_path):
    settings = {"gate_values": '{"word_embeddings": 0.3}', "averaging": AverageArguments(average=True), **DECAYS[0]}
    first, second = both("soft-layers", tmp_path, **settings)
    for key, value in weights_of(first).items():
        torch.testing.assert_close(weights_of(second)[key], value, rtol=2e-6, atol=1e-8)


def test_an_average_that_the_callback_writes_is_whole(tmp_path):
    for rows in ("all", "seen"):
        args = XLTConfig(str(tmp_path / rows), embedding_rows=rows, max_steps=4, use_cpu=True, **DECAYS[0])
        trainer = XLTTrainer(model=make_model(vocab_size=ROWS), args=args, train_dataset=make_features())
        CheckpointAveragingCallback(every=1).attach(trainer)
        trainer.processing_class = make_tokenizer()
        trainer.data_collator = make_collator()
        trainer.train()
    one, two = (load_file(tmp_path / rows / "averaged/model.safetensors") for rows in ("all", "seen"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)


def make_collator():
    from transformers import DataCollatorWithPadding

    return DataCollatorWithPadding(make_tokenizer())


# ---- What methods read of the whole matrix


def test_the_relative_radius_is_that_of_the_whole_matrix(tmp_path):
    norms = [trainer._reference_norm for trainer in both("robust", tmp_path, **ROBUST)]
    assert norms[0] == norms[1] is not None


def test_reported_movement_is_that_of_the_whole_matrix(tmp_path):
    found = [
        trainer.phase_facts()["soft_layers"]["movement"]
        for trainer in both("soft-layers", tmp_path, mode="online", inner_steps=1, **DECAYS[0])
    ]
    assert found[0]["word_embeddings"]["displacement"] > 0
    assert found[1]["word_embeddings"] == pytest.approx(found[0]["word_embeddings"], rel=1e-2)


class Look(TrainerCallback):
    """Keeps what the gates see of the weights after each update."""

    def __init__(self):
        self.seen = []

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Look."""
        from hf_xlt.strategies.soft_layers.source import features_of

        self.seen.append(features_of([model.get_input_embeddings().weight], {}, 0.0, 0.0, 0.0))


def test_features_of_gates_see_the_norm_of_the_whole_matrix(tmp_path):
    looks = []
    for rows in ("all", "seen"):
        args = XLTConfig(str(tmp_path / rows), embedding_rows=rows, max_steps=3, use_cpu=True, **DECAYS[0])
        looks.append(Look())
        XLTTrainer(
            model=make_model(vocab_size=ROWS),
            args=args,
            train_dataset=make_features(),
            processing_class=make_tokenizer(),
            callbacks=[looks[-1]],
        ).train()
    np.testing.assert_allclose(looks[1].seen, looks[0].seen, rtol=1e-5)


# ---- Checkpoints


def test_every_checkpoint_is_whole_and_its_optimizer_small(tmp_path):
    first, second = both("finetune", tmp_path, **DECAYS[0])
    assert second.state.global_step == 6
    for step in (2, 4, 6):
        one, two = (
            AutoModelForSequenceClassification.from_pretrained(tmp_path / rows / f"checkpoint-{step}").state_dict()
            for rows in ("all", "seen")
        )
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=2e-6, atol=1e-8)
        assert (
            AutoModel.from_pretrained(tmp_path / f"seen/checkpoint-{step}").get_input_embeddings().weight.shape[0]
            == ROWS
        )
        state = torch.load(tmp_path / f"seen/checkpoint-{step}/optimizer.pt", weights_only=True)["state"]
        sizes = {tuple(entry["exp_avg"].shape) for entry in state.values()}
        assert (len(second.embedding_rows.ids) + 1, 32) in sizes and (ROWS, 32) not in sizes


def test_nothing_is_left_in_the_folder(tmp_path):
    both("finetune", tmp_path)
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == sorted(
        path.name for path in (tmp_path / "seen").iterdir()
    )


@pytest.mark.parametrize(
    ("name", "settings"),
    [("finetune", {}), ("finetune", DECAYS[1]), ("soft-layers", DECAYS[0]), ("averaging", DECAYS[0])],
)
def test_interrupted_and_resumed_equals_uninterrupted(name, settings, tmp_path):
    whole = train(name, tmp_path / "whole", "seen", **settings)
    cut = tmp_path / "cut"
    cut.mkdir()
    fields = {"max_grad_norm": 0.0, "embedding_rows": "seen", "model": {"vocab_size": ROWS}, **settings}
    context = make_context(get_strategy(name), cut, **fields)
    build = context.build_trainer

    def build_and_interrupt(*args, **kwargs):
        trainer = build(*args, **kwargs)
        step = trainer.training_step

        def counted(*step_args):
            context.flag.raised = context.flag.raised or trainer.state.global_step + 1 == 3
            return step(*step_args)

        trainer.training_step = counted
        return trainer

    context.build_trainer = build_and_interrupt
    with pytest.raises(Interrupted):
        run_phases(context, cut, resume=False)
    resumed = train(name, cut, "seen", resume=True, **settings)
    assert same_weights(whole.bare_model(), resumed.bare_model())


class Killed(Exception):
    """Stands for a process that is gone."""


class Kill(TrainerCallback):
    """Ends a training from outside."""

    def on_step_end(self, args, state, control, **kwargs):
        """Raise after the fifth update."""
        if state.global_step == 5:
            raise Killed


def test_a_training_that_died_leaves_a_whole_model_and_goes_on(tmp_path):
    settings = {"embedding_rows": "seen", "save_steps": 2, "max_steps": 6, "use_cpu": True, **DECAYS[0]}

    def make(folder, callbacks=()):
        return XLTTrainer(
            model=make_model(vocab_size=ROWS),
            args=XLTConfig(str(folder), **settings),
            train_dataset=make_features(),
            processing_class=make_tokenizer(),
            callbacks=list(callbacks),
        )

    whole = make(tmp_path / "whole")
    whole.train()
    died = make(tmp_path / "cut", [Kill()])
    with pytest.raises(Killed):
        died.train()
    assert died.model.get_input_embeddings().weight.shape == (ROWS, 32)
    died.model(input_ids=torch.tensor([[ROWS - 1]]))
    again = make(tmp_path / "cut")
    again.train(resume_from_checkpoint=True)
    assert same_weights(whole.model, again.model)


def test_a_checkpoint_resumes_into_another_start(tmp_path):
    """All weights are then the checkpoint's, those of idle rows as well."""
    for rows in ("all", "seen"):
        settings = {"embedding_rows": rows, "save_steps": 2, "max_steps": 4, "use_cpu": True, **DECAYS[0]}
        for seed, checkpoint in ((0, None), (1, str(tmp_path / rows / "checkpoint-2"))):
            trainer = XLTTrainer(
                model=make_model(seed, vocab_size=ROWS),
                args=XLTConfig(str(tmp_path / rows), **settings),
                train_dataset=make_features(),
                processing_class=make_tokenizer(),
            )
            trainer.train(checkpoint)
        trainer.save_model(str(tmp_path / rows / "end"))
    one, two = (load_file(tmp_path / rows / "end/model.safetensors") for rows in ("all", "seen"))
    torch.testing.assert_close(two[NAME][idle_rows(make_features())], one[NAME][idle_rows(make_features())])


def test_a_selected_checkpoint_is_put_back_whole(tmp_path):
    settings = {
        "load_best_model_at_end": True,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "metric_for_best_model": "eval_avg_loss",
        # The highest loss is that of an early checkpoint.
        "greater_is_better": True,
        **DECAYS[0],
    }
    first, second = both("finetune", tmp_path, **settings)
    best = second.state.best_model_checkpoint
    assert not best.endswith("checkpoint-6")
    assert best.rsplit("/", 1)[1] == first.state.best_model_checkpoint.rsplit("/", 1)[1]
    saved = load_file(f"{best}/model.safetensors")
    assert all(torch.equal(saved[key], value) for key, value in weights_of(second).items())


@pytest.mark.parametrize(("before", "after"), [("all", "seen"), ("seen", "all")])
def test_a_checkpoint_of_the_other_setting_is_refused(before, after, tmp_path):
    def make(rows):
        args = XLTConfig(str(tmp_path), embedding_rows=rows, max_steps=2 if rows == before else 4, use_cpu=True)
        args.save_steps = 2
        return XLTTrainer(
            model=make_model(vocab_size=ROWS),
            args=args,
            train_dataset=make_features(),
            processing_class=make_tokenizer(),
        )

    make(before).train()
    with pytest.raises(RunError, match=f"trained with `embedding_rows` {before}"):
        make(after).train(True)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    def make(features, steps):
        return XLTTrainer(
            model=make_model(vocab_size=ROWS),
            args=XLTConfig(str(tmp_path), embedding_rows="seen", max_steps=steps, save_steps=2, use_cpu=True),
            train_dataset=features,
            processing_class=make_tokenizer(),
        )

    make(make_features(), 2).train()
    with pytest.raises(RunError, match="the data have changed"):
        make(make_features()[:3], 4).train(True)


# ---- Two processes


def train_on_a_rank(rank, folder):
    trainer = make_small(folder / "two", 4)
    trainer.train()
    torch.save(trainer.model.state_dict(), folder / f"rank-{rank}.pt")


def make_small(folder, batch):
    # Without dropout, whose masks differ between processes.
    still = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    args = XLTConfig(
        str(folder),
        embedding_rows="seen",
        per_device_train_batch_size=batch,
        max_steps=4,
        optim="sgd",
        learning_rate=0.1,
        weight_decay=0.1,
        use_cpu=True,
        save_steps=2,
    )
    return XLTTrainer(
        model=make_model(vocab_size=ROWS, **still),
        args=args,
        train_dataset=make_features(32),
        processing_class=make_tokenizer(),
    )


def test_two_processes_train_as_one_does(tmp_path):
    in_two_processes(train_on_a_rank, tmp_path)
    ranks = [torch.load(tmp_path / f"rank-{rank}.pt", weights_only=True) for rank in range(2)]
    assert same_weights(*ranks)
    one = make_small(tmp_path / "one", 8)
    one.train()
    for key, value in one.model.state_dict().items():
        torch.testing.assert_close(ranks[0][key], value, rtol=1e-4, atol=1e-6)
    assert load_file(tmp_path / "two/checkpoint-4/model.safetensors")[NAME].shape == (ROWS, 32)


# ---- Which tokens occur


def test_ids_come_from_every_kind_of_data_set():
    features = make_features(20)
    expected = sorted({token for row in features for token in row["input_ids"]})
    for dataset in (
        features,
        Dataset.from_list(features),
        torch.utils.data.ConcatDataset([features[:7], features[7:]]),
    ):
        assert seen_ids([dataset], ROWS).tolist() == expected
    part = Dataset.from_list(features).shuffle(seed=1).select([3, 1])
    assert seen_ids([part], ROWS).tolist() == sorted({token for row in part for token in row["input_ids"]})


def test_special_tokens_of_tokenizer_and_model_always_count():
    config = make_model(vocab_size=ROWS).config
    config.decoder_start_token_id, config.eos_token_id = 250, [7, 260]
    assert {0, 1, 2, 3, 4, 7, 250, 260} <= special_ids(make_tokenizer(), config)
    assert 0 in special_ids(None, None)
    assert seen_ids([], ROWS, {9, ROWS + 5}).tolist() == [9]


def test_data_without_ids_are_refused():
    for dataset in ([{"text": "w1"}], Dataset.from_list([{"text": "w1"}])):
        with pytest.raises(ConfigError, match="goes by `input_ids`"):
            seen_ids([dataset], ROWS)


def test_an_id_outside_the_matrix_is_refused():
    with pytest.raises(ConfigError, match=r"token id 300, and the model has 300 rows"):
        seen_ids([[{"input_ids": [1, ROWS]}]], ROWS)


@pytest.mark.parametrize("token", [ROWS - 1, -1, ROWS])
def test_an_id_that_is_not_held_is_an_error_and_never_another_row(token, tmp_path):
    model = make_model(vocab_size=ROWS)
    rows = SeenRows(model, torch.tensor([0, 5, 9]), tmp_path)
    model(input_ids=torch.tensor([[0, 5, 9]]))
    with pytest.raises(RunError, match=f"token id {token} comes up"):
        model(input_ids=torch.tensor([[5, token]]))
    rows.put_back()


def test_a_cut_model_computes_saves_and_loads_as_the_whole_one(tmp_path):
    model, twin = (make_model(vocab_size=ROWS).eval() for _ in range(2))
    rows = SeenRows(model, torch.tensor([0, 5, 9]), tmp_path)
    ids = torch.tensor([[9, 5, 0]])
    assert rows.weight.shape == (4, 32)
    assert torch.equal(model(input_ids=ids).logits, twin(input_ids=ids).logits)
    assert same_weights(model, twin)
    other = make_model(3, vocab_size=ROWS)
    model.load_state_dict(other.state_dict())
    assert same_weights(model, other)
    rows.put_back()
    assert same_weights(model, other) and "forward" not in vars(model.get_input_embeddings())
    assert list(tmp_path.iterdir()) == []


# ---- Refusals


@pytest.mark.parametrize("name", ["adafactor", "lion_32bit", "adamw_torch_8bit", "ademamix", "lomo"])
def test_other_optimizers_are_refused_by_name(name, tmp_path):
    with pytest.raises(ConfigError, match=f"`optim` is {name}"):
        XLTConfig(str(tmp_path), embedding_rows="seen", optim=name, use_cpu=True)
    with pytest.raises(ConfigError, match=f"`meta_optimizer` is {name}"):
        XMAMLConfig(str(tmp_path), embedding_rows="seen", meta_optimizer=name, use_cpu=True)


def test_the_optimizers_that_are_accepted_are_adamw_and_sgd():
    assert all(name == "sgd" or name.startswith("adamw_") for name in ELEMENTWISE)
    assert not any(name.endswith("bit") for name in ELEMENTWISE)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"embedding_rows": "some"}, "choose one of all, seen"),
        ({"embedding_rows": "seen", "torch_compile": True}, "`torch_compile`"),
        ({"embedding_rows": "seen", "fsdp": "full_shard"}, "FSDP or DeepSpeed"),
    ],
)
def test_settings_that_do_not_go_with_it_are_refused(settings, reason, tmp_path):
    with pytest.raises(ConfigError, match=reason):
        XLTConfig(str(tmp_path), use_cpu=True, **settings)


def test_masked_language_modelling_is_refused(tmp_path):
    strategy = get_strategy("meta-pretrain")
    config = make_context(strategy, tmp_path, embedding_rows="seen").config
    with pytest.raises(ConfigError, match="masked language modelling"):
        strategy.check(config, "text-classification")


def refused_trainer(tmp_path, **changes):
    arguments = {
        "model": make_model(vocab_size=ROWS),
        "args": XLTConfig(str(tmp_path), embedding_rows="seen", max_steps=1, use_cpu=True),
        "train_dataset": make_features(),
        "processing_class": make_tokenizer(),
    }
    return XLTTrainer(**{**arguments, **changes})


class Changing(list):
    """Data whose text depends on the epoch."""

    def set_epoch(self, epoch):
        """Change."""


def test_trainers_that_it_cannot_be_exact_for_are_refused(tmp_path):
    model = make_model(vocab_size=ROWS)
    given = (torch.optim.AdamW(model.parameters()), None)
    stream = IterableDataset.from_generator(lambda: iter(make_features()))
    cases = [
        ({"model": model, "optimizers": given}, "an optimizer that is given"),
        ({"model": None, "model_init": lambda: make_model(vocab_size=ROWS)}, "`model_init`"),
        ({"train_dataset": stream}, "iterable data sets"),
        ({"train_dataset": Changing(make_features())}, "change from epoch to epoch"),
        ({"model": BertForMaskedLM(model.config)}, "it predicts tokens"),
    ]
    for changes, reason in cases:
        with pytest.raises(ConfigError, match=reason):
            refused_trainer(tmp_path, **changes)


def test_embeddings_that_do_more_than_look_up_are_refused():
    class Scaled(torch.nn.Embedding):
        pass

    model = make_model(vocab_size=ROWS)
    model.set_input_embeddings(Scaled(ROWS, 32))
    with pytest.raises(ConfigError, match="`Scaled`, not a plain look-up"):
        embedding_to_cut(model)
    model = make_model(vocab_size=ROWS)
    model.get_input_embeddings().max_norm = 1.0
    with pytest.raises(ConfigError, match="max_norm"):
        embedding_to_cut(model)
    model = make_model(vocab_size=ROWS)
    model.twin = torch.nn.Embedding(ROWS, 32)
    model.twin.weight = model.get_input_embeddings().weight
    with pytest.raises(ConfigError, match="tied to other weights"):
        embedding_to_cut(model)


def test_adapters_are_refused(tmp_path):
    from contexts import LORA

    context = make_context(get_strategy("finetune"), tmp_path, peft=LORA, embedding_rows="seen")
    with pytest.raises(ConfigError, match="adapters"):
        run_phases(context, tmp_path, resume=False)


# ---- The command


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """An encoder with many idle rows, and data."""
    root = tmp_path_factory.mktemp("rows")
    save_encoder(root / "encoder", vocab_size=100_050)
    write_data(root / "data")
    return root


def command(world, out, *more):
    return [
        *("run", "--strategy", "finetune", "--model", str(world / "encoder"), "--output-dir", str(out)),
        *("--dataset", str(world / "data/{split}.{lang}.jsonl"), "--max-steps", "2", "--threads", "1"),
        *("--disable-tqdm", "--max-grad-norm", "0", *more),
    ]


def test_the_command_scores_the_same_and_gives_the_hint_once(world, tmp_path, capsys):
    assert main(command(world, tmp_path / "all")) == 0
    told = capsys.readouterr().out
    assert told.count("`--embedding-rows seen` trains these alone") == 1
    assert main(command(world, tmp_path / "seen", "--embedding-rows", "seen")) == 0
    assert capsys.readouterr().out.count("training on these alone saves") == 1
    one, two = (json.loads((tmp_path / rows / "results.json").read_text()) for rows in ("all", "seen"))
    assert one["languages"] == two["languages"]
    assert same_weights(*(load_file(tmp_path / rows / "model.safetensors") for rows in ("all", "seen")))


def test_a_dry_run_tells_how_many_rows_are_seen(world, tmp_path, capsys):
    assert main(command(world, tmp_path / "out", "--embedding-rows", "seen", "--dry-run")) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Rows"))
    assert "of 100,050 rows" in line and "saves about 0.05 GB" in line
    assert main(command(world, tmp_path / "out", "--dry-run")) == 0
    assert "`--embedding-rows seen` trains these alone" in capsys.readouterr().out
    refused = ("--optim", "adafactor")
    assert main(command(world, tmp_path / "out", "--dry-run", *refused)) == 0
    assert "Rows " not in capsys.readouterr().out


def test_a_refusal_ends_the_command_before_anything_is_written(world, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(command(world, out, "--embedding-rows", "seen", "--peft", "lora")) == 2
    assert "adapters" in capsys.readouterr().err and not out.exists()
    assert main(command(world, out, "--embedding-rows", "seen", "--optim", "adafactor")) == 2
    assert "`optim` is adafactor" in capsys.readouterr().err

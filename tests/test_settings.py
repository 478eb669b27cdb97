"""Every setting changes the result, is refused, or stands on a short list with the reason why it cannot change it.

A field that is in none of the tables fails: a new one has to be thought of. Where nothing would read a setting, since
another one is off, it is refused. The whole sweep is slow; a sample of it is not.
"""

import copy
import dataclasses

import pytest
import torch
from contexts import make_context
from datasets import Dataset
from tiny import make_features

from hf_xlt.errors import ConfigError
from hf_xlt.registry import STRATEGIES, get_strategy
from hf_xlt.training.config import XLTConfig
from hf_xlt.training.phases import run_phases
from hf_xlt.training.stock_settings import check_start, check_used_by_run

# Name -> value that should matter; with a dict, besides what else is set, in both runs.
SHARED = {
    "per_device_train_batch_size": 4,
    "num_train_epochs": (1.0, {"max_steps": -1, "num_train_epochs": 0.5}),
    "max_steps": 3,
    "learning_rate": 5e-3,
    "lr_scheduler_type": "constant",
    "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "cosine_with_restarts"}),
    "warmup_steps": 3,
    "optim": "sgd",
    "optim_args": ("momentum=0.9", {"optim": "sgd"}),
    "weight_decay": 0.5,
    "adam_beta1": 0.5,
    "adam_beta2": 0.5,
    "adam_epsilon": 1e-2,
    "gradient_accumulation_steps": 2,
    "max_grad_norm": 1e-3,
    "label_smoothing_factor": 0.3,
    "bf16": True,
    "fp16": True,
    "neftune_noise_alpha": 5.0,
    "seed": 7,
    "data_seed": 7,
    "dataloader_drop_last": (True, {"max_steps": -1, "num_train_epochs": 1.0}),
    "train_sampling_strategy": "group_by_length",
    "enable_jit_checkpoint": True,
    "save_only_model": True,
    "batch_eval_metrics": True,
    "load_best_model_at_end": (
        True,
        {
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "metric_for_best_model": "eval_avg_loss",
            # The highest loss is that of an early checkpoint.
            "greater_is_better": True,
            "max_steps": 10,
            "learning_rate": 5e-3,
        },
    ),
}
# Why these leave weights and scores of a run on one CPU as they are.
WITHOUT_EFFECT = {
    "where files lie, what is logged, shown or sent": (
        "output_dir logging_strategy logging_steps logging_first_step log_on_each_node logging_nan_inf_filter "
        "include_num_input_tokens_seen log_level log_level_replica disable_tqdm report_to run_name project "
        "trackio_space_id trackio_bucket_id trackio_static_space_id push_to_hub hub_token hub_private_repo "
        "hub_model_id hub_strategy hub_always_push hub_revision skip_memory_metrics debug"
    ),
    "when and how checkpoints are saved and read": (
        "save_strategy save_steps save_on_each_node save_total_limit ignore_data_skip resume_from_checkpoint "
        "restore_callback_states_from_checkpoint"
    ),
    "when and how evaluation is made; what it selects is the field `load_best_model_at_end`": (
        "eval_strategy eval_steps eval_delay per_device_eval_batch_size prediction_loss_only eval_on_start "
        "eval_do_concat_batches eval_use_gather_object eval_accumulation_steps include_for_metrics bf16_full_eval "
        "fp16_full_eval metric_for_best_model greater_is_better"
    ),
    "how the same numbers are computed: memory, kernels, workers, devices": (
        "tf32 activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing "
        "gradient_checkpointing_kwargs torch_compile torch_compile_backend torch_compile_mode use_liger_kernel "
        "liger_kernel_config use_cache torch_empty_cache_steps auto_find_batch_size full_determinism use_cpu "
        "dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor "
        "dataloader_multiprocessing_context dataloader_in_order"
    ),
    "several processes, which the tests of two processes run": (
        "average_tokens_across_devices accelerator_config parallelism_config ddp_find_unused_parameters "
        "ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout fsdp fsdp_config deepspeed "
        "local_rank"
    ),
    "names of columns and of modules of optimizers that are not installed": (
        "remove_unused_columns label_names length_column_name optim_target_modules"
    ),
    "which numbers memory holds; the result is the same, as tests/training/test_embedding_rows.py shows": (
        "embedding_rows"
    ),
    "for scripts of the user's own, as in the stock Trainer": "do_train do_eval do_predict",
}
# Per strategy: its own fields, and shared ones that need other circumstances or have a reason.
ADV3 = {"steps": 3, "epsilon": 0.3}
FREELB = {"method": "freelb", "steps": 2, "epsilon": 0.3}
NOISE = {"method": "rs_rp", "epsilon": 0.3}
OWN = {
    "finetune": {},
    "averaging": {},
    "robust": {
        "method": "rs_rp",
        "epsilon": 0.5,
        "eps_mode": "absolute",
        "norm": "linf",
        "norm_scope": "sentence",
        "steps": 3,
        "step_size": (0.001, ADV3),
        "init": ("uniform", ADV3),
        "init_scale": (0.1, {**ADV3, "init": "uniform"}),
        "inner_loss": ("kl", {**ADV3, "init": "uniform"}),
        "linf_direction": ("maxnorm", {**ADV3, "norm": "linf"}),
        "noise": ("uniform", NOISE),
        "num_samples": (2, NOISE),
        "clean_weight": (0.5, ADV3),
        "consistency": ("symkl", NOISE),
        "consistency_weight": (5.0, {**NOISE, "consistency": "symkl"}),
        "detach_noised": (False, {**NOISE, "consistency": "symkl"}),
        "inner_dropout": ("eval", ADV3),
        "perturb_special_tokens": (False, ADV3),
        "start_step": 2,
    },
    "metaxl": {
        "method": "joint",
        "baseline": ("published", {"method": "joint"}),
        "hypergrad": "none",
        "meta_every": 2,
        "meta_grad_scale": "unit",
        "update_order": "reuse",
        "inner_lr": 1.0,
        "fd_scale": (10.0, {"hypergrad": "finite_difference"}),
        "evograd_population": (4, {"hypergrad": "evograd"}),
        "evograd_sigma": (0.5, {"hypergrad": "evograd"}),
        "evograd_temperature": (5.0, {"hypergrad": "evograd", "evograd_sigma": 0.5}),
        "rtn_layers": [1],
        "rtn_modules": ["bert.encoder.layer.0"],
        "rtn_bottleneck": 8,
        "rtn_activation": "gelu",
        "rtn_gate": "none",
        "rtn_init": "zero_out",
        "rtn_detach_input": False,
        "rtn_lr": 0.1,
        "rtn_weight_decay": 0.5,
        "rtn_warmup_ratio": 0.0,
        "rtn_max_grad_norm": 1e-6,
        "target_batch_size": 4,
        "portion": 4,
        "inner_target_loss": False,
        "batch_split": "first",
        "target_resplit": False,
        "loss_reduction": "mean",
        "source_sampling": "uniform",
        "sampling_temperature": (0.1, {"source_sampling": "temperature", "max_steps": 16}),
        "exp3_gamma": (0.5, {"source_sampling": "exp3", "exp3_reward_scale": 0.5, "max_steps": 40}),
        "exp3_reward_scale": (0.5, {"source_sampling": "exp3", "exp3_gamma": 0.5, "max_steps": 40}),
    },
    "soft-layers": {
        "mode": "online",
        "gate_type": "table",
        "granularity": "uniform",
        "inner_steps": 2,
        "meta_gradient": ("exact", {"inner_steps": 3, "audit_episodes": 0, "learning_rate": 0.05}),
        "meta_learning_rate": 1.0,
        "auxiliary_batch_size": 2,
        "auxiliary_schedule": "sampled",
        "query_dropout": True,
        "init_logit": 3.0,
        "gate_maximum": 0.2,
        "gate_temperature": 9.0,
        "gate_normalization": "mean_one",
        "gradient_normalization": "cosine",
        "prior_weight": 9.0,
        "freezing_bonus": 9.0,
        "table_bins": (1, {"gate_type": "table"}),
        "gate_hidden": (3, {"gate_type": "mlp"}),
        "always_open": ["none"],
        "separate_word_embeddings": False,
        "layer_groups": '{"layer\\\\.[01]\\\\.": "low"}',
        "gate_updates": 2,
        "gates": "no-such-file",
        "gate_values": "0.1",
        "profile": "freeze_bottom",
        "layer_decay": (0.1, {"profile": "layerwise_decay"}),
        "frozen_layers": (0, {"profile": "freeze_bottom"}),
        "unfreezing_share": (1.0, {"profile": "gradual_unfreezing"}),
        "shuffle_gates": True,
        "hard_threshold": 0.99,
    },
    "xmaml": {
        "order": "first",
        "meta_steps": 3,
        "meta_learning_rate": 1e-2,
        "meta_optimizer": "sgd",
        "meta_max_grad_norm": 1e-3,
        "inner_learning_rate": 0.5,
        "inner_steps": 2,
        "inner_scope": ("head", {"inner_learning_rate": 0.5}),
        "task_batch_size": 4,
        "support_share": 0.25,
        "episode": "cross_language",
        "aggregate": ("mean", {"meta_optimizer": "sgd"}),
        "fine_tune_first": False,
        "few_shot_steps": 2,
        "few_shot_learning_rate": (1e-2, {"few_shot_steps": 2}),
    },
    "meta-pretrain": {
        "total_steps": 6,
        "meta_fraction": 0.25,
        "meta_language": "de",
        "objectives": "mlm+tlm",
        "tlm_weight": (9.0, {"objectives": "mlm+tlm"}),
        "tlm_share": (0.1, {"objectives": "mlm+tlm", "pretraining_batch_size": 8}),
        "contrastive_weight": (9.0, {"objectives": "mlm+contrastive"}),
        "alpha": 0.0,
        "replay_floor": 0.9,
        "masked_share": 0.5,
        "isolated": True,
        "row_length": 32,
        "pretraining_batch_size": 2,
        "meta_learning_rate": 1e-2,
        "cross_learning_rate": 1e-2,
        "pooling": ("mean", {"objectives": "mlm+contrastive"}),
        "held_out_share": 0.3,
    },
}
REASONS = {
    "robust": {
        "smooth_predict": "of scores alone; tests of smoothed prediction",
        "smooth_samples": "of scores alone; tests of smoothed prediction",
        "smooth_epsilon": "of scores alone; tests of smoothed prediction",
        **dict.fromkeys(
            ("augmenter", "augmentation", "copies", "neighbours", "lookup", "neighbour_filter", "character_rate"),
            "carried out before the phases, on text; tests of augmentation run the command",
        ),
        "baseline": "as those of augmentation",
    },
    "metaxl": {
        "diagnostics": "measures after training",
        "diagnostics_examples": "measures after training",
        "save_rtn": "leaves a file",
    },
    "soft-layers": {
        "audit_episodes": "measures beside training",
        "interpolate_gates": "lets a file of another depth in; tests of files",
    },
    "xmaml": {"cosine_steps": "logs"},
    "meta-pretrain": {
        "whole_words": "every word of the tiny tokenizer is whole; tests of masking",
        "chunk_rows": "memory; the same sums",
        "epoch_limit": "a warning",
        "strict_resume": "resuming streamed text",
        "max_failed_shards": "streamed text",
        "allow_phase_change": "resuming",
    },
}
_EXTRA = {
    "metaxl": {"rtn_lr": 1e-2, "rtn_bottleneck": 16, "warmup_steps": 0},
    "xmaml": {"inner_learning_rate": 0.1, "meta_steps": 4},
}
# What is refused whatever else is set; everything else must change the result where its master is on.
ALWAYS_REFUSED = {"enable_jit_checkpoint", "save_only_model", "batch_eval_metrics"}
REFUSED = {
    "metaxl": ALWAYS_REFUSED | {"label_smoothing_factor", "neftune_noise_alpha", "fp16"},
    # The file is missing; tests of files have one.
    "soft-layers": ALWAYS_REFUSED | {"fp16", "gates"},
    "xmaml": ALWAYS_REFUSED | {"fp16"},
}
# Of a run on a CPU.
REFUSED_LATER = {"fp16"}


def fields_of(name):
    """The fields of a strategy's config."""
    return [entry.name for entry in dataclasses.fields(get_strategy(name).config_cls)]


def table_of(name):
    return {**SHARED, **OWN[name]}


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_field_is_in_one_table(name):
    listed = {field for fields in WITHOUT_EFFECT.values() for field in fields.split()}
    tables = [set(SHARED) | set(OWN[name]), set(REASONS.get(name, {})) | listed]
    assert not tables[0] & tables[1]
    assert set(fields_of(name)) == tables[0] | tables[1]


def test_the_list_without_effect_is_of_the_stock_trainer():
    known = {entry.name for entry in dataclasses.fields(XLTConfig)}
    assert {field for fields in WITHOUT_EFFECT.values() for field in fields.split()} <= known


def checked(name, folder, settings, asks=True):
    """Return the context of a run with some settings, which it is asked for, or has by itself."""
    strategy, asked = get_strategy(name), set(settings) if asks else set()
    context = make_context(strategy, folder, **{"max_steps": 4, "save_strategy": "no", **settings})
    strategy.check(context.config, "text-classification", asked)
    check_start(context.config)
    check_used_by_run(context.config, asked, stops_early=False)
    return context


def result_of(name, folder, settings, asks=True):
    """Train; return the final weights and the updates of every phase."""
    context = checked(name, folder, settings, asks)
    if settings.get("few_shot_steps"):
        context.joint = {code: Dataset.from_list(rows) for code, rows in context.roles["auxiliary"].items()}
    if "text" in context.roles:
        context.roles["text"]["sw"] = context.roles["text"]["sw"].select(range(12))
    if settings.get("source_sampling"):
        context.roles["source"] = {"en": make_features(30), "zh": make_features(14, seed=9)}
    trainer, ledger = run_phases(context, folder, resume=False)
    weights = {key: value.clone() for key, value in trainer.bare_model().state_dict().items()}
    return weights, [phase["updates"] for phase in ledger.done]


class Runs:
    """Results of settings, each trained once."""

    def __init__(self, folder):
        self.folder, self.known = folder, {}

    def of(self, name, settings, asks=True):
        key = (name, asks, repr(sorted(settings.items())))
        if key not in self.known:
            self.known[key] = result_of(name, self.folder / str(len(self.known)), copy.deepcopy(settings), asks)
        return self.known[key]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("settings"))


def check_field(runs, name, field):
    """Train with a field at its usual value and at another one, all else equal."""
    value, besides = table_of(name)[field], {}
    if isinstance(value, tuple):
        value, besides = value
    extra = _EXTRA.get(name, {})
    if {**besides, field: value}.get("method") == "joint":
        extra = {"warmup_steps": 0}
    changes = {**extra, **besides, field: value}
    if field in REFUSED.get(name, ALWAYS_REFUSED) | REFUSED_LATER:
        with pytest.raises(ConfigError, match=field):
            runs.of(name, changes)
        return
    changed = runs.of(name, changes)
    # Nothing is asked for here: what goes with the field may be of no use without it.
    weights, updates = runs.of(name, {key: value for key, value in changes.items() if key != field}, asks=False)
    same = changed[1] == updates and all(torch.equal(weights[key], changed[0][key]) for key in weights)
    assert not same, f"`{field}` = {value!r} changes nothing of {name}"


CASES = [(name, field) for name in STRATEGIES for field in ({**SHARED, **OWN[name]} if name != "averaging" else {})]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field"), CASES)
def test_every_setting_matters_or_is_refused(runs, name, field):
    check_field(runs, name, field)


@pytest.mark.parametrize(("name", "field"), CASES[::7])
def test_a_sample_of_settings_matters_or_is_refused(runs, name, field):
    check_field(runs, name, field)


# Where nothing reads a setting: its value, and what turns it off. `USED` lists those that are read in every state.
NONE, ASCENT_OFF = {"method": "none"}, {"method": "rs_rp"}
JOINT, KNOWN, PROFILE = {"method": "joint"}, {"gate_values": "0.5"}, {"profile": "auto_rgn"}
META_ONLY, CROSS_ONLY = {"meta_fraction": 1.0}, {"meta_fraction": 0.0}
OFF = {
    "finetune": {
        "warmup_steps": (3, {"lr_scheduler_type": "constant"}),
        "lr_scheduler_kwargs": ({"num_cycles": 2}, {"lr_scheduler_type": "constant_with_warmup"}),
        "adam_beta1": (0.5, {"optim": "sgd"}),
        "adam_beta2": (0.5, {"optim": "adagrad"}),
        "adam_epsilon": (1e-3, {"optim": "sgd"}),
        "optim_args": ("momentum=0.9", {"optim": "adamw_torch"}),
        "optim_target_modules": (["query"], {}),
        "gradient_checkpointing_kwargs": ({"use_reentrant": False}, {}),
        "activation_checkpointing_kwargs": ({"use_reentrant": False}, {}),
        "eval_steps": (3, {"eval_strategy": "epoch"}),
        "eval_delay": (3, {}),
        "save_steps": (3, {}),
        "save_total_limit": (1, {}),
        "liger_kernel_config": ({"rope": True}, {}),
        "fsdp_config": ({"min_num_params": 3}, {}),
        "dataloader_persistent_workers": (True, {}),
        "dataloader_multiprocessing_context": ("fork", {}),
        "dataloader_in_order": (False, {}),
        "length_column_name": ("size", {}),
        "metric_for_best_model": ("avg_accuracy", {}),
        "greater_is_better": (True, {}),
        "hub_model_id": ("me/it", {}),
        "hub_private_repo": (True, {}),
        "hub_revision": ("v1", {}),
        "hub_strategy": ("checkpoint", {}),
        "hub_always_push": (True, {}),
    },
    "robust": {
        "epsilon": (0.5, {**NONE, "smooth_predict": "vote", "smooth_epsilon": 0.1}),
        "eps_mode": ("absolute", NONE),
        "perturb_special_tokens": (False, NONE),
        "clean_weight": (0.5, NONE),
        "start_step": (2, NONE),
        "norm": ("linf", ASCENT_OFF),
        "norm_scope": ("sentence", ASCENT_OFF),
        "steps": (3, ASCENT_OFF),
        "init": ("uniform", ASCENT_OFF),
        "init_scale": (0.1, {}),
        "step_size": (0.1, {"method": "freelb"}),
        "inner_loss": ("kl", ASCENT_OFF),
        "linf_direction": ("maxnorm", {}),
        "noise": ("uniform", {}),
        "num_samples": (2, {}),
        "consistency_weight": (2.0, {}),
        "detach_noised": (False, {}),
        "inner_dropout": ("eval", ASCENT_OFF),
        "smooth_samples": (3, {}),
        "smooth_epsilon": (0.5, {}),
        "augmentation": ("online", {}),
        "copies": (5, {"augmenter": "characters", "augmentation": "online"}),
        "lookup": ("casefold", {"augmenter": "characters"}),
        "character_rate": (0.5, {}),
    },
    "metaxl": {
        "baseline": ("published", {}),
        **{
            name: (OWN["metaxl"][name], JOINT)
            for name in "hypergrad rtn_layers rtn_modules rtn_bottleneck rtn_activation rtn_gate rtn_init "
            "rtn_detach_input rtn_lr rtn_weight_decay rtn_warmup_ratio rtn_max_grad_norm".split()
        },
        "save_rtn": (True, JOINT),
        "diagnostics": (True, JOINT),
        "meta_every": (2, {"hypergrad": "none"}),
        "inner_lr": (1.0, JOINT),
        "update_order": ("reuse", JOINT),
        "meta_grad_scale": ("unit", {"hypergrad": "evograd"}),
        "fd_scale": (1.0, {}),
        "evograd_population": (4, {}),
        "evograd_sigma": (0.5, {}),
        "evograd_temperature": (5.0, {}),
        "portion": (4, {"inner_target_loss": False}),
        "batch_split": ("first", {"inner_target_loss": False}),
        "target_resplit": (False, {**JOINT, "baseline": "published"}),
        "target_batch_size": (4, {"method": "target_only", "baseline": "published"}),
        "loss_reduction": ("mean", {"method": "target_only"}),
        "max_grad_norm": (1.0, {**JOINT, "baseline": "published"}),
        "sampling_temperature": (5.0, {}),
        "exp3_gamma": (0.5, {}),
        "exp3_reward_scale": (0.5, {}),
        "diagnostics_examples": (7, {}),
    },
    "soft-layers": {
        **{
            name: (value, KNOWN)
            for name, value in {
                "mode": "online",
                "gate_type": "table",
                "inner_steps": 2,
                "meta_gradient": "exact",
                "meta_learning_rate": 1.0,
                "auxiliary_batch_size": 2,
                "auxiliary_schedule": "sampled",
                "query_dropout": True,
                "init_logit": 3.0,
                "gate_maximum": 0.5,
                "gate_temperature": 9.0,
                "gate_normalization": "mean_one",
                "gradient_normalization": "cosine",
                "prior_weight": 9.0,
                "freezing_bonus": 9.0,
                "always_open": ["none"],
            }.items()
        },
        "table_bins": (3, {}),
        "gate_hidden": (3, {"gate_type": "table"}),
        "audit_episodes": (5, {}),
        "gate_updates": (3, {"mode": "online"}),
        "granularity": ("tensor", {"gates": "some-run"}),
        "separate_word_embeddings": (False, {"gates": "some-run"}),
        "layer_groups": ('{"layer": "low"}', {"gates": "some-run"}),
        "interpolate_gates": (True, {}),
        "hard_threshold": (0.5, PROFILE),
        "layer_decay": (0.5, PROFILE),
        "frozen_layers": (1, PROFILE),
        "unfreezing_share": (0.1, PROFILE),
    },
    "xmaml": {
        "inner_learning_rate": (0.5, {"order": "plain"}),
        "inner_steps": (2, {"order": "plain"}),
        "inner_scope": ("head", {"order": "plain"}),
        "support_share": (0.25, {"order": "reptile"}),
        "cosine_steps": (3, {"order": "reptile"}),
        "few_shot_learning_rate": (1e-3, {}),
        **{
            name: (value, {"fine_tune_first": False})
            for name, value in {
                "learning_rate": 0.5,
                "num_train_epochs": 9.0,
                "max_steps": 3,
                "eval_strategy": "epoch",
                "warmup_steps": 2,
                "lr_scheduler_type": "cosine",
                "weight_decay": 0.5,
                "optim": "sgd",
                "max_grad_norm": 0.5,
            }.items()
        },
    },
    "meta-pretrain": {
        "meta_language": ("de", CROSS_ONLY),
        "objectives": ("mlm+tlm", META_ONLY),
        "alpha": (0.0, META_ONLY),
        "cross_learning_rate": (1e-3, META_ONLY),
        "replay_floor": (0.5, {"objectives": "tlm"}),
        "meta_learning_rate": (1e-3, {**CROSS_ONLY, "cross_learning_rate": 1e-3}),
        "tlm_weight": (9.0, {}),
        "tlm_share": (0.1, {"objectives": "tlm"}),
        "contrastive_weight": (9.0, {}),
        "pooling": ("mean", {}),
        "masked_share": (0.5, {**CROSS_ONLY, "objectives": "contrastive"}),
        "whole_words": (True, {**CROSS_ONLY, "objectives": "contrastive"}),
        "isolated": (True, {**CROSS_ONLY, "objectives": "contrastive"}),
        "strict_resume": (True, {}),
        "max_failed_shards": (0.5, {}),
    },
}
USED = {
    "robust": "method smooth_predict consistency augmenter neighbours neighbour_filter baseline",
    "metaxl": "method inner_target_loss source_sampling per_device_train_batch_size learning_rate num_train_epochs "
    "warmup_steps",
    "soft-layers": "gates gate_values profile shuffle_gates",
    "xmaml": "order meta_steps meta_learning_rate meta_optimizer meta_max_grad_norm task_batch_size episode aggregate "
    "fine_tune_first few_shot_steps",
    "meta-pretrain": "total_steps meta_fraction row_length pretraining_batch_size chunk_rows epoch_limit "
    "held_out_share allow_phase_change",
}
# What turns a setting of `OFF` on, where it is not by itself.
SYMKL = {"method": "rs_rp", "consistency": "symkl"}
TLM = {"objectives": "mlm+tlm"}
CONTRASTIVE = {"objectives": "mlm+contrastive"}
WORKERS, PUSHED = {"dataloader_num_workers": 1}, {"push_to_hub": True}
CHECKPOINTING = {"gradient_checkpointing": True}
EVERY_STEP = {"eval_strategy": "steps", "save_strategy": "steps"}
CHOOSES = {"eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "load_best_model_at_end": True}
ON = {
    "lr_scheduler_kwargs": {"lr_scheduler_type": "cosine_with_restarts"},
    "gradient_checkpointing_kwargs": CHECKPOINTING,
    "activation_checkpointing_kwargs": CHECKPOINTING,
    "eval_steps": EVERY_STEP,
    "eval_delay": EVERY_STEP,
    "save_steps": EVERY_STEP,
    "save_total_limit": EVERY_STEP,
    "liger_kernel_config": {"use_liger_kernel": True},
    "dataloader_persistent_workers": WORKERS,
    "dataloader_multiprocessing_context": WORKERS,
    "dataloader_in_order": WORKERS,
    "length_column_name": {"train_sampling_strategy": "group_by_length"},
    "metric_for_best_model": CHOOSES,
    "greater_is_better": CHOOSES,
    "hub_model_id": PUSHED,
    "hub_private_repo": PUSHED,
    "hub_revision": PUSHED,
    "init_scale": {"init": "uniform"},
    "inner_loss": {"init": "uniform"},
    "linf_direction": {"norm": "linf"},
    "noise": {"method": "none", "smooth_predict": "vote"},
    "num_samples": {"method": "rs_rp"},
    "consistency_weight": SYMKL,
    "detach_noised": SYMKL,
    "smooth_samples": {"smooth_predict": "vote"},
    "smooth_epsilon": {"smooth_predict": "vote"},
    "augmentation": {"augmenter": "characters"},
    "copies": {"augmenter": "characters"},
    "lookup": {"augmenter": "synonyms", "neighbours": "table.json"},
    "character_rate": {"augmenter": "characters"},
    "baseline": {"method": "joint"},
    "fd_scale": {"hypergrad": "finite_difference"},
    "evograd_population": {"hypergrad": "evograd"},
    "evograd_sigma": {"hypergrad": "evograd"},
    "evograd_temperature": {"hypergrad": "evograd"},
    "sampling_temperature": {"source_sampling": "temperature"},
    "exp3_gamma": {"source_sampling": "exp3"},
    "exp3_reward_scale": {"source_sampling": "exp3"},
    "diagnostics_examples": {"diagnostics": True},
    "table_bins": {"gate_type": "table"},
    "gate_hidden": {"gate_type": "mlp"},
    "audit_episodes": {"inner_steps": 2},
    "interpolate_gates": {"gates": "some-run"},
    "layer_decay": {"profile": "layerwise_decay"},
    "frozen_layers": {"profile": "freeze_bottom"},
    "unfreezing_share": {"profile": "gradual_unfreezing"},
    "few_shot_learning_rate": {"few_shot_steps": 2},
    "tlm_weight": TLM,
    "tlm_share": TLM,
    "contrastive_weight": CONTRASTIVE,
    "pooling": CONTRASTIVE,
}
# Of other methods than those there are here: packages, devices, or `hf-xlt pretrain` with streamed text.
NEVER_ON = (
    "optim_args optim_target_modules fsdp_config hub_strategy hub_always_push strict_resume max_failed_shards"
).split()
OFF_CASES = [(name, field) for name, fields in OFF.items() for field in fields]


@pytest.mark.parametrize(("name", "field"), OFF_CASES)
def test_a_setting_that_nothing_would_read_is_refused(tmp_path, name, field):
    value, besides = OFF[name][field]
    with pytest.raises(ConfigError, match=f"`{field}` is .*would be ignored|reads no option"):
        checked(name, tmp_path, {**besides, field: value})
    if field not in NEVER_ON:
        checked(name, tmp_path, {**ON.get(field, {}), field: value})


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name not in ("finetune", "averaging")])
def test_every_field_of_a_strategy_is_known_to_be_read_or_to_depend(name):
    shared = {entry.name for entry in dataclasses.fields(XLTConfig)}
    own = {field for field in fields_of(name) if field not in shared}
    assert own == (set(OFF[name]) | set(USED[name].split())) - shared
    assert not set(OFF[name]) & set(USED[name].split())

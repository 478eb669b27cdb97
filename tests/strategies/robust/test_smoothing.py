"""Prediction over several noisy passes, its votes, and the radius that they certify."""

import math
from statistics import NormalDist
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertForQuestionAnswering, BertForTokenClassification

from hf_xlt.errors import ConfigError
from hf_xlt.strategies.robust import RobustConfig
from hf_xlt.strategies.robust.card import block
from hf_xlt.strategies.robust.certificate import ABSTAIN, certified_radius, certify, probability_lower_bound
from hf_xlt.strategies.robust.smoothing import combine, smooth

MODES = ("vote", "mean_prob", "mean_logit")
CONTENT = torch.ones(1, 2, dtype=torch.bool)
CLASSES = SimpleNamespace(problem_type=None)


def predict(trainer, examples):
    output = trainer.predict_languages({"en": examples})["en"]
    return output.predictions, output.label_ids


def smoothing(kit, model=None, **settings):
    options = {"method": "none", "smooth_predict": "mean_prob", "smooth_samples": 5, "smooth_epsilon": 0.1}
    if settings.get("smooth_predict") == "none":
        options = {"method": "none"}
    return kit.trainer(model or kit.model(dropout=True), **options | settings)


@pytest.mark.parametrize("settings", [{"smooth_predict": "none"}, {"smooth_epsilon": 0.0}, {"smooth_samples": 1}])
def test_without_noise_predictions_are_the_plain_ones_bit_for_bit(kit, settings):
    if "smooth_samples" in settings:
        settings = settings | {"smooth_epsilon": 0.0}
    examples, model = kit.examples(), kit.model(dropout=True)
    plain = predict(kit.trainer(model, method="none"), examples)[0]
    for mode in MODES:
        trainer = smoothing(kit, model, **{"smooth_predict": mode} | settings)
        assert np.array_equal(predict(trainer, examples)[0], plain)
    assert RobustConfig(output_dir=str(kit.folder), use_cpu=True).smoothing_radius == 0
    assert not np.array_equal(predict(smoothing(kit, model, smooth_predict="mean_logit"), examples)[0], plain)


@pytest.mark.parametrize("mode", MODES)
def test_a_prediction_does_not_depend_on_batch_padding_order_or_the_run_before(kit, mode):
    examples, model = kit.examples(), kit.model(dropout=True)
    together = predict(smoothing(kit, model, smooth_predict=mode), examples)[0]
    torch.manual_seed(99)
    alone = predict(smoothing(kit, model, smooth_predict=mode, per_device_eval_batch_size=1), examples)[0]
    reverse = predict(smoothing(kit, model, smooth_predict=mode), examples[::-1])[0][::-1]
    np.testing.assert_allclose(alone, together, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reverse, together, rtol=1e-4, atol=1e-5)
    other = predict(smoothing(kit, model, smooth_predict=mode, seed=12), examples)[0]
    assert not np.allclose(other, together, rtol=1e-4, atol=1e-5)


def test_vote_mean_probability_and_mean_logit_differ_where_they_should():
    # Two draws lean to class 0, and one is sure of class 1.
    draws = torch.tensor([[0.3, 0.0, -9.0], [0.3, 0.0, -9.0], [0.0, 9.0, -9.0]])
    crafted = [{"logits": draw[None]} for draw in draws]
    chosen = {mode: smooth(crafted, mode, CLASSES, CONTENT)["logits"].argmax().item() for mode in MODES}
    assert chosen == {"vote": 0, "mean_prob": 1, "mean_logit": 1}
    sure = [{"logits": draw} for draw in (torch.tensor([[2.0, 0.0]]), torch.tensor([[2.0, 0.0]]))]
    sure.append({"logits": torch.tensor([[-90.0, 0.0]])})
    chosen = {mode: smooth(sure, mode, CLASSES, CONTENT)["logits"].argmax().item() for mode in MODES}
    assert chosen == {"vote": 0, "mean_prob": 0, "mean_logit": 1}


def test_scores_are_log_probabilities_and_ties_go_to_the_larger_mean():
    draws = [torch.tensor([[3.0, 0.0, -50.0]]), torch.tensor([[0.0, 0.5, -50.0]])]
    draws = [draw.log_softmax(-1) for draw in draws]
    for mode in ("vote", "mean_prob"):
        scores = combine(draws, mode)
        assert scores.exp().sum().item() == pytest.approx(1.0) and scores.isfinite().all()
        assert scores.argmax() == 0
    assert combine(draws[::-1], "vote").argmax() == 0
    mean = torch.stack(draws).exp().mean(0)
    torch.testing.assert_close(combine(draws, "mean_prob").exp(), mean)
    torch.testing.assert_close(combine(draws, "vote").exp(), (torch.tensor([[1.0, 1.0, 0.0]]) + mean) / 3)
    # A vote more always wins over the mean.
    sure = torch.tensor([[-30.0, 0.0]]).log_softmax(-1)
    slight = torch.tensor([[0.01, 0.0]]).log_softmax(-1)
    assert (
        combine([slight, slight, sure], "vote").argmax() == 0 != combine([slight, slight, sure], "mean_prob").argmax()
    )


def test_the_loss_is_that_of_the_smoothed_model(kit):
    examples, model = kit.examples(), kit.model()
    trainer = smoothing(kit, model, smooth_epsilon=0.3)
    logits, labels = predict(trainer, examples)
    np.testing.assert_allclose(np.exp(logits).sum(-1), 1.0, rtol=1e-5)
    expected = -logits[np.arange(8), labels].mean()
    assert trainer.evaluate(examples)["eval_loss"] == pytest.approx(expected, rel=1e-5)
    assert trainer.evaluate({"en": examples})["eval_en_loss"] == pytest.approx(expected, rel=1e-5)


def test_prediction_leaves_no_trace_and_has_no_dropout(kit):
    model, batch = kit.model(dropout=True, hidden_dropout_prob=0.5), kit.collate(kit.examples())
    trainer = smoothing(kit, model)
    model.train()
    model.bert.embeddings.dropout.eval()
    flags = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    first, second = (trainer.prediction_step(model, batch, False)[1] for _ in range(2))
    assert torch.equal(first, second) and torch.equal(torch.get_rng_state(), state)
    assert flags == [module.training for module in model.modules()]
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters()) and "labels" in batch
    assert trainer.prediction_step(model, batch, True)[1:] == (None, None)
    torch.testing.assert_close(trainer.prediction_step(model.eval(), batch, False)[1], first)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("side", ["right", "left"])
def test_tokens_and_spans_are_smoothed_position_by_position(kit, mode, side):
    examples = kit.examples(8, token_labels=True)
    batch = kit.collate(examples, side=side)
    config = kit.model().config
    trainer = smoothing(kit, BertForTokenClassification(config), smooth_predict=mode)
    trainer.model.eval()
    loss, logits, labels = trainer.prediction_step(trainer.model, batch, False)
    assert logits.shape == (8, batch["input_ids"].shape[1], 3) and loss.isfinite()
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten()))
    counts = trainer.vote_counts(batch)["logits"]
    assert counts.shape == logits.shape and (counts.sum(-1) == 5).all()
    config.num_labels = 2
    spans = {name: value for name, value in batch.items() if name != "labels"}
    position = batch["attention_mask"].argmax(1)
    spans |= {"start_positions": position, "end_positions": position + 1}
    trainer = smoothing(kit, BertForQuestionAnswering(config), smooth_predict=mode)
    trainer.label_names = ["start_positions", "end_positions"]
    trainer.model.eval()
    loss, ends, _ = trainer.prediction_step(trainer.model, spans, False)
    counts = trainer.vote_counts(spans)
    text = batch["attention_mask"].bool()
    assert len(ends) == 2 and loss.isfinite() and all((end.isfinite()).all() for end in ends)
    for end, votes in zip(ends, counts.values(), strict=True):
        assert end.shape == text.shape and (votes.sum(-1) == 5).all() and votes[~text].eq(0).all()
        if mode != "mean_logit":
            assert text.gather(1, end.argmax(1, keepdim=True)).all() and end[~text].max() < -50


def test_several_labels_and_numbers(kit):
    batch = kit.collate(kit.examples())
    for problem, shape in (("multi_label_classification", (8, 3)), ("regression", (8, 3))):
        model = kit.model(problem_type=problem).eval()
        inputs = batch | {"labels": torch.rand(shape).round()}
        for mode in MODES:
            trainer = smoothing(kit, model, smooth_predict=mode, smooth_epsilon=0.2)
            if problem == "regression" and mode == "vote":
                with pytest.raises(ConfigError, match="mean_logit"):
                    trainer.prediction_step(model, inputs, False)
                continue
            draws = torch.stack([draw["logits"] for draw in trainer.noisy_predictions(model, inputs, 5)])
            got = trainer.prediction_step(model, inputs, False)[1]
            if problem == "multi_label_classification" and mode == "mean_prob":
                torch.testing.assert_close(got.sigmoid(), draws.sigmoid().mean(0), rtol=1e-4, atol=1e-6)
            elif mode == "vote":
                share = draws.gt(0).float().mean(0)
                assert torch.equal(got > 0, share > 0.5) and got.isfinite().all()
            else:
                torch.testing.assert_close(got, draws.mean(0), rtol=1e-4, atol=1e-6)


def test_noise_has_the_radius_and_the_law_asked_for_and_spares_padding(kit, monkeypatch):
    from hf_xlt.strategies.robust import smoothing as module

    seen, original = [], module.perturbed_embeddings
    monkeypatch.setattr(
        module,
        "perturbed_embeddings",
        lambda model, inputs, noise: seen.append(noise) or original(model, inputs, noise),
    )
    batch = kit.collate(kit.examples())
    settings = {"noise": "l2_sphere", "smooth_epsilon": 0.3, "eps_mode": "absolute", "epsilon": 9.0}
    trainer = smoothing(kit, **settings, method="adv")
    trainer.vote_counts(batch, samples=3)
    text = batch["attention_mask"].bool()
    assert len(seen) == 3 and not torch.equal(seen[0], seen[1]) and trainer.smoothing_sigma() == 0.3
    for noise in seen:
        torch.testing.assert_close(noise[text].norm(dim=-1), torch.full((text.sum(),), 0.3), rtol=1e-5, atol=0)
        assert noise[~text].eq(0).all()


def test_the_record_says_how_scores_were_obtained(kit):
    assert kit.trainer().phase_facts() == {}
    facts = smoothing(kit, smooth_predict="vote", eps_mode="absolute").phase_facts()
    how = {"predict": "vote", "samples": 5, "noise": "gaussian", "norm_scope": "token", "radius": 0.1}
    assert facts["smoothed_prediction"] == how
    # The model as it is loaded does not smooth: the card must say that its scores are not of that model.
    text = block(facts)["text"]
    assert "from 5 passes" in text and "without noise" in text and block({}) is None


def test_what_smoothing_cannot_use_is_refused(kit):
    batch = kit.collate(kit.examples())
    with pytest.raises(ConfigError, match="smooth_predict"):
        kit.trainer().vote_counts(batch)
    trainer = smoothing(kit)
    embeds = trainer.model.get_input_embeddings()(batch.pop("input_ids"))
    with pytest.raises(ConfigError, match="input_ids"):
        trainer.prediction_step(trainer.model, batch | {"inputs_embeds": embeds}, False)
    with pytest.raises(ConfigError, match="torch_compile"):
        smoothing(kit, torch_compile=True)


def test_the_radius_is_that_of_theorem_1():
    normal = NormalDist()
    lower, upper = torch.tensor([0.9, 0.6, 0.5, 0.3, 1.0]), torch.tensor([0.05, 0.4, 0.5, 0.7, 0.0])
    radius = certified_radius(lower, upper, 0.25)
    assert radius[0] == pytest.approx(0.125 * (normal.inv_cdf(0.9) - normal.inv_cdf(0.05)), rel=1e-6)
    assert radius[1] == pytest.approx(0.25 * normal.inv_cdf(0.6), rel=1e-6)
    assert radius[2] == radius[3] == 0 and radius[4] == math.inf
    for bad in ((1.2, 0.1, 1.0), (0.9, -0.1, 1.0), (0.9, 0.1, 0.0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            certified_radius(*bad)


def test_the_lower_bound_is_that_of_clopper_and_pearson():
    assert probability_lower_bound(50, 50, 0.01) == pytest.approx(0.01 ** (1 / 50), rel=1e-12)
    assert probability_lower_bound(0, 50, 0.01) == 0.0
    assert probability_lower_bound(1, 50, 0.05) == pytest.approx(1 - 0.95 ** (1 / 50), rel=1e-9)
    # By definition the chance of so many successes at the bound is alpha.
    for successes, trials, alpha in ((7, 20, 0.05), (99, 100, 0.001), (512, 1000, 0.2)):
        bound = probability_lower_bound(successes, trials, alpha)
        chance = sum(
            math.comb(trials, k) * bound**k * (1 - bound) ** (trials - k) for k in range(successes, trials + 1)
        )
        assert chance == pytest.approx(alpha, rel=1e-6)
    for bad in ((5, 4, 0.1), (-1, 4, 0.1), (1, 4, 0.0)):
        with pytest.raises(ValueError, match="successes"):
            probability_lower_bound(*bad)


def test_votes_certify_a_label_or_abstain():
    counts = torch.tensor([[990, 10, 0], [400, 350, 250], [10, 5, 985]])
    label, radius = certify(counts, 0.5, alpha=0.001)
    assert label.tolist() == [0, ABSTAIN, 2] and radius[1] == 0
    expected = 0.5 * NormalDist().inv_cdf(probability_lower_bound(990, 1000, 0.001))
    assert radius[0].item() == pytest.approx(expected, rel=1e-6)
    assert certify(counts, 0.5, alpha=0.2).radius[0] > radius[0]
    # Draws of their own choose the label, and its votes decide.
    assert certify(counts[:1], 0.5, selection=torch.tensor([[1, 9, 0]])).label.tolist() == [ABSTAIN]
    with pytest.raises(ValueError, match="votes"):
        certify(counts / 1000, 0.5)


class Linear(nn.Module):
    """Sum of embeddings over tokens, then a linear layer."""

    def __init__(self, embeddings, weight):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(embeddings)
        self.head = nn.Linear(embeddings.shape[1], 2, bias=False)
        self.head.weight.data.copy_(weight)
        self.config = SimpleNamespace(num_labels=2, problem_type=None, pad_token_id=None)

    def get_input_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None):
        return {"logits": self.head(self.embedding(input_ids).sum(dim=1))}


def test_the_votes_and_the_radius_of_a_linear_model_are_those_of_the_closed_form(kit):
    generator = torch.Generator().manual_seed(0)
    embeddings, weight = torch.randn(30, 6, generator=generator), torch.randn(2, 6, generator=generator)
    sigma, samples, tokens = 0.8, 4000, 3
    trainer = smoothing(kit, Linear(embeddings, weight), smooth_epsilon=sigma, eps_mode="absolute")
    ids = torch.randint(0, 30, (6, tokens), generator=generator)
    counts = trainer.vote_counts({"input_ids": ids}, samples=samples)["logits"]
    difference = weight[0] - weight[1]
    margins = embeddings[ids].sum(1) @ difference
    # The distance to the boundary in the space of all tokens' coordinates.
    distances = margins.abs() / (difference.norm() * tokens**0.5)
    first = torch.special.ndtr(margins / (difference.norm() * tokens**0.5) / sigma)
    torch.testing.assert_close(counts[:, 0] / samples, first, rtol=0, atol=4 * 0.5 / samples**0.5)
    label, radius = certify(counts, trainer.smoothing_sigma(), alpha=1e-4)
    for row in range(6):
        assert label[row] in (ABSTAIN, int(margins[row] < 0)) and radius[row] <= distances[row]
    sure = distances < 1.5
    assert sure.any() and (radius[sure] > distances[sure] - 0.3).all()
    exact = certified_radius(torch.maximum(first, 1 - first), torch.minimum(first, 1 - first), sigma)
    torch.testing.assert_close(exact[sure].float(), distances[sure], rtol=1e-3, atol=1e-3)

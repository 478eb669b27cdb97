"""Pre-training losses: equal to the stock models' in value and gradient, smaller in memory, finite without masks."""

import socket

import pytest
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch.nn.parallel import DistributedDataParallel
from transformers import (
    AlbertConfig,
    AutoModelForMaskedLM,
    BertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    XLMRobertaConfig,
)

from hf_xlt.errors import ConfigError
from hf_xlt.pretraining.objectives import (
    contrastive_losses,
    masked_lm_loss,
    masked_lm_outputs,
    mean_pool,
    output_layer,
    sentence_vectors,
)

VOCABULARY = 99
SHAPE = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
MODERN = {"pad_token_id": 0, "cls_token_id": 2, "bos_token_id": 2, "sep_token_id": 3, "eos_token_id": 3}
DISTILLED = {"vocab_size": VOCABULARY, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64}
FAMILIES = {
    "bert": (BertConfig, SHAPE),
    "roberta": (RobertaConfig, SHAPE),
    "xlm-roberta": (XLMRobertaConfig, SHAPE),
    "distilbert": (DistilBertConfig, DISTILLED),
    "deberta-v2": (DebertaV2Config, {**SHAPE, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}),
    "deberta-v2 new head": (DebertaV2Config, {**SHAPE, "legacy": False}),
    "modernbert": (ModernBertConfig, {**SHAPE, **MODERN}),
    "modernbert sparse": (ModernBertConfig, {**SHAPE, **MODERN, "sparse_prediction": True}),
    "electra": (ElectraConfig, {**SHAPE, "embedding_size": 16}),
    "albert": (AlbertConfig, {**SHAPE, "embedding_size": 16}),
    "mpnet": (MPNetConfig, SHAPE),
}


def _model(family: str, **changes) -> torch.nn.Module:
    config_cls, settings = FAMILIES[family]
    torch.manual_seed(0)
    model = AutoModelForMaskedLM.from_config(config_cls(**settings, **changes)).eval()
    with torch.no_grad():
        # Biases start at zero and would hide their own loss.
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


def _batch(rows: int = 4, tokens: int = 16, share: float = 0.3, seed: int = 0) -> tuple[dict, torch.Tensor]:
    """A padded batch and its labels."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(tokens) < torch.tensor([tokens - 2 * row for row in range(rows)])[:, None]).long()
    ids = torch.randint(5, VOCABULARY, (rows, tokens), generator=generator).where(mask.bool(), 1)
    chosen = (torch.rand(ids.shape, generator=generator) < share) & mask.bool()
    return {"input_ids": ids.masked_fill(chosen, 4), "attention_mask": mask}, ids.where(chosen, -100)


def _gradients(model: torch.nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def _assert_close(ours: dict, stock: dict, tolerance: float = 1e-5) -> None:
    assert ours.keys() == stock.keys()
    for name, expected in stock.items():
        if expected is None:
            assert ours[name] is None, name
        else:
            torch.testing.assert_close(ours[name], expected, rtol=tolerance, atol=tolerance)


class TestMaskedLm:
    @pytest.mark.parametrize("tied", [True, False])
    @pytest.mark.parametrize("family", FAMILIES)
    def test_loss_and_gradients_equal_the_stock_models(self, family, tied):
        """Within 1e-5 in float32, in several chunks, with tied and untied heads."""
        model, (inputs, labels) = _model(family, tie_word_embeddings=tied), _batch()
        assert (output_layer(model) is None) == (family == "deberta-v2 new head")
        stock = model(**inputs, labels=labels).loss
        expected = _gradients(model, stock)
        expected = {name: None if grad is None else grad.clone() for name, grad in expected.items()}
        count = labels.ne(-100).sum()
        ours = masked_lm_loss(model, model, inputs, labels, (1 / count).expand(len(labels)), chunk_rows=5)
        assert ours.item() == pytest.approx(stock.item(), abs=1e-5)
        _assert_close(_gradients(model, ours), expected)
        # The model is as it was.
        assert torch.equal(model(**inputs, labels=labels).loss, stock)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_without_masked_positions_the_loss_is_a_zero_on_the_graph(self, family):
        """Every parameter that the stock loss reaches gets a gradient of zeros, as DDP needs."""
        model, (inputs, labels) = _model(family), _batch()
        reached = {
            name for name, grad in _gradients(model, model(**inputs, labels=labels).loss).items() if grad is not None
        }
        loss = masked_lm_loss(model, model, inputs, torch.full_like(labels, -100))
        gradients = _gradients(model, loss)
        assert loss.item() == 0
        assert {name for name, grad in gradients.items() if grad is not None} == reached
        assert all(torch.count_nonzero(grad) == 0 for grad in gradients.values() if grad is not None)

    def test_weights_per_row_and_per_position(self):
        """A row's weight scales its loss and gradient; spread over its positions it is the same."""
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        weights = torch.tensor([0.5, 0.0, 2.0, 1.0])
        logits = model(**inputs).logits.flatten(0, 1)
        losses = F.cross_entropy(logits, labels.flatten(), reduction="none").reshape(labels.shape)
        expected = (losses * weights[:, None]).sum()
        reference = {name: grad.clone() for name, grad in _gradients(model, expected).items()}
        for given in (weights, weights[:, None].expand(labels.shape)):
            ours = masked_lm_loss(model, model, inputs, labels, given)
            assert ours.item() == pytest.approx(expected.item(), rel=1e-6)
            _assert_close(_gradients(model, ours), reference)

    def test_micro_batches_add_up(self):
        """4 x 4 rows give the loss and gradient of 16."""
        model, (inputs, labels) = _model("xlm-roberta"), _batch(rows=8)
        expected = {n: g.clone() for n, g in _gradients(model, masked_lm_loss(model, model, inputs, labels)).items()}
        model.zero_grad()
        for start in range(0, 8, 2):
            part = slice(start, start + 2)
            masked_lm_loss(model, model, {n: v[part] for n, v in inputs.items()}, labels[part]).backward()
        _assert_close({name: parameter.grad for name, parameter in model.named_parameters()}, expected)

    def test_hidden_states_come_along(self):
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        _, hidden = masked_lm_outputs(model, model, inputs, labels)
        assert torch.equal(hidden, model.roberta(**inputs).last_hidden_state)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast(self, dtype):
        """As near to float32 as the stock model under the same autocast and loss scale; the loss is float32."""
        model, (inputs, labels) = _model("xlm-roberta"), _batch(share=0.6)
        weights = (1 / labels.ne(-100).sum()).expand(len(labels))

        def error(loss: torch.Tensor) -> float:
            # A scale of the loss is what half precision is trained with.
            gradients = _gradients(model, 1024 * loss).values()
            return sum((grad / 1024 - one).norm() ** 2 for grad, one in zip(gradients, exact, strict=True)).item()

        exact = [g.clone() for g in _gradients(model, masked_lm_loss(model, model, inputs, labels, weights)).values()]
        with torch.autocast("cpu", dtype):
            stock = model(**inputs, labels=labels).loss
            ours = masked_lm_loss(model, model, inputs, labels, weights, chunk_rows=7)
        assert ours.dtype == torch.float32
        assert ours.item() == pytest.approx(stock.item(), abs=0.01)
        assert error(ours) <= 1.3 * error(stock)

    def test_gradient_checkpointing(self):
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        model.config.hidden_dropout_prob = model.config.attention_probs_dropout_prob = 0.0
        expected = {n: g.clone() for n, g in _gradients(model, masked_lm_loss(model, model, inputs, labels)).items()}
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        _assert_close(_gradients(model, masked_lm_loss(model, model, inputs, labels)), expected)

    @pytest.mark.parametrize("target_modules", [["query", "value"], ["query", "decoder"]])
    def test_lora(self, target_modules):
        """Adapters get the stock gradients, those on the output layer too, which then is no plain layer."""
        inputs, labels = _batch()
        model = get_peft_model(_model("xlm-roberta"), LoraConfig(r=2, target_modules=target_modules, lora_dropout=0.0))
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        assert (output_layer(model) is None) == ("decoder" in target_modules)
        expected = _gradients(model, model(**inputs, labels=labels).loss)
        expected = {name: None if grad is None else grad.clone() for name, grad in expected.items()}
        ours = masked_lm_loss(model, model, inputs, labels, (1 / labels.ne(-100).sum()).expand(len(labels)))
        _assert_close(_gradients(model, ours), expected)

    def test_the_model_is_restored_after_an_error(self):
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        with pytest.raises(ValueError, match="input_ids"):
            masked_lm_loss(model, model, {**inputs, "input_ids": None}, labels)
        assert "forward" not in vars(model.lm_head.decoder)
        assert not model.roberta._forward_hooks
        assert model(**inputs).logits.shape == (*labels.shape, VOCABULARY)

    def test_a_model_without_base_is_refused(self):
        inputs, labels = _batch()
        model = tiny.make_model().bert
        with pytest.raises(ConfigError, match="AutoModelForMaskedLM"):
            masked_lm_loss(model, model, inputs, labels)

    def test_labels_of_another_shape_are_refused(self):
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        with pytest.raises(ConfigError, match="for labels of shape"):
            masked_lm_loss(model, model, inputs, labels[:, :-1])

    def test_peak_memory_is_lower(self):
        """At vocabulary 20,000 a step's peak without the gradients of the weights is under a third of the stock's."""
        settings = {**SHAPE, "vocab_size": 20_000, "max_position_embeddings": 80}
        model = AutoModelForMaskedLM.from_config(XLMRobertaConfig(**settings))
        inputs, labels = _batch(rows=8, tokens=64, share=0.15)
        gradients = 4 * model.num_parameters()

        def peak(compute) -> int:
            model.zero_grad()
            with torch.profiler.profile(profile_memory=True) as profiler:
                compute().backward()
            events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
            sizes = torch.tensor([event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())])
            return int(sizes.cumsum(0).max()) - gradients

        stock = peak(lambda: model(**inputs, labels=labels).loss)
        ours = peak(lambda: masked_lm_loss(model, model, inputs, labels, chunk_rows=16))
        assert 0 < ours < stock / 3


@pytest.fixture
def process_group(monkeypatch):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class TestDistributed:
    @pytest.mark.parametrize("unused", [True, False])
    def test_ddp_reduces_every_parameter(self, process_group, unused):
        """Through DDP's own forward: masked batches, one without masks, and a contrastive step, one after another."""
        model, (inputs, labels) = _model("xlm-roberta"), _batch()
        expected = {n: g.clone() for n, g in _gradients(model, masked_lm_loss(model, model, inputs, labels)).items()}
        wrapped = DistributedDataParallel(model, find_unused_parameters=unused)
        _assert_close(_gradients(model, masked_lm_loss(wrapped, model, inputs, labels)), expected)
        empty = masked_lm_loss(wrapped, model, inputs, torch.full_like(labels, -100))
        assert all(not grad.any() for grad in _gradients(model, empty).values())
        vectors = sentence_vectors(wrapped, model, inputs)
        assert all(grad is not None for grad in _gradients(model, contrastive_losses(vectors, vectors).sum()).values())
        _assert_close(_gradients(model, masked_lm_loss(wrapped, model, inputs, labels)), expected)


class TestContrastive:
    @staticmethod
    def _naive(left, right, temperature, same):
        losses = []
        for i in range(len(left)):
            both = []
            for own, other in ((left, right), (right, left)):
                kept = [j for j in range(len(left)) if j == i or same is None or not same[i][j]]
                scores = [F.cosine_similarity(own[i], other[j], dim=0) / temperature for j in kept]
                both.append(torch.logsumexp(torch.stack(scores), 0) - scores[kept.index(i)])
            losses.append((both[0] + both[1]) / 2)
        return torch.stack(losses)

    @pytest.mark.parametrize("masked", [False, True])
    def test_equals_a_plain_loop(self, masked):
        """Value and gradient; with the same sentence in several pairs, those are no negatives."""
        torch.manual_seed(0)
        left, right = (torch.randn(6, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
        names = torch.tensor([0, 1, 0, 2, 1, 0])
        same = names[:, None] == names if masked else None
        ours, naive = contrastive_losses(left, right, 0.2, same), self._naive(left, right, 0.2, same)
        torch.testing.assert_close(ours, naive)
        weights = torch.rand(6, dtype=torch.float64)
        for one, two in zip(
            torch.autograd.grad(ours @ weights, (left, right)),
            torch.autograd.grad(naive @ weights, (left, right)),
            strict=True,
        ):
            torch.testing.assert_close(one, two)

    def test_false_negatives_do_not_matter(self):
        """A pair's loss does not change with the vectors of another pair that holds the same sentence."""
        torch.manual_seed(0)
        left, right = torch.randn(4, 5), torch.randn(4, 5)
        same = torch.zeros(4, 4, dtype=torch.bool)
        same[0, 3] = same[3, 0] = True
        changed = left.clone(), right.clone()
        changed[0][3] *= -1
        changed[1][3] += 1
        before, after = contrastive_losses(left, right, same=same), contrastive_losses(*changed, same=same)
        assert before[0] == after[0] and before[1] != after[1]

    def test_float32_under_autocast(self):
        torch.manual_seed(0)
        left, right = torch.randn(8, 16), torch.randn(8, 16)
        with torch.autocast("cpu", torch.bfloat16):
            losses = contrastive_losses(left, right)
        assert losses.dtype == torch.float32
        assert torch.equal(losses, contrastive_losses(left, right))

    def test_a_lone_pair_has_no_loss(self):
        assert contrastive_losses(torch.randn(1, 4), torch.randn(1, 4)).item() == pytest.approx(0, abs=1e-6)

    def test_a_temperature_of_zero_is_refused(self):
        with pytest.raises(ConfigError, match="above 0"):
            contrastive_losses(torch.randn(2, 4), torch.randn(2, 4), temperature=0.0)


class TestSentenceVectors:
    @pytest.mark.parametrize("family", ["xlm-roberta", "modernbert", "deberta-v2 new head", "distilbert"])
    def test_pooled_states_of_the_encoder(self, family):
        model, (inputs, _) = _model(family), _batch()
        hidden = getattr(model, model.base_model_prefix)(**inputs).last_hidden_state
        lengths = inputs["attention_mask"].sum(1)
        mean = torch.stack([row[:length].mean(0) for row, length in zip(hidden, lengths, strict=True)])
        torch.testing.assert_close(sentence_vectors(model, model, inputs), mean)
        torch.testing.assert_close(sentence_vectors(model, model, inputs, pooling="first"), hidden[:, 0])

    def test_padding_does_not_change_a_vector(self):
        model, (inputs, _) = _model("xlm-roberta"), _batch()
        short = {name: value[3:, :10] for name, value in inputs.items()}
        torch.testing.assert_close(
            sentence_vectors(model, model, short)[0], sentence_vectors(model, model, inputs)[3], rtol=1e-5, atol=1e-6
        )

    def test_every_parameter_gets_a_gradient(self):
        model, (inputs, _) = _model("xlm-roberta", tie_word_embeddings=True), _batch()
        vectors = sentence_vectors(model, model, inputs)
        gradients = _gradients(model, contrastive_losses(vectors, vectors.flip(0)).sum())
        assert all(grad is not None and torch.isfinite(grad).all() for grad in gradients.values())
        assert gradients["roberta.encoder.layer.1.output.dense.weight"].any()
        assert not gradients["lm_head.dense.weight"].any()

    def test_an_unknown_pooling_is_refused(self):
        model, (inputs, _) = _model("bert"), _batch()
        with pytest.raises(ConfigError, match="`mean` or `first`"):
            sentence_vectors(model, model, inputs, pooling="max")

    def test_an_empty_row_pools_to_zero(self):
        assert not mean_pool(torch.randn(1, 3, 4), torch.zeros(1, 3, dtype=torch.long)).any()

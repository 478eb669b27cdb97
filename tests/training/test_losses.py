"""Units and losses of answers: a position below 0 is no target and counts as no unit."""

import torch
import torch.nn.functional as F

from hf_xlt.training.losses import count_units, loss_sum, per_example_losses

LABELS = {"start_positions": torch.tensor([1, -100, 0]), "end_positions": torch.tensor([2, -100, 0])}


def outputs():
    torch.manual_seed(0)
    return {"start_logits": torch.randn(3, 5), "end_logits": torch.randn(3, 5)}


def test_an_ignored_answer_is_no_unit_and_has_no_loss():
    found = outputs()
    losses = per_example_losses(found, LABELS, None)
    assert count_units(LABELS).item() == 2 and losses[1].item() == 0
    kept = torch.tensor([0, 2])
    ends = (("start_logits", "start_positions"), ("end_logits", "end_positions"))
    expected = sum(F.cross_entropy(found[end][kept], LABELS[name][kept], reduction="sum") for end, name in ends) / 2
    assert torch.allclose(loss_sum(found, LABELS, None), expected)


def test_a_position_beyond_the_window_is_a_unit_without_loss():
    labels = {"start_positions": torch.tensor([7, 1, 0]), "end_positions": torch.tensor([9, 2, 0])}
    assert count_units(labels).item() == 3 and per_example_losses(outputs(), labels, None)[0].item() == 0

import itertools
import math

import pytest
import torch

from hf_xlt.randomness import keyed_generator
from hf_xlt.strategies.robust import noise as noises
from hf_xlt.strategies.robust import perturbation as maths
from hf_xlt.strategies.robust.noise import Place
from hf_xlt.strategies.robust.perturbation import Ball

NORMS, SCOPES, INITS = ("l2", "linf"), ("token", "sentence"), ("zero", "uniform", "gaussian")
RADII = (1e-6, 1e-2, 1.0, 1e3)
NOISES = ("gaussian", "uniform", "l2_ball", "l2_sphere")
LENGTHS = (2, 15, 1, 9)


def product(*choices):
    return list(itertools.product(*choices))


def generators(count, seed=0):
    return [keyed_generator(seed, "test", row) for row in range(count)]


def mask_of(lengths, width=None, side="right"):
    positions = torch.arange(width or max(lengths))
    right = positions < torch.tensor(lengths)[:, None]
    return right if side == "right" else right.flip(1)


def norms_by_hand(delta, norm, scope):
    """One number per example or position, by loops."""
    rows = [list(row) if scope == "token" else [row] for row in delta]
    return [
        [piece.abs().max() if norm == "linf" else piece.double().square().sum().sqrt() for piece in row]
        for row in rows
    ]


def assert_in_ball(delta, ball):
    for row in norms_by_hand(delta, ball.norm, ball.scope):
        assert max(row) <= ball.radius * (1 + 1e-6)


@pytest.mark.parametrize(("norm", "scope", "radius"), product(NORMS, SCOPES, RADII))
def test_projection_reaches_the_radius_of_each_example_and_is_idempotent(norm, scope, radius):
    ball, mask = Ball(norm, scope, radius), mask_of(LENGTHS)
    outside = noises.draw("normal", mask, 6, generators(4), torch.float32) * radius * 30
    projected = maths.project(outside, ball)
    assert_in_ball(projected, ball)
    # Each example and position that lay outside ends on its own boundary: a norm shared by the batch would not.
    after = maths.perturbation_norms(projected, norm, scope).expand(-1, mask.shape[1], 1)[mask]
    before = maths.perturbation_norms(outside, norm, scope).expand(-1, mask.shape[1], 1)[mask]
    torch.testing.assert_close(
        after[before > radius], torch.full_like(after, radius)[before > radius], rtol=1e-6, atol=0
    )
    torch.testing.assert_close(maths.project(projected, ball), projected, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("norm", "scope"), product(NORMS, SCOPES))
def test_projection_leaves_interior_points_bit_for_bit(norm, scope):
    inside = torch.randn(3, 5, 4, generator=keyed_generator(1)) * 0.01
    assert torch.equal(maths.project(inside, Ball(norm, scope, 1.0)), inside)


@pytest.mark.parametrize(("norm", "scope", "radius", "init", "steps"), product(NORMS, SCOPES, RADII, INITS, (1, 3)))
def test_ascent_stays_in_the_ball_of_every_example(norm, scope, radius, init, steps):
    ball, mask = Ball(norm, scope, radius), mask_of(LENGTHS)
    delta = noises.initial_perturbation(init, ball, Place(mask, mask, 6, generators(4), torch.float32))
    assert_in_ball(delta, ball)
    for step in range(steps):
        gradient = torch.randn(4, 15, 6, generator=keyed_generator(step)) * 10.0 ** (3 * step - 4)
        delta, stuck = maths.ascend(delta, gradient, mask, ball, 0.7 * radius)
        assert_in_ball(delta, ball)
        assert not stuck.any() and torch.equal(delta[~mask], torch.zeros_like(delta[~mask]))


def test_on_a_linear_model_one_step_is_the_closed_form():
    weights, mask = torch.randn(3, 4, 5, generator=keyed_generator(2)), mask_of((4, 2, 3))
    gradient = weights * 7.3  # The loss is (weights * delta).sum(); its scale must not matter.
    start, masked = torch.zeros(3, 4, 5), weights * mask[..., None]
    expected = {
        ("l2", "sentence"): masked / masked.flatten(1).norm(dim=1)[:, None, None],
        ("l2", "token"): torch.nan_to_num(masked / masked.norm(dim=2, keepdim=True)),
        ("linf", "sentence"): masked.sign(),
        ("linf", "token"): masked.sign(),
    }
    for (norm, scope), direction in expected.items():
        delta, _ = maths.ascend(start, gradient, mask, Ball(norm, scope, 0.3), 0.3)
        torch.testing.assert_close(delta, 0.3 * direction, rtol=1e-6, atol=1e-9)


def test_maxnorm_divides_by_the_largest_entry_of_the_example():
    gradient = torch.tensor([[[1.0, -4.0], [2.0, 0.0]], [[0.1, 0.2], [0.0, 0.0]]])
    direction = maths.ascend(
        torch.zeros(2, 2, 2), gradient, mask_of((2, 2)), Ball("linf", "sentence", 1.0), 1.0, "maxnorm"
    )[0]
    torch.testing.assert_close(direction, gradient / torch.tensor([4.0, 0.2])[:, None, None])


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize(("norm", "scope"), product(NORMS, SCOPES))
def test_an_unusable_gradient_stops_its_row_only(norm, scope, bad):
    ball, mask = Ball(norm, scope, 1.0), mask_of((3, 3, 3, 0, 3))
    gradient = torch.randn(5, 3, 4, generator=keyed_generator(3))
    delta = torch.randn(5, 3, 4, generator=keyed_generator(4)) * 0.01 * mask[..., None]
    clean, _ = maths.ascend(delta, gradient, mask, ball, 0.5)
    gradient[1, 2, 0], gradient[2] = bad, 0.0
    moved, stuck = maths.ascend(delta, gradient, mask, ball, 0.5)
    # Row 3 has nothing to perturb, so it is not counted as stuck.
    assert stuck.tolist() == [False, True, True, False, False]
    assert torch.equal(moved[stuck], delta[stuck]) and torch.equal(moved[~stuck], clean[~stuck])
    assert moved.isfinite().all()


@pytest.mark.parametrize(("norm", "scope"), product(NORMS, SCOPES))
def test_a_step_of_one_example_is_the_same_alone_and_in_a_batch(norm, scope):
    ball, mask = Ball(norm, scope, 0.1), mask_of(LENGTHS)
    gradient = (
        torch.randn(4, 15, 6, generator=keyed_generator(5)) * torch.tensor([1e-3, 1.0, 50.0, 1e3])[:, None, None]
    )
    batch, _ = maths.ascend(torch.zeros(4, 15, 6), gradient, mask, ball, 0.08)
    for row in range(4):
        alone, _ = maths.ascend(torch.zeros(1, 15, 6), gradient[row : row + 1], mask[row : row + 1], ball, 0.08)
        torch.testing.assert_close(batch[row], alone[0], rtol=1e-6, atol=0)


def every_draw(law, scope, content, mask, seed=0, width=6):
    place = Place(content, mask, width, generators(len(content), seed), torch.float32)
    if law in NOISES:
        return noises.draw_noise(law, scope, 0.5, place)
    norm, init = law
    return noises.initial_perturbation(init, Ball(norm, scope, 0.5), place)


LAWS = [*NOISES, *product(NORMS, ("uniform", "gaussian"))]


@pytest.mark.parametrize(("law", "scope"), product(LAWS, SCOPES))
def test_random_draws_do_not_depend_on_padding_or_on_the_rest_of_the_batch(law, scope):
    mask = mask_of(LENGTHS)
    batch = every_draw(law, scope, mask, mask)
    assert torch.equal(batch[~mask], torch.zeros_like(batch[~mask])) and (batch[mask] != 0).all()
    wide, left = mask_of(LENGTHS, width=40), mask_of(LENGTHS, side="left")
    first = every_draw(law, scope, mask[:1, :2], mask[:1, :2])
    same = ((every_draw(law, scope, wide, wide)[wide], batch[mask]), (first[0], batch[0, :2]))
    # Not bit for bit: a power's last bit depends on where in memory a number lies.
    for one, other in (*same, (every_draw(law, scope, left, left)[left], batch[mask])):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("law", "scope"), product(LAWS, SCOPES))
def test_random_draws_leave_positions_off_the_mask_at_zero(law, scope):
    content = mask_of(LENGTHS)
    mask = content.clone()
    mask[:, 0] = False
    drawn = every_draw(law, scope, content, mask)
    assert torch.equal(drawn[~mask], torch.zeros_like(drawn[~mask])) and (drawn[mask] != 0).all()


@pytest.mark.parametrize("law", LAWS)
def test_a_seed_reproduces_and_a_further_draw_differs(law):
    mask = mask_of(LENGTHS)
    assert torch.equal(every_draw(law, "token", mask, mask), every_draw(law, "token", mask, mask))
    assert not torch.equal(every_draw(law, "token", mask, mask), every_draw(law, "token", mask, mask, seed=1))
    streams = generators(4)
    first, second = (
        noises.draw_noise("gaussian", "token", 1.0, Place(mask, mask, 6, streams, torch.float32)) for _ in range(2)
    )
    assert not torch.equal(first, second)


def sample(noise, scope, radius=0.7, rows=4000, length=3, width=2):
    mask = torch.ones(rows, length, dtype=torch.bool)
    return noises.draw_noise(noise, scope, radius, Place(mask, mask, width, generators(rows), torch.float32))


@pytest.mark.parametrize("scope", SCOPES)
def test_moments_of_each_noise_law_are_those_of_theory(scope):
    dimensions = 2 if scope == "token" else 6
    for noise in NOISES:
        drawn = sample(noise, scope)
        # Standard error of a mean over 24,000 entries of deviation at most 0.7 is 0.0045; four of them.
        assert drawn.mean().abs() < 0.02
    assert sample("gaussian", scope).std().item() == pytest.approx(0.7, rel=0.02)
    uniform = sample("uniform", scope)
    assert uniform.abs().max() <= 0.7 and uniform.var().item() == pytest.approx(0.49 / 3, rel=0.03)
    on_sphere = maths.perturbation_norms(sample("l2_sphere", scope), "l2", scope)
    torch.testing.assert_close(on_sphere, torch.full_like(on_sphere, 0.7), rtol=1e-5, atol=0)
    in_ball = maths.perturbation_norms(sample("l2_ball", scope), "l2", scope)
    assert in_ball.max() <= 0.7 * (1 + 1e-6)
    assert in_ball.mean().item() == pytest.approx(0.7 * dimensions / (dimensions + 1), rel=0.02)
    assert in_ball.square().mean().item() == pytest.approx(0.49 * dimensions / (dimensions + 2), rel=0.03)


def test_norm_ratio_is_one_on_the_boundary_and_near_one_for_gaussian_noise():
    mask = mask_of(LENGTHS)
    for noise, scope in (("l2_sphere", "token"), ("l2_sphere", "sentence")):
        drawn = noises.draw_noise(noise, scope, 0.3, Place(mask, mask, 64, generators(4), torch.float32))
        assert maths.norm_ratio(drawn, mask, Ball("linf", scope, 0.3), noise).item() == pytest.approx(1.0, rel=1e-5)
    drawn = noises.draw_noise("gaussian", "sentence", 0.3, Place(mask, mask, 64, generators(4), torch.float32))
    assert maths.norm_ratio(drawn, mask, Ball("l2", "sentence", 0.3), "gaussian").item() == pytest.approx(1.0, rel=0.1)


def test_text_is_told_from_padding_with_and_without_an_attention_mask():
    ids = torch.tensor([[5, 6, 1], [7, 1, 1]])
    expected = [[True, True, False], [True, False, False]]
    assert maths.content_positions({"input_ids": ids}, 1).tolist() == expected
    assert maths.content_positions({"input_ids": ids, "attention_mask": ids.ne(1).long()}, 0).tolist() == expected
    assert maths.content_positions({"input_ids": ids}, None).all()
    with pytest.raises(ValueError, match="batch, tokens"):
        maths.content_positions({"input_ids": ids, "attention_mask": torch.ones(2, 1, 3, 3)}, 1)


@pytest.mark.parametrize("scope", SCOPES)
def test_a_random_start_has_the_length_that_is_documented(scope):
    mask = mask_of([9] * 40 + [3] * 40)

    def start(init, norm):
        ball = Ball(norm, scope, 0.5)
        return noises.initial_perturbation(init, ball, Place(mask, mask, 64, generators(80), torch.float32))

    def lengths(init):
        norms = maths.perturbation_norms(start(init, "l2"), "l2", scope)
        return norms.expand(-1, 9, 1)[mask]

    uniform, gaussian = lengths("uniform"), lengths("gaussian")
    assert uniform.max() <= 0.5 and uniform.mean().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.02)
    assert gaussian.max() <= 0.5 * (1 + 1e-6) and gaussian.mean() > 0.45
    box = start("uniform", "linf")[mask]
    assert 0.49 < box.abs().max() <= 0.5 and box.std().item() == pytest.approx(0.5 / math.sqrt(3), rel=0.05)
    assert start("gaussian", "linf")[mask].std().item() == pytest.approx(0.5 / 3, rel=0.05)

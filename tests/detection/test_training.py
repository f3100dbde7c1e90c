import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from consilia.detection import weights
from consilia.detection.detectors import build
from consilia.detection.evaluation import evaluate
from consilia.detection.placement import Placement
from consilia.detection.training import BatchOrder, Recipe, StepBudget, Trainer, WeightMean, learning_rate
from consilia.errors import DatasetError, SpecError, WeightsError
from tests.consortium import read_weights
from tests.detection.squares import square_example

SIZE = 64
RECIPE = Recipe(batch_size=2, warmup_steps=2)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def start(tmp_path: Path) -> Path:
    weights.save(build("faster-rcnn", num_classes=1, image_size=SIZE, seed=9), tmp_path / "start")
    return tmp_path / "start"


def trainer(seed: int = 0, recipe: Recipe = RECIPE, detector: str = "faster-rcnn") -> Trainer:
    examples = [square_example(i, size=SIZE, lesions=i % 3) for i in range(9)]
    return Trainer(detector, 1, SIZE, recipe, examples, seed)


def test_the_same_seed_gives_the_same_bytes(start, tmp_path):
    budget = StepBudget(steps=2, first_step=0, total_steps=4)
    metrics = trainer(seed=1).train(start, budget, tmp_path / "a")
    torch.rand(7)  # whatever else the process draws must not matter
    np.random.default_rng().random()
    trainer(seed=1).train(start, budget, tmp_path / "b")
    trainer(seed=2).train(start, budget, tmp_path / "c")
    a, b, c = ((tmp_path / name).read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert a != start.read_bytes()
    assert (metrics.steps, metrics.num_examples, metrics.skipped) == (2, 9, 0)
    assert 0 < metrics.loss < 20


def test_a_round_begins_with_the_global_model_not_with_the_last_local_one(start, tmp_path):
    budget = StepBudget(steps=1, first_step=0, total_steps=4)
    one = trainer()
    one.train(start, budget, tmp_path / "first")
    one.optimizer.state.clear()  # as after a crash
    one.train(start, budget, tmp_path / "again")
    assert (tmp_path / "first").read_bytes() == (tmp_path / "again").read_bytes()


def test_the_moments_are_kept_between_rounds(start, tmp_path):
    keeping, fresh = trainer(), trainer()
    keeping.train(start, StepBudget(1, 0, 4), tmp_path / "w")
    keeping.train(tmp_path / "w", StepBudget(1, 1, 4), tmp_path / "kept")
    fresh.train(tmp_path / "w", StepBudget(1, 1, 4), tmp_path / "fresh")
    assert (tmp_path / "kept").read_bytes() != (tmp_path / "fresh").read_bytes()


def test_a_foreign_model_is_refused(tmp_path):
    weights.save(build("retinanet", num_classes=1, image_size=SIZE, seed=0), tmp_path / "other")
    with pytest.raises(WeightsError):
        trainer().train(tmp_path / "other", StepBudget(1, 0, 1), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_gradient_that_is_not_finite_is_skipped_and_counted(start, tmp_path):
    broken = trainer()
    broken.model.roi_heads.box_head.register_forward_hook(lambda module, args, output: output * math.nan)
    metrics = broken.train(start, StepBudget(2, 0, 4), tmp_path / "out")
    assert metrics.skipped == metrics.steps == 2
    assert math.isnan(metrics.loss)
    assert (tmp_path / "out").read_bytes() == start.read_bytes()


def test_a_proximal_term_holds_a_round_near_where_it_began(start, tmp_path):
    def moved(mu: float) -> float:
        pulled = trainer(recipe=replace(RECIPE, proximal_mu=mu, learning_rate=1e-2))
        pulled.train(start, StepBudget(4, 2, 6), tmp_path / "out")
        before, after = (read_weights(path) for path in (start, tmp_path / "out"))
        return float(sum(((after[name] - before[name]) ** 2).sum() for name in before))

    assert moved(100.0) < 0.8 * moved(0.0)


def test_the_mean_of_the_weights_is_the_mean_of_the_weights(start, tmp_path):
    """Of the weights after each step, by the published recursion, whatever the detector does."""
    recipe = replace(RECIPE, ema_decay=0.3)
    trainer(recipe=recipe).train(start, StepBudget(2, 0, 4), tmp_path / "mean")
    one = trainer()
    weights.load_into(one.model, start)
    mean = WeightMean(list(one.model.parameters()), 0.3)
    honest = one._step
    one._step = lambda *arguments: (honest(*arguments), mean.add(list(one.model.parameters())))[0]
    one.run(StepBudget(2, 0, 4))
    mean.put_into(list(one.model.parameters()))
    weights.save(one.model, tmp_path / "expected")
    assert (tmp_path / "mean").read_bytes() == (tmp_path / "expected").read_bytes()
    weight = torch.nn.Parameter(torch.zeros(1))
    mean = WeightMean([weight], 0.9)
    for value in (1.0, 2.0):
        weight.data.fill_(value)
        mean.add([weight])
    mean.put_into([weight])
    # decays 2/11 and 3/12: (2/11 * 0 + 9/11 * 1) * 1/4 + 3/4 * 2
    assert weight.item() == pytest.approx(9 / 44 + 1.5)


def test_batches_prepared_ahead_are_the_same_batches(start, tmp_path):
    examples = [square_example(i, size=SIZE, lesions=i % 3) for i in range(9)]
    for name, ahead in (("in turn", 0), ("ahead", 2)):
        one = Trainer("faster-rcnn", 1, SIZE, RECIPE, examples, 0, placement=Placement(ahead=ahead))
        one.train(start, StepBudget(3, 0, 4), tmp_path / name)
    assert (tmp_path / "in turn").read_bytes() == (tmp_path / "ahead").read_bytes()


def test_half_precision_and_channels_last_train_the_same_float32_weights(start, tmp_path):
    """What a GPU gets, on a core: the file keeps its shapes and order, and the weights move about as far."""
    examples = [square_example(i, size=SIZE, lesions=1) for i in range(4)]
    for name, placement in (
        ("plain", Placement()),
        ("as on a GPU", Placement(bfloat16=True, channels_last=True)),
    ):
        one = Trainer("faster-rcnn", 1, SIZE, RECIPE, examples, 0, placement=placement)
        metrics = one.train(start, StepBudget(1, 1, 4), tmp_path / name)
        assert metrics.skipped == 0
        assert all(p.dtype == torch.float32 for p in one.model.parameters())
    before, plain, half = (read_weights(tmp_path / name) for name in ("start", "plain", "as on a GPU"))
    assert list(half) == list(before)
    step = {name: np.abs(plain[name] - before[name]).max() for name in before}
    assert all(np.abs(half[name] - before[name]).max() <= 3 * step[name] + 1e-6 for name in before)
    assert any(not np.array_equal(half[name], before[name]) for name in before)


def test_pictures_that_cannot_be_shared_out_among_the_ranks_are_refused():
    placement = Placement(rank=1, ranks=3)
    with pytest.raises(SpecError, match="2 pictures cannot be shared out among 3 processes"):
        Trainer("faster-rcnn", 1, SIZE, RECIPE, [square_example(0)], 0, placement=placement)


def test_no_pictures_no_training():
    with pytest.raises(DatasetError, match="picture"):
        Trainer("faster-rcnn", 1, SIZE, RECIPE, [], 0)


def test_a_hospital_without_lesions_can_train_too(start, tmp_path):
    healthy = Trainer("faster-rcnn", 1, SIZE, RECIPE, [square_example(i, lesions=0) for i in range(3)], 0)
    metrics = healthy.train(start, StepBudget(2, 0, 4), tmp_path / "out")
    assert math.isfinite(metrics.loss)


def test_the_rate_warms_up_once_and_falls_to_its_end():
    recipe = Recipe(learning_rate=0.5, warmup_steps=10, final_rate=0.02)
    rates = [learning_rate(recipe, step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.05)
    assert all(a < b for a, b in pairwise(rates[:10]))
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert max(rates) <= 0.5
    assert rates[100] == pytest.approx(0.01)


def test_every_pass_shows_each_lesion_once_and_other_healthy_pictures():
    examples = [square_example(i, lesions=int(i < 4)) for i in range(20)]
    recipe = replace(RECIPE, batch_size=4, negatives_per_positive=1.0)
    passes = [
        [index for step in (2 * n, 2 * n + 1) for index in BatchOrder(examples, recipe, 7).indices(step)]
        for n in range(6)
    ]
    for seen in passes:
        assert sorted(seen)[:4] == [0, 1, 2, 3]
        assert len(set(seen)) == 8
    assert len({tuple(seen) for seen in passes}) == 6
    assert len({index for seen in passes for index in seen}) > 12


def test_any_step_is_found_without_the_ones_before():
    examples = [square_example(i) for i in range(5)]
    alone = BatchOrder(examples, RECIPE, 7).indices(11)
    in_order = BatchOrder(examples, RECIPE, 7)
    in_turn = [in_order.indices(step) for step in range(12)]
    assert in_turn[11] == alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("detector", "steps", "least_cpm"), [("faster-rcnn", 80, 0.8), ("retinanet", 150, 0.3)]
)
def test_learns_to_find_bright_rectangles(detector, steps, least_cpm):
    recipe = Recipe(batch_size=4, warmup_steps=10)
    student = Trainer(detector, 1, SIZE, recipe, [square_example(i) for i in range(40)], 0)
    unseen = [square_example(i) for i in range(100, 120)]
    before = evaluate(student.model, unseen).cpm
    student.run(StepBudget(steps, 0, steps))
    assert evaluate(student.model, unseen).cpm > max(least_cpm, before)

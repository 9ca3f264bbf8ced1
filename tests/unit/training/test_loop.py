"""Training: learns, repeats itself bit by bit, continues where it was killed, and says what is wrong."""

import copy
import logging
import math
import re
from dataclasses import fields, replace

import pytest
import torch
from torch import nn

from scap.data.datasets import Dataset, Images
from scap.errors import ScapError
from scap.training import loop as training
from scap.training.loop import evaluate, reset_network, train, training_loss
from scap.training.settings import TrainingSettings


def stripes(count, seed):
    """Images (count, 1, 8, 8) of noisy horizontal (class 0) and vertical (class 1) stripes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 2
    wave = (torch.arange(8) % 2 * 120).expand(8, 8)
    patterns = torch.stack([wave.T, wave])[labels][:, None]
    noise = torch.randint(0, 120, patterns.shape, generator=generator)
    return Images((patterns + noise).to(torch.uint8), labels)


@pytest.fixture(scope="module")
def dataset():
    parts = [stripes(count, seed) for seed, count in enumerate((48, 16, 40))]
    return Dataset(*parts, mean=torch.tensor([0.5]), std=torch.tensor([0.25]), classes=2)


def small_network(seed=0):
    """With a dropout layer, so that the random state of the forward pass matters too."""
    network = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.2),
        nn.Linear(24, 2),
    )
    reset_network(network, seed)
    return network


def settings(**changes):
    defaults = {"epochs": 4, "batch_size": 16, "learning_rate": 0.1, "crop": 1, "flip": True, "cutout": 2}
    return TrainingSettings(**{**defaults, **changes})


def same_weights(first, second):
    mine, theirs = first.state_dict(), second.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


class Killed(Exception):
    pass


def kill_after(epoch):
    def report(row):
        if row["epoch"] == epoch:
            raise Killed

    return report


def test_it_learns_what_can_be_learned(dataset):
    network = small_network()
    history = train(network, dataset, settings(epochs=12), seed=0)
    assert evaluate(network, dataset.test, dataset.mean, dataset.std) > 95
    assert history[-1]["loss"] < history[0]["loss"]


@pytest.mark.parametrize(
    ("precision", "capable", "computed"),
    [("float32", True, torch.float32), ("bfloat16", True, torch.bfloat16), ("bfloat16", False, torch.float32)],
)
def test_the_precision_is_that_of_training_and_not_of_what_is_kept(dataset, precision, capable, computed, monkeypatch, caplog):
    monkeypatch.setattr(training, "computes_in_bfloat16", lambda device: capable)
    network, seen = small_network(), {True: set(), False: set()}
    network[0].register_forward_hook(lambda layer, inputs, output: seen[layer.training].add(output.dtype))
    history = train(network, dataset, settings(epochs=12, precision=precision), seed=0)
    assert seen == {True: {computed}, False: {torch.float32}}
    assert {tensor.dtype for tensor in network.state_dict().values()} == {torch.float32, torch.int64}
    assert history[-1]["holdout_top1"] > 90
    assert ("does not compute in bfloat16; training in float32" in caplog.text) == (not capable)


def test_bfloat16_is_computed_where_the_hardware_has_it(monkeypatch):
    for name, expected in {"avx512_bf16": True, "amx_bf16": True, "bf16": True, "avx2": False}.items():
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda name=name: {name: True})
        assert training.computes_in_bfloat16("cpu") == expected


def test_bfloat16_on_a_gpu_is_not_emulated(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not training.computes_in_bfloat16("cuda")


def test_training_on_the_cpu_touches_no_gpu(dataset, monkeypatch):
    """With a driver too old for PyTorch, a look at the state of a device that is counted but not usable is an error."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: pytest.fail("asked for a device's state"))
    train(small_network(), dataset, settings(epochs=1), seed=0)


def test_float32_is_float32_on_every_device(dataset):
    """Inside a training; outside, the user's own setting stands."""
    network, seen = small_network(), []
    before = torch.backends.cudnn.allow_tf32
    network[0].register_forward_hook(
        lambda layer, inputs, output: seen.append(torch.backends.cudnn.allow_tf32 and layer.training)
    )
    train(network, dataset, settings(epochs=1), seed=0)
    assert seen
    assert not any(seen)
    assert torch.backends.cudnn.allow_tf32 == before


def test_the_history_has_one_row_an_epoch_and_is_what_report_was_told(dataset):
    rows = []
    history = train(small_network(), dataset, settings(), seed=0, report=rows.append)
    assert history == rows
    assert [row["epoch"] for row in history] == [1, 2, 3, 4]
    assert list(history[0]) == ["epoch", "learning_rate", "loss", "train_top1", "holdout_top1", "seconds"]
    assert history[0]["learning_rate"] > history[-1]["learning_rate"] > 0


def test_the_holdout_is_measured_with_the_weights_that_are_kept(dataset, monkeypatch):
    network, measured = small_network(), []
    monkeypatch.setattr(training, "evaluate", lambda network, *rest: measured.append(copy.deepcopy(network)))
    train(network, dataset, settings(ema=0.9), seed=0)
    assert len(measured) == 4
    assert same_weights(measured[-1], network)


def test_the_holdout_row_is_its_accuracy(dataset):
    network = small_network()
    history = train(network, dataset, settings(), seed=0)
    assert history[-1]["holdout_top1"] == evaluate(network, dataset.holdout, dataset.mean, dataset.std)


def test_without_a_holdout_its_accuracy_is_nan(dataset):
    nothing = Images(dataset.holdout.images[:0], dataset.holdout.labels[:0])
    bare = Dataset(dataset.train, nothing, dataset.test, dataset.mean, dataset.std, 2)
    assert math.isnan(train(small_network(), bare, settings(epochs=1), seed=0)[0]["holdout_top1"])


def test_training_accuracy_is_counted_on_the_batches_as_they_pass(dataset):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    plain = settings(epochs=1, learning_rate=1e-12, crop=0, flip=False, cutout=0)
    (row,) = train(network, dataset, plain, seed=0)
    assert row["train_top1"] == pytest.approx(evaluate(network, dataset.train, dataset.mean, dataset.std))


def test_a_seed_gives_the_same_weights_whatever_happened_before(dataset):
    first, again, other = (small_network() for _ in range(3))
    train(first, dataset, settings(), seed=3)
    torch.rand(5)
    train(again, dataset, settings(), seed=3)
    train(other, dataset, settings(), seed=4)
    assert same_weights(first, again)
    assert not same_weights(first, other)


def test_every_epoch_sees_other_crops(dataset):
    network, seen = small_network(), []

    def record(module, inputs):
        if module.training:
            seen.append(sorted(map(bytes, inputs[0].flatten(1).numpy())))

    network[0].register_forward_pre_hook(record)
    train(network, dataset, settings(epochs=2, batch_size=48), seed=0)
    assert len(seen) == 2
    assert seen[0] != seen[1]


def test_a_network_in_evaluation_mode_is_trained_all_the_same(dataset):
    first, second = small_network().train(), small_network().eval()
    for network in (first, second):
        train(network, dataset, settings(epochs=2), seed=0)
    assert same_weights(first, second)


class Noise(nn.Module):
    """Draws random values in evaluation too."""

    def forward(self, values):
        return values + 0.01 * torch.randn(())


@pytest.mark.parametrize("sizes", [(), (4, 6)])
def test_training_leaves_the_global_random_state_alone(dataset, sizes):
    network = nn.Sequential(Noise(), small_network()) if sizes else small_network()
    if sizes:  # an evaluation draws for itself
        dataset = replace(dataset, holdout=Images(dataset.holdout.images[:0], dataset.holdout.labels[:0]))
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    train(network, dataset, settings(epochs=2, small_images=sizes), seed=0)
    assert torch.equal(torch.rand(3), expected)


FAST = {"muon": 0.05, "bias_rate": 4.0, "padding": "reflected", "alternating_flip": True, "small_images": (4, 6, 6)}


@pytest.mark.parametrize("changes", [{}, {"ema": 0.9}, {"distillation": 0.5}, {"momentum": 0.0}, FAST])
@pytest.mark.parametrize("killed_after", [1, 3])
def test_a_killed_run_continues_to_bit_equal_weights(dataset, tmp_path, changes, killed_after):
    straight, killed, resumed, rows = *(small_network() for _ in range(3)), []
    chosen, options = settings(**changes), {"seed": 5, "teacher": small_network(9)}
    whole = train(straight, dataset, chosen, **options)
    options["resume"] = tmp_path / "resume"
    with pytest.raises(Killed):
        train(killed, dataset, chosen, report=kill_after(killed_after), **options)
    history = train(resumed, dataset, chosen, report=rows.append, **options)
    assert [row["epoch"] for row in rows] == list(range(killed_after + 1, 5))
    assert without_seconds(history) == without_seconds(whole)
    assert same_weights(straight, resumed)


def test_a_finished_run_is_not_trained_again(dataset, tmp_path):
    first, second, rows = small_network(), small_network(), []
    options = {"seed": 0, "resume": tmp_path / "resume"}
    history = train(first, dataset, settings(ema=0.9), **options)
    assert train(second, dataset, settings(ema=0.9), report=rows.append, **options) == history
    assert rows == []
    assert same_weights(first, second)


@pytest.mark.parametrize("difference", ["settings", "precision", "seed", "weights", "images", "version", "damage"])
def test_progress_of_another_run_is_reported_and_ignored(dataset, tmp_path, caplog, monkeypatch, difference):
    """A precision differs where the same settings meet other hardware."""
    path, fresh, resumed = tmp_path / "resume", small_network(), small_network()
    images = Images(dataset.train.images.flip(0), dataset.train.labels)
    other = Dataset(images, dataset.holdout, dataset.test, dataset.mean, dataset.std, 2)
    chosen = settings(weight_decay=0.0, precision="bfloat16")
    monkeypatch.setattr(training, "computes_in_bfloat16", lambda device: difference == "precision")
    with pytest.raises(Killed):
        train(
            small_network(1 if difference == "weights" else 0),
            other if difference == "images" else dataset,
            replace(chosen, weight_decay=0.1) if difference == "settings" else chosen,
            seed=1 if difference == "seed" else 0,
            resume=path,
            version="edited" if difference == "version" else "",
            report=kill_after(2),
        )
    if difference == "damage":
        path.write_bytes(path.read_bytes()[:-1])
    monkeypatch.setattr(training, "computes_in_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING):
        train(resumed, dataset, chosen, seed=0, resume=path)
    train(fresh, dataset, chosen, seed=0)
    assert "training from scratch" in caplog.text
    assert same_weights(resumed, fresh)


def test_the_average_starts_with_a_short_memory(dataset):
    start, plain, averaged = (small_network() for _ in range(3))
    one_step = {"epochs": 1, "batch_size": 48}
    train(plain, dataset, settings(**one_step), seed=0)
    train(averaged, dataset, settings(**one_step, ema=0.999), seed=0)
    for name, value in averaged.named_parameters():
        expected = 0.1 * start.get_parameter(name) + 0.9 * plain.get_parameter(name)
        assert torch.allclose(value, expected, atol=1e-6)
    assert not torch.allclose(averaged[0].weight, plain[0].weight, atol=1e-3)


def test_a_diverging_loss_names_the_learning_rate_and_the_epoch(dataset):
    with pytest.raises(
        ScapError, match=r"^learning_rate: the loss is (nan|inf) in epoch 1 at 1000000\.0; try a smaller one, or a"
    ):
        train(small_network(), dataset, settings(learning_rate=1e6, weight_decay=1e6), seed=0)


def test_a_diverging_loss_names_what_else_may_be_wrong(dataset):
    """A small learning rate does not help where the weight decay or the images make the loss infinite."""
    wild = replace(dataset, std=torch.tensor([1e-38]))
    words = r"or a smaller weight_decay \(it is 0\.001\), and see that the data are normalised and hold no NaN$"
    with pytest.raises(ScapError, match=words):
        train(small_network(), wild, settings(learning_rate=1e-6, weight_decay=1e-3), seed=0)


FLOATS = [each for each in fields(TrainingSettings) if each.type is float]


def bounds(each):
    """The smallest and the largest value of a setting, or nearly."""
    kept = each.metadata
    low = kept["minimum"] if "minimum" in kept else kept["exclusiveMinimum"] + 1e-300
    return low, kept["maximum"] if "maximum" in kept else kept["exclusiveMaximum"] - 1e-12


@pytest.mark.parametrize(("key", "value"), [(each.name, value) for each in FLOATS for value in bounds(each)])
@pytest.mark.parametrize("others", [{}, {"learning_rate": 1e6, "weight_decay": 1e6}])
def test_settings_at_their_bounds_train_or_end_in_one_line(dataset, key, value, others):
    network, refusal = small_network(), ""
    try:
        train(network, dataset, settings(**{"epochs": 1} | others | {key: value}), seed=0, teacher=small_network(1))
    except ScapError as error:
        refusal = str(error)
    assert "\n" not in refusal
    assert refusal or all(weight.isfinite().all() for weight in network.state_dict().values())


def test_distillation_needs_a_teacher(dataset):
    with pytest.raises(ScapError, match=r"^distillation: 0.5 needs a teacher"):
        train(small_network(), dataset, settings(distillation=0.5), seed=0)


def test_the_teacher_is_not_changed(dataset):
    teacher = small_network(9).train()
    before = copy.deepcopy(teacher)
    train(small_network(), dataset, settings(distillation=0.5), seed=0, teacher=teacher)
    assert same_weights(teacher, before)
    assert teacher.training


def test_the_distillation_loss_is_the_published_formula():
    logits, teacher_logits, labels = torch.randn(6, 3), torch.randn(6, 3), torch.arange(6) % 3
    chosen = settings(distillation=0.3, temperature=2.0)
    student, teacher = (logits / 2).softmax(1), (teacher_logits / 2).softmax(1)
    divergence = (teacher * (teacher / student).log()).sum(1).mean()
    expected = 0.7 * nn.functional.cross_entropy(logits, labels) + 0.3 * 2.0**2 * divergence
    assert torch.allclose(training_loss(logits, labels, chosen, teacher_logits), expected)


def test_a_teacher_that_agrees_costs_nothing():
    logits, labels = torch.randn(6, 3), torch.arange(6) % 3
    loss = training_loss(logits, labels, settings(distillation=1.0), logits.clone())
    assert abs(float(loss)) < 1e-6


def test_kernels_end_as_numbers_of_the_precision_that_they_are_saved_in(dataset):
    plain, rounded = small_network(), small_network()
    train(plain, dataset, settings(), seed=0)
    train(rounded, dataset, settings(saved_precision="float16"), seed=0)
    for (name, value), other in zip(plain.state_dict().items(), rounded.state_dict().values(), strict=True):
        assert torch.equal(other, value.half().float() if value.ndim > 1 else value), name
    assert not same_weights(plain, rounded)


@pytest.mark.parametrize(("scale", "reached"), [(1e6, r"\S+e\+05"), (1e-7, r"\S+e-08")])
def test_a_kernel_that_float16_cannot_hold_stays_as_it_is_and_is_named(caplog, scale, reached):
    network = small_network()
    with torch.no_grad():
        network[0].weight.mul_(scale)
    before = copy.deepcopy(network.state_dict())
    training.round_kernels(network)
    after = network.state_dict()
    assert torch.equal(after["0.weight"], before["0.weight"])
    others = [name for name, value in before.items() if value.ndim > 1 and name != "0.weight"]
    assert others
    assert all(torch.equal(after[name], before[name].half().float()) for name in others)
    (record,) = caplog.records
    assert re.fullmatch(
        rf"saved_precision: 0\.weight reaches {reached}, which float16 cannot hold; it stays in float32", record.message
    )


def test_the_trained_network_is_contiguous_and_in_evaluation_mode(dataset):
    network = small_network()
    train(network, dataset, settings(epochs=1), seed=0)
    assert not network.training
    assert all(parameter.is_contiguous() for parameter in network.parameters())


def test_evaluation_counts_the_right_answers_in_percent(dataset):
    class Always1(nn.Module):
        def forward(self, inputs):
            return torch.tensor([0.0, 1.0]).expand(len(inputs), 2)

    ones = Images(dataset.test.images, (torch.arange(40) < 10).long())
    accuracies = [evaluate(Always1(), ones, dataset.mean, dataset.std, batch_size=size) for size in (7, 500)]
    assert accuracies == [25, 25]


def test_evaluation_uses_running_statistics_and_gives_the_mode_back(dataset):
    network = small_network().train()
    before = copy.deepcopy(network)
    evaluate(network, dataset.test, dataset.mean, dataset.std)
    assert network.training
    assert same_weights(network, before)


def test_resetting_depends_on_the_seed_alone(dataset):
    trained = small_network()
    train(trained, dataset, settings(epochs=1), seed=0)
    reset_network(trained, 2)
    assert same_weights(trained, small_network(2))
    assert not same_weights(trained, small_network(3))


def test_resetting_leaves_the_global_random_state_alone():
    network = small_network()
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    reset_network(network, 5)
    assert torch.equal(torch.rand(3), expected)


def test_small_images_reach_the_network_and_measurements_are_of_whole_ones(dataset):
    network, seen = small_network(), {True: [], False: []}
    network[0].register_forward_pre_hook(lambda layer, inputs: seen[layer.training].append(inputs[0].shape[-1]))
    train(network, dataset, settings(epochs=3, batch_size=48, small_images=(4, 6)), seed=0)
    assert seen[True] == [4, 6, 8]
    assert seen[False][-3:] == [8, 8, 8]


def test_a_size_that_the_network_cannot_take_is_named_and_the_network_left_alone(dataset):
    network = nn.Sequential(nn.MaxPool2d(4), small_network())
    before = copy.deepcopy(network)
    with pytest.raises(ScapError, match=r"^small_images: the network takes no images of 2 pixels \(.+\); give larger ones$"):
        train(network, dataset, settings(small_images=(2, 4)), seed=0)
    assert same_weights(network, before)
    assert network.training


def test_images_smaller_than_a_crop_are_refused_before_training(dataset):
    with pytest.raises(ScapError, match=r"^crop: 8 pixels leave nothing of images of 8;"):
        train(small_network(), dataset, settings(crop=8), seed=0)


def test_a_narrow_strided_convolution_sees_contiguous_images(dataset):
    """In the other order its backward pass crashes the process on a CPU (tests/unit/models/test_memory.py)."""
    network = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 8, 1, stride=2), nn.Flatten(), nn.Linear(128, 2))
    orders = set()
    network[1].register_forward_pre_hook(lambda layer, inputs: orders.add(inputs[0].is_contiguous()))
    train(network, dataset, settings(epochs=1), seed=0)
    assert orders == {True}


def test_alternating_flips_reach_the_training(dataset):
    by_chance, alternating = small_network(), small_network()
    train(by_chance, dataset, settings(), seed=0)
    train(alternating, dataset, settings(alternating_flip=True), seed=0)
    assert not same_weights(by_chance, alternating)

"""Fine-tuning with data, loss and evaluation of one's own."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import scap
from scap.errors import ScapError
from scap.models.layers import conv_layers
from scap.training.processes import Shares

SETTINGS = scap.TrainingSettings(epochs=2, batch_size=8, learning_rate=0.05)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def data(count=32):
    inputs = torch.randn(count, 3, 6, 6, generator=generator())
    return inputs, (inputs.mean((1, 2, 3)) > 0).long()


def made(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1)),
        *(nn.Flatten(), nn.Linear(6, 2)),
    )


def weights(network):
    return torch.cat([value.flatten().float() for value in network.state_dict().values()])


def test_it_is_the_stochastic_gradient_descent_that_the_settings_say():
    """Written out by torch's own optimiser, with the learning rate of each step."""
    network, other = made().eval(), made().train()
    settings = scap.TrainingSettings(epochs=2, batch_size=8, learning_rate=0.05, schedule="cosine", weight_decay=1e-3)
    history = scap.finetune(network, data(16), settings, seed=3)
    inputs, targets = data(16)
    optimiser = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3, nesterov=True)
    shares, losses = Shares(16, 8, seed=3), []
    for epoch in range(2):
        shares.set_epoch(epoch)
        for step, chosen in enumerate(shares, 2 * epoch):
            progress = (step + 0.5) / 4
            rate = 0.05 * progress / 0.2 if progress < 0.2 else 0.05 * torch.tensor((1 - progress) / 1.6 * torch.pi).sin() ** 2
            optimiser.param_groups[0]["lr"] = float(rate)
            loss = functional.cross_entropy(other(inputs[chosen]), targets[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
    torch.testing.assert_close(weights(network), weights(other))
    assert [row["loss"] for row in history] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:]) / 2])
    assert history[-1]["learning_rate"] == pytest.approx(float(rate))
    assert not network.training


def test_every_batch_is_seen_once_an_epoch_in_another_order():
    inputs, targets = data(20)
    seen = []
    network = made()
    network.register_forward_pre_hook(lambda _, given: seen.append(given[0].mean((1, 2, 3))))
    scap.finetune(network, (inputs, targets), SETTINGS)
    assert [len(batch) for batch in seen] == [8, 8] * 2  # 20 images: an incomplete batch is left out
    epochs = [torch.cat(seen[:2]), torch.cat(seen[2:])]
    assert all(len(epoch.unique()) == 16 for epoch in epochs)
    assert not torch.equal(*epochs)


@pytest.mark.parametrize("kind", ["tensors", "dataset", "loader", "batches"])
def test_data_may_be_tensors_a_data_set_a_loader_or_batches(kind):
    inputs, targets = data()
    given = {
        "tensors": (inputs, targets),
        "dataset": TensorDataset(inputs, targets),
        "loader": DataLoader(TensorDataset(inputs, targets), batch_size=8, shuffle=True),
        "batches": [(inputs[start : start + 8], targets[start : start + 8]) for start in range(0, 32, 8)],
    }[kind]
    results = []
    for _ in range(2):
        network = made()
        history = scap.finetune(network, given, SETTINGS, seed=5)
        results.append(weights(network))
    assert torch.equal(*results)  # the same seed, bit for bit
    assert history[-1]["loss"] < history[0]["loss"]


def test_a_loader_of_a_stream_of_known_length_is_read(tmp_path):
    history = scap.finetune(made(), DataLoader(Counted(), batch_size=8), SETTINGS, seed=np.int64(1), resume=tmp_path / "resume")
    assert [row["epoch"] for row in history] == [1, 2]


def test_another_seed_gives_other_weights():
    networks = [made(), made()]
    for seed, network in enumerate(networks):
        scap.finetune(network, data(), SETTINGS, seed=seed)
    assert not torch.equal(*map(weights, networks))


def test_the_random_state_of_the_caller_stays():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    network = made()
    torch.manual_seed(7)
    scap.finetune(network, data(), SETTINGS)
    assert torch.equal(torch.rand(1), expected)


class Box(nn.Module):
    """As torchvision's detection networks: losses in training, found boxes in evaluation."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, images, targets=None):
        found = torch.stack([self.conv(image).mean((1, 2)) for image in images])
        if not self.training:
            return [{"boxes": boxes} for boxes in found]
        wanted = torch.stack([target["boxes"] for target in targets])
        return {"box": functional.l1_loss(found, wanted), "size": found.square().mean()}


def test_a_network_that_takes_its_targets_and_gives_losses():
    images = [torch.rand(3, size, size, generator=generator(size)) for size in (6, 8, 7, 9)]
    targets = [{"boxes": torch.full((4,), 0.5)} for _ in images]
    batches = [((images[:2], targets[:2]), None), ((images[2:], targets[2:]), None)]
    network = Box()
    settings = scap.TrainingSettings(epochs=5, batch_size=2, learning_rate=0.1)
    history = scap.finetune(
        network,
        batches,
        settings,
        loss=lambda losses, _: sum(losses.values()),
        evaluate=lambda net: {"boxes": len(net(images)), "error": float((net(images)[0]["boxes"] - 0.5).abs().mean())},
    )
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["error"] < history[0]["error"]
    assert {row["boxes"] for row in history} == {4}


def test_the_evaluation_sees_the_averaged_network_in_evaluation_mode():
    seen, reported = [], []

    def evaluate(network):
        seen.append((network.training, torch.is_grad_enabled(), weights(network).clone()))
        return len(seen)

    network = made()
    settings = scap.TrainingSettings(epochs=2, batch_size=8, learning_rate=0.05, ema=0.5)
    history = scap.finetune(network, data(), settings, evaluate=evaluate, report=reported.append)
    assert [(training, grad) for training, grad, _ in seen] == [(False, False)] * 2
    assert torch.equal(seen[-1][2], weights(network))
    assert [row["evaluation"] for row in history] == [1, 2]
    assert reported == history


def test_label_smoothing_is_the_default_losss():
    plain, smooth = (
        scap.finetune(made(), data(8), scap.TrainingSettings(1, 8, 0.01, label_smoothing=share)) for share in (0.0, 0.3)
    )
    logits = made().train()(data(8)[0])
    for share, history in ((0.0, plain), (0.3, smooth)):
        expected = functional.cross_entropy(logits, data(8)[1], label_smoothing=share)
        assert history[0]["loss"] == pytest.approx(expected.item())


def test_a_pruned_network_is_trained_and_saved(tmp_path):
    network = made().eval()
    pruned = scap.prune_network(network, {"0": [0, 3, 5]}, data()[0])
    before = weights(pruned).clone()
    scap.finetune(pruned, data(), SETTINGS)
    assert not torch.equal(before, weights(pruned))
    scap.save_network(tmp_path / "file", pruned, example_shape=(1, 3, 6, 6))
    again = scap.load_network(tmp_path / "file", build=made)
    assert conv_layers(again)["0"].out_channels == 3
    torch.testing.assert_close(again(data()[0]), pruned(data()[0]))


def test_frozen_layers_stay():
    network = made()
    network[0].requires_grad_(False)
    before, after = network[0].weight.clone(), network[3].weight.clone()
    scap.finetune(network, data(), SETTINGS)
    assert torch.equal(before, network[0].weight)
    assert not torch.equal(after, network[3].weight)


class Streamed(IterableDataset):
    """As it is read from a stream: nobody knows how much comes."""

    def __iter__(self):
        return iter(TensorDataset(*data()))


class Counted(Streamed):
    def __len__(self):
        return 32


class Unknown(Dataset):
    def __getitem__(self, index):
        return TensorDataset(*data())[index]

    def __len__(self):
        raise NotImplementedError


class Backwardless(torch.autograd.Function):
    """A function without gradients."""

    @staticmethod
    def forward(ctx, values):
        return values * 2


INPUTS, TARGETS = data(8)
WRONG = {
    "no pair": ([INPUTS, INPUTS, INPUTS], {}, "data: a batch is a Tensor of 8; it must be a pair"),
    "lengths": ((INPUTS, TARGETS[:3]), {}, "data: 8 inputs, but 3 targets"),
    "nothing": ([], {}, "data: holds no batch; give"),
    "an iterator": (iter([(INPUTS, TARGETS)]), {}, "data: list_iterator has no length; give"),
    "a stream": (Streamed(), {}, "data: Streamed has no length; give"),
    "a loader of a stream": (DataLoader(Streamed(), batch_size=8), {}, "data: Streamed has no length; give"),
    "a stream that cannot be shuffled": (Counted(), {}, "data: Counted cannot be shuffled; give .* a DataLoader"),
    "a data set of no length": (Unknown(), {}, "data: Unknown has no length; give"),
    "an empty data set": ((INPUTS[:0], TARGETS[:0]), {}, "data: holds no batch; give"),
    "a number": (3, {}, "data: int has no length; give"),
    "another batch size": (
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=4),
        {},
        "batch_size: 8, but the loader's batches hold 4; give the same number",
    ),
    "the network": ((INPUTS[:, :2], TARGETS), {}, r"data: the network does not run on a batch of shape \(8, 2, 6, 6\): "),
    "the loss": ((INPUTS, TARGETS), {"loss": functional.mse_loss}, "loss: it fails on the network's outputs and the targets"),
    "no mean": (
        (INPUTS, TARGETS),
        {"loss": lambda outputs, targets: functional.cross_entropy(outputs, targets, reduction="none")},
        r"loss: it gives shape \(8,\); it must be one number",
    ),
    "no tensor": ((INPUTS, TARGETS), {"loss": lambda *_: 1.0}, r"loss: it gives 1\.0; it must be one number as a tensor"),
    "no gradients": (
        (INPUTS, TARGETS),
        {"loss": lambda outputs, _: Backwardless.apply(outputs).mean()},
        r"network: no step of training on a batch of shape \(8, 3, 6, 6\): You must implement",
    ),
    "not finite": (
        (INPUTS, TARGETS),
        {"loss": lambda outputs, _: outputs.sum() * float("nan")},
        r"learning_rate: the loss is nan in epoch 1 at 0\.05; try a smaller one, or a smaller weight_decay .* normalised",
    ),
    "evaluate": ((INPUTS, TARGETS), {"evaluate": lambda _: "good"}, "evaluate: it gives 'good'; give a number"),
    "two numbers": (
        (INPUTS, TARGETS),
        {"evaluate": lambda _: torch.zeros(2)},
        r"evaluate: it gives tensor\(\[0., 0.\]\); give",
    ),
    "no float": ((INPUTS, TARGETS), {"evaluate": lambda _: 10**400}, r"evaluate: it gives 10+\.\.\.; give a number"),
    "single numbers": ((INPUTS[0, 0, 0, 0], TARGETS[0]), {}, "data: inputs or targets are a single number; give tensors"),
    "numbers as batches": (TARGETS, {}, "data: a batch is a Tensor; it must be a pair"),
    **{
        f"resume {resume!r}": ((INPUTS, TARGETS), {"resume": resume}, message)
        for resume, message in {
            0: r"resume is 0 \(int\); give the path of a file",
            "": "resume is '', which names no file; give the path of one",
            (): r"resume is \(\) \(tuple\); give the path",
        }.items()
    },
    "no text": ((INPUTS, TARGETS), {"version": 2}, r"version is 2 \(int\); give a text"),
    **{
        f"a second {name}": ((INPUTS, TARGETS), {"evaluate": lambda _, name=name: {name: 1}}, f"evaluate: .* {name!r}, as the")
        for name in ("epoch", "learning_rate", "loss", "seconds")
    },
    **{
        f"no function {name}": ((INPUTS, TARGETS), {name: 3}, f"{name}: is a int; give a")
        for name in ("loss", "evaluate", "report")
    },
    **{
        f"seed {seed}": ((INPUTS, TARGETS), {"seed": seed}, "seed is .*(give a whole number|must be 0 or more)")
        for seed in (-1, 1.0, "1", None, True)
    },
    "crop": ((INPUTS, TARGETS), {"crop": 2}, "crop: 2 is for the trainings of the workflow; leave it out and do it in your"),
    "small images": ((INPUTS, TARGETS), {"small_images": [4]}, r"small_images: \[4\] is for"),
    "smoothing": ((INPUTS, TARGETS), {"label_smoothing": 0.1, "loss": functional.mse_loss}, r"label_smoothing: 0\.1 is for"),
    "a teacher": ((INPUTS, TARGETS), {"distillation": 0.5}, "distillation: 0.5 is for .* let your loss call the teacher"),
}


@pytest.mark.parametrize("why", WRONG)
def test_what_does_not_fit_is_told(why):
    given, options, message = WRONG[why]
    functions = {key: options.pop(key) for key in ("loss", "evaluate", "report", "seed", "resume", "version") if key in options}
    settings = scap.TrainingSettings(epochs=1, batch_size=8, learning_rate=0.05, **options)
    with pytest.raises(ScapError, match=message):
        scap.finetune(made(), given, settings, **functions)


@pytest.mark.parametrize(("channels", "order"), [(4, torch.contiguous_format), (16, torch.channels_last)])
def test_narrow_strided_convolutions_stay_out_of_channels_last(channels, order):
    """On the CPU oneDNN writes outside its memory there (scap.models.memory); a wide layer becomes narrow when pruned."""
    network = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 8, 1, stride=2), nn.Flatten(), nn.Linear(32, 2))
    pruned = scap.prune_network(network.eval(), {"0": list(range(channels))}, data()[0])
    seen = []
    pruned[2].register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous(memory_format=order)))
    scap.finetune(pruned, data(), SETTINGS)
    assert seen
    assert all(seen)
    assert pruned[2].weight.is_contiguous()


class Killed(Exception):
    """In the place of a kill."""


def stopped(path, network, given, **options):
    """A training that is killed after its second epoch."""

    def stop(row):
        if row["epoch"] == 2:
            raise Killed

    with pytest.raises(Killed):
        scap.finetune(network, given, LONG, resume=path, report=stop, **options)


LONG = scap.TrainingSettings(epochs=4, batch_size=8, learning_rate=0.05, ema=0.5)
LOADER = DataLoader(TensorDataset(*data()), batch_size=8, shuffle=True)


@pytest.mark.parametrize("given", [data(), TensorDataset(*data()), LOADER], ids=["tensors", "data set", "loader"])
def test_a_killed_training_resumes_to_the_same_weights(tmp_path, given):
    stopped(tmp_path / "new" / "resume", made(), given)
    whole, resumed, epochs = made(), made(), []
    expected = scap.finetune(whole, given, LONG)
    history = scap.finetune(
        resumed, given, LONG, resume=tmp_path / "new" / "resume", report=lambda row: epochs.append(row["epoch"])
    )
    assert epochs == [3, 4]
    assert torch.equal(weights(whole), weights(resumed))
    assert [row["loss"] for row in history] == [row["loss"] for row in expected]
    again = made()
    scap.finetune(again, given, LONG, resume=tmp_path / "new" / "resume")  # all epochs are in the file
    assert torch.equal(weights(whole), weights(again))


@pytest.mark.parametrize("other", ["network", "data", "seed", "settings", "version"])
def test_a_file_of_another_training_is_not_taken(tmp_path, caplog, other):
    stopped(tmp_path / "resume", made(), data())
    epochs = []
    network = made(1 if other == "network" else 0)
    given = data(24) if other == "data" else data()
    settings = scap.TrainingSettings(**vars(LONG) | ({"momentum": 0.8} if other == "settings" else {}))
    options = {"seed": {"seed": 1}, "version": {"version": "2"}}.get(other, {})
    scap.finetune(
        network, given, settings, resume=tmp_path / "resume", report=lambda row: epochs.append(row["epoch"]), **options
    )
    assert epochs == [1, 2, 3, 4]
    assert "training from scratch" in caplog.text


@pytest.mark.parametrize("value", [None, {"epochs": 1}, "short", scap.AutoencoderSettings()])
def test_settings_of_another_class_are_named(value):
    message = rf"^settings is .* \({type(value).__name__}\); give scap\.TrainingSettings\(\.\.\.\)$"
    with pytest.raises(ScapError, match=message):
        scap.finetune(made(), (INPUTS, TARGETS), value)

"""Fine-tuning of any network on any data: batches, loss and evaluation are the caller's; one process or several."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from scap.checks import check_function, check_number, checked_file, shown
from scap.errors import ScapError
from scap.models.inputs import Example, described, device_and_precision, mapped, run, tensors_of
from scap.models.modes import in_evaluation
from scap.pruning.copies import check_network, first_line
from scap.settings import given
from scap.training.loop import _deterministic, _end, _Run, _start, _update_average, check_loss
from scap.training.optimiser import set_learning_rate
from scap.training.processes import Shares, equal_everywhere, mean_over_processes, parallel, processes
from scap.training.progress import History, fingerprint, load_progress, save_progress
from scap.training.settings import TrainingSettings, learning_rate_at

Loss = Callable[[Any, Any], Tensor]
Evaluate = Callable[[nn.Module], float | Mapping[str, float]]
OWN = ("epoch", "learning_rate", "loss", "seconds")  # of a row of the history
OF_IMAGES = ("flip", "crop", "cutout", "padding", "alternating_flip", "small_images", "distillation")


def finetune(
    network: nn.Module,
    data: Any,
    settings: TrainingSettings,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    seed: int = 0,
    resume: str | Path | None = None,
    version: str = "",
    report: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train a network in place, on its device: classification by default, any other task with a `loss` of your own.

    Under torchrun, after torch.distributed.init_process_group, the processes share each batch (DistributedDataParallel;
    batch norms see the whole batch) and end with equal weights: those of one process up to rounding.

    Args:
        network: Any module, pruned or not.
        data: A pair of tensors (inputs, targets) or a data set of such pairs, which are batched and shuffled; or a
            DataLoader, or list, of batches (inputs, targets), used as they come. A tuple or dict as inputs holds all
            arguments of the network, as for detection networks that take their targets too.
        settings: Epochs, batch size (over all processes), learning rate and what else concerns the optimiser.
            Augmentation is the data's.
        loss: A function of the network's outputs and the targets that gives a mean over images; the cross entropy by
            default. Over several processes the loss of a batch is the mean of the losses of its equal parts.
        evaluate: Called with the network after each epoch, in evaluation mode, without gradients: a number, or several by
            names that a row of the history does not have yet.
        seed: A whole number of 0 or more. Of the order and of what the network and the data draw.
        resume: A file that holds the state after each epoch. A killed run that is started again in the same way resumes from
            it and ends with the same weights bit for bit; one that has ended gives them at once. A file of another run (of
            another network, settings, seed, number of processes, tensors) is not taken, and the log says so. Delete it when
            you have saved the network. All processes must see the file.
        version: Any text; a file of another version is not taken. For what cannot be compared, such as the code of the loss
            or a data set that is no pair of tensors.
        report: Receives each row of the history.

    Returns:
        A row per epoch: `epoch` (from 1), `learning_rate` of the last step, mean `loss`, what `evaluate` gave (one number
        as `evaluation`), `seconds`. With `ema` the averaged weights are evaluated and kept.

    Raises:
        ScapError: For data, a loss or an evaluation that do not fit, settings that are for images of a workflow, and where
            the loss is not finite.

    Example:
        >>> import scap, torch
        >>> network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 1, 3))
        >>> settings = scap.TrainingSettings(epochs=2, batch_size=4, learning_rate=0.01)
        >>> maps = torch.rand(8, 3, 8, 8), torch.zeros(8, 1, 4, 4)
        >>> [row["epoch"] for row in scap.finetune(network, maps, settings, loss=torch.nn.functional.mse_loss)]
        [1, 2]
    """
    check_network(network)
    check_number(seed, "seed", 0, whole=True)
    for name, function in {"loss": loss, "evaluate": evaluate, "report": report}.items():
        check_function(function, name)
    if not isinstance(version, str):
        raise ScapError(f"version is {shown(version)} ({type(version).__name__}); give a text")
    path = None if resume is None else checked_file(resume, "resume")
    _check_settings(given(settings, TrainingSettings, "settings"), loss)
    loss = loss or partial(functional.cross_entropy, label_smoothing=settings.label_smoothing)
    batches = _batches(data, settings, seed)
    device = device_and_precision(network)[0]
    state = _start(network, None, settings, int(seed), device)
    kept = network if state.average is None else state.average
    progress = None if path is None else _Progress(path, state, data, version)
    history = [] if progress is None else progress.load()
    with parallel(network, device) as trained:
        for epoch in range(len(history), settings.epochs):
            start = time.perf_counter()
            with _deterministic(seed + processes().rank, epoch, device):
                row = _epoch(state, trained, batches, loss, epoch, device)
            row |= _evaluation(evaluate, kept) if evaluate is not None else {}
            history.append(row | {"seconds": time.perf_counter() - start})
            if progress is not None:
                progress.save(history)
            if report is not None:
                report(history[-1])
    _end(network, kept, settings, device)
    return history


class _Progress:
    """The file from which a training resumes; the first process writes it, all read it."""

    def __init__(self, path: Path, state: _Run, data: Any, version: str) -> None:
        self.path, self.state = path, state
        tensors = dict(state.state())
        if isinstance(data, tuple | list):
            tensors |= {f"data.{name}": part for name, part in tensors_of(data)}
        facts = [asdict(state.settings), state.autocast, state.seed, processes().count, torch.__version__, version]
        self.identity = fingerprint(facts, tensors)

    def load(self) -> History:
        history = load_progress(self.path, self.state.state(), self.identity)
        equal_everywhere(len(history), f"resume: {self.path} holds another number of epochs in another process; share the file")
        return history

    def save(self, history: History) -> None:
        if not processes().rank:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_progress(self.path, self.state.state(), history, self.identity)


def _check_settings(settings: TrainingSettings, loss: Loss | None) -> None:
    defaults = {field.name: field.default for field in fields(settings)} | {"small_images": []}
    for key in OF_IMAGES if loss is None else (*OF_IMAGES, "label_smoothing"):
        if getattr(settings, key) != defaults[key]:
            remedy = "do it in your data set or loss" if key != "distillation" else "let your loss call the teacher"
            raise ScapError(
                f"{key}: {getattr(settings, key)!r} is for the trainings of the workflow; leave it out and {remedy}"
            )


def _epoch(
    state: _Run, network: nn.Module, batches: "_Batches", loss: Loss, epoch: int, device: torch.device
) -> dict[str, float]:
    settings, total, seen = state.settings, torch.zeros((), device=device), 0
    network.train()
    rate = math.nan
    for step, batch in enumerate(batches.of_epoch(epoch), epoch * len(batches)):
        inputs, targets = _placed(batch, device, state.order)
        rate = learning_rate_at(settings, (step + 0.5) / (settings.epochs * len(batches)))
        set_learning_rate(state.optimisers, rate)
        value = _loss_of(network, inputs, targets, loss, state.autocast, device)
        network.zero_grad()
        _step(state, value, inputs)
        if state.average is not None:  # a shorter memory at first, as in scap.training.loop
            _update_average(state.average, state.network, min(settings.ema, (1 + step) / (10 + step)))
        total += value.detach()
        seen += 1
    if not seen:
        raise ScapError("data: it gave no batch in this epoch; a list or a DataLoader can be read again, an iterator cannot")
    mean = mean_over_processes(total / seen)
    check_loss(mean, epoch, settings)
    return {"epoch": epoch + 1, "learning_rate": rate, "loss": mean}


def _step(state: _Run, value: Tensor, inputs: Example) -> None:
    try:
        value.backward()
        for optimiser in state.optimisers:
            optimiser.step()
    except Exception as error:  # the user's forward may be one that has no gradients, or sparse ones
        raise ScapError(f"network: no step of training on a batch {described(inputs)}: {first_line(error)}") from error


def _placed(batch: Any, device: torch.device, order: torch.memory_format) -> tuple[Example, Any]:
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        count = _length(batch)
        what = type(batch).__name__ if count is None else f"{type(batch).__name__} of {count}"
        raise ScapError(f"data: a batch is a {what}; it must be a pair (inputs, targets)")
    inputs, targets = (mapped(lambda tensor: tensor.to(device, non_blocking=True), part) for part in batch)
    if isinstance(inputs, Tensor) and inputs.ndim == 4:
        inputs = inputs.contiguous(memory_format=order)
    return inputs, targets


def _loss_of(network: nn.Module, inputs: Example, targets: Any, loss: Loss, autocast: bool, device: torch.device) -> Tensor:
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            outputs = run(network, inputs)
    except Exception as error:  # the user's forward may raise anything
        raise ScapError(f"data: the network does not run on a batch {described(inputs)}: {first_line(error)}") from error
    if autocast:
        outputs = mapped(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor, outputs)
    try:
        value = loss(outputs, targets)
    except Exception as error:  # it is the user's
        raise ScapError(f"loss: it fails on the network's outputs and the targets of a batch: {first_line(error)}") from error
    if not isinstance(value, Tensor) or value.ndim or not value.requires_grad:
        found = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) and value.ndim else f"{value!r}"
        raise ScapError(f"loss: it gives {found}; it must be one number as a tensor that depends on the network's outputs")
    return value


@torch.no_grad()
def _evaluation(evaluate: Evaluate, network: nn.Module) -> dict[str, float]:
    with in_evaluation(network):
        found = evaluate(network)
    named = found if isinstance(found, Mapping) else {"evaluation": found}
    try:
        row = {str(name): float(value) for name, value in named.items()}
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # huge integers, tensors of no values
        raise ScapError(f"evaluate: it gives {shown(found)}; give a number, or a mapping of names to numbers") from error
    if taken := row.keys() & OWN:
        raise ScapError(f"evaluate: it names a number {min(taken)!r}, as the history names one of its own; name it otherwise")
    return row


class _Batches:
    """What is iterated over in each epoch."""

    def __init__(self, loader: Any, shares: Shares | None) -> None:
        self.loader, self.shares = loader, shares

    def __len__(self) -> int:
        return len(self.loader)

    def of_epoch(self, epoch: int) -> Iterator[Any]:
        sampler: Any = self.shares or getattr(self.loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):  # a DistributedSampler too
            sampler.set_epoch(epoch)
        return iter(self.loader)


def _length(data: Any) -> int | None:
    """None where there is none: a DataLoader has one only where its data set does."""
    try:
        return len(data)
    except (TypeError, NotImplementedError):
        return None


def _batches(data: Any, settings: TrainingSettings, seed: int) -> _Batches:
    if isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data):
        if not all(part.ndim for part in data):
            raise ScapError("data: inputs or targets are a single number; give tensors whose first dimension counts the images")
        if len(data[0]) != len(data[1]):
            raise ScapError(f"data: {len(data[0])} inputs, but {len(data[1])} targets; there must be one for each")
        data = TensorDataset(*data)
    count = _length(data)
    if isinstance(data, Dataset) and not isinstance(data, IterableDataset) and count:
        shares = Shares(count, settings.batch_size, seed)
        return _Batches(DataLoader(data, batch_sampler=shares), shares)
    if not isinstance(data, Iterable) or isinstance(data, IterableDataset) or not count:
        name = type(getattr(data, "dataset", data)).__name__
        kind = f"{name} has no length" if count is None else f"{name} cannot be shuffled" if count else "holds no batch"
        raise ScapError(f"data: {kind}; give (inputs, targets), a data set, or a DataLoader or list of batches")
    size = getattr(data, "batch_size", None)
    if size is not None and size * processes().count != settings.batch_size:
        found = f"{size} in each of {processes().count} processes" if processes().count > 1 else f"{size}"
        raise ScapError(f"batch_size: {settings.batch_size}, but the loader's batches hold {found}; give the same number")
    equal_everywhere(count, "data: the processes have different numbers of batches; use a DistributedSampler")
    return _Batches(data, None)

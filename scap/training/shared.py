"""Trainings of classifiers as in scap.training.loop, shared by several processes: the same images, weights up to rounding."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from scap.data.datasets import Dataset
from scap.errors import ScapError
from scap.models.memory import memory_format
from scap.models.modes import evaluating
from scap.training.augmentation import augmented_batches, check_sizes
from scap.training.finetuning import finetune
from scap.training.loop import Device, _check_small_images, _deterministic, computes_in_bfloat16, evaluate, training_loss
from scap.training.processes import mean_over_processes, processes
from scap.training.progress import History, fingerprint
from scap.training.settings import TrainingSettings

# What this module does itself, and finetune so must not.
DONE: dict[str, Any] = {
    "flip": False,
    "crop": 0,
    "cutout": 0,
    "padding": "black",
    "alternating_flip": False,
    "small_images": [],
}
DONE |= {"distillation": 0.0, "label_smoothing": 0.0}


def train_shared(
    network: nn.Module,
    dataset: Dataset,
    settings: TrainingSettings,
    *,
    seed: int,
    device: Device,
    resume: Path | None = None,
    version: str = "",
    teacher: nn.Module | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """As scap.training.loop.train, in each of the processes of torch.distributed, on a device of its own.

    `settings.batch_size` is that of all together, of which each takes an equal part. Augmentation, order and learning rates
    are those of one process. The file `resume` is one for all. Raises ScapError as `train`, and where a batch cannot be shared.
    """
    if settings.distillation and teacher is None:
        raise ScapError(f"distillation: {settings.distillation} needs a teacher; without one set it to 0")
    check_sizes(dataset.train, settings)
    task = _Task(network.to(device), dataset, settings, seed, torch.device(device), teacher if settings.distillation else None)
    tensors = dataset.train.identity() | {"mean": dataset.mean, "std": dataset.std} | task.teacher_state()
    return finetune(
        network,
        task,
        replace(settings, **DONE),
        loss=task.loss,
        evaluate=task.measures,
        seed=seed,
        resume=resume,
        version=fingerprint([version, asdict(settings)], tensors),
        report=report,
    )


class _Task:
    """What one process sees of each batch, and what it measures."""

    def __init__(
        self,
        network: nn.Module,
        dataset: Dataset,
        settings: TrainingSettings,
        seed: int,
        device: torch.device,
        teacher: nn.Module | None,
    ) -> None:
        size = min(settings.batch_size, len(dataset.train))
        if size % processes().count:
            raise ScapError(f"batch_size: {size} does not divide by {processes().count} processes; give a multiple")
        _check_small_images(network, dataset.train.shape[0], settings, device)
        self.dataset, self.settings, self.seed, self.device = dataset, settings, seed, device
        self.teacher = evaluating(teacher.to(device)) if teacher is not None else None
        self.order = memory_format(nn.ModuleList(filter(None, (network, teacher))), device)
        self.train, self.epoch = dataset.train.to(device), 0
        self.autocast = settings.precision == "bfloat16" and computes_in_bfloat16(device)
        self.correct, self.seen = torch.zeros((), device=device), 0

    def teacher_state(self) -> dict[str, Tensor]:
        return self.teacher.state_dict(prefix="teacher.") if self.teacher is not None else {}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    @property
    def sampler(self) -> "_Task":
        """As a DataLoader's: finetune tells it the epoch."""
        return self

    def __len__(self) -> int:
        return max(1, len(self.train) // self.settings.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[Tensor, Tensor]]]:
        own, (mean, std) = processes(), (self.dataset.mean, self.dataset.std)
        batches = augmented_batches(
            self.train, mean, std, self.settings, seed=self.seed, epoch=self.epoch, memory_format=self.order
        )
        with _deterministic(self.seed, self.epoch, self.device):  # all is drawn before the first batch, in all alike
            first = next(batches)
        for inputs, labels in chain([first], batches):
            inputs, labels = inputs[own.rank :: own.count], labels[own.rank :: own.count]
            yield inputs, (labels, inputs)

    def loss(self, logits: Tensor, targets: Any) -> Tensor:
        """Cross entropy, or what the teacher says as well."""
        labels, inputs = targets
        self.correct += (logits.argmax(1) == labels).sum()
        self.seen += len(labels)
        known = None
        if self.teacher is not None:
            with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                known = self.teacher(inputs).float()
        return training_loss(logits, labels, self.settings, known)

    def measures(self, network: nn.Module) -> dict[str, float]:
        """Top-1 in percent on the training images on the fly and, by each process alone, on those held out."""
        share = mean_over_processes(100 * self.correct / self.seen)
        self.correct, self.seen = torch.zeros_like(self.correct), 0
        held_out = evaluate(network, self.dataset.holdout, self.dataset.mean, self.dataset.std, self.device)
        return {"train_top1": share, "holdout_top1": held_out}

"""Training and fine-tuning of classifiers: deterministic, resumable, with the images on the device."""

import contextlib
import copy
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from scap.data.datasets import Dataset, Images, normalise
from scap.data.folder import FolderImages
from scap.errors import ScapError
from scap.models.layers import initialise_convolutions
from scap.models.memory import memory_format
from scap.models.modes import evaluating, in_evaluation
from scap.tensors import largest_of, too_large, too_small
from scap.training.augmentation import augmented_batches, check_sizes
from scap.training.optimiser import make_optimisers, set_learning_rate
from scap.training.progress import History, fingerprint, load_progress, save_progress
from scap.training.settings import TrainingSettings, learning_rate_at

Device = torch.device | str
BATCH_PIXELS = 500 * 32 * 32  # of an evaluation
logger = logging.getLogger(__name__)


def reset_network(network: nn.Module, seed: int) -> None:
    """Initialise all parameters and buffers from scratch by `seed`, in place, and alike on every device."""
    device = next(network.parameters()).device
    network.cpu()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        for module in network.modules():
            if callable(reset := getattr(module, "reset_parameters", None)):
                reset()
        initialise_convolutions(network)
    network.to(device)


@torch.no_grad()
def evaluate(
    network: nn.Module,
    images: Images | FolderImages,
    mean: Tensor,
    std: Tensor,
    device: Device = "cpu",
    batch_size: int | None = None,
) -> float:
    """Top-1 accuracy in percent of `network`, in evaluation mode, on `images`; NaN where there are none.

    By default a batch has as many pixels as 500 images of 32x32.
    Raises ScapError where an output is NaN or infinite: the largest of them would be a class.
    """
    if not len(images):
        return math.nan
    network.to(device)
    order = memory_format(network, device)
    correct, wrong = torch.zeros(2, dtype=torch.int64, device=device)
    with in_evaluation(network):
        for batch, labels in images.batches(batch_size or max(1, BATCH_PIXELS // math.prod(images.shape[1:]))):
            logits = network(normalise(batch, mean, std, device).contiguous(memory_format=order))
            correct += (logits.argmax(1) == labels.to(device)).sum()
            wrong += (~logits.isfinite()).any(1).sum()
    if wrong:
        problem = f"the network's outputs for {int(wrong)} of {len(images)} images are NaN or infinite"
        raise ScapError(
            f"{problem}: it has diverged, or its file is damaged; train it again, at a smaller learning_rate or weight_decay"
        )
    return 100 * int(correct) / len(images)


def training_loss(logits: Tensor, labels: Tensor, settings: TrainingSettings, teacher_logits: Tensor | None = None) -> Tensor:
    """Cross entropy CE; with a teacher (1 - d) CE + d T^2 KL(teacher || network), the KL of logits over T.

    d is `settings.distillation`, T `settings.temperature` (Hinton, Vinyals and Dean 2015).
    """
    loss = functional.cross_entropy(logits, labels, label_smoothing=settings.label_smoothing)
    if teacher_logits is None:
        return loss
    softened = (values / settings.temperature for values in (logits, teacher_logits))
    student, teacher = (functional.log_softmax(values, 1) for values in softened)
    divergence = functional.kl_div(student, teacher, reduction="batchmean", log_target=True)
    return (1 - settings.distillation) * loss + settings.distillation * settings.temperature**2 * divergence


def computes_in_bfloat16(device: Device) -> bool:
    """Whether the device's hardware multiplies in bfloat16; where it does not, PyTorch emulates it, many times slower."""
    kind = torch.device(device).type
    if kind != "cpu":
        return kind != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def _autocasts(settings: TrainingSettings, device: Device) -> bool:
    if settings.precision == "float32" or computes_in_bfloat16(device):
        return settings.precision == "bfloat16"
    logger.warning("precision: this %s does not compute in bfloat16; training in float32", torch.device(device).type)
    return False


@dataclass(frozen=True)
class _Run:
    """What one run trains and trains with, all of it on the device."""

    network: nn.Module
    average: nn.Module | None
    teacher: nn.Module | None
    optimisers: list[torch.optim.Optimizer]
    settings: TrainingSettings
    seed: int
    autocast: bool
    order: torch.memory_format

    def state(self) -> dict[str, Tensor]:
        """Every tensor that the next step depends on, by name; aliases, not copies."""
        tensors = self.network.state_dict(prefix="network.")
        if self.average is not None:
            tensors |= self.average.state_dict(prefix="average.")
        states = {parameter: state for optimiser in self.optimisers for parameter, state in optimiser.state.items()}
        for name, parameter in self.network.named_parameters():
            tensors[f"momentum.{name}"] = states[parameter]["momentum_buffer"]
        return tensors


def _place(network: nn.Module, device: Device, order: torch.memory_format) -> nn.Module:
    return network.to(device=device, memory_format=order)  # type: ignore[call-overload]


def _order(networks: Iterable[nn.Module], device: Device) -> torch.memory_format:
    """One order in memory that suits all `networks`, as they see the same images."""
    return memory_format(nn.ModuleList(networks), device)


def _start(network: nn.Module, teacher: nn.Module | None, settings: TrainingSettings, seed: int, device: Device) -> _Run:
    if settings.distillation and teacher is None:
        raise ScapError(f"distillation: {settings.distillation} needs a teacher; without one set it to 0")
    teacher = copy.deepcopy(teacher) if settings.distillation else None
    order = _order(filter(None, (network, teacher)), device)
    _place(network, device, order)
    if teacher is not None:
        _place(teacher, device, order).eval()
    optimisers = make_optimisers(network, settings)
    average = copy.deepcopy(network).requires_grad_(False) if settings.ema else None
    return _Run(network, average, teacher, optimisers, settings, seed, _autocasts(settings, device), order)


@torch.no_grad()
def _check_small_images(network: nn.Module, channels: int, settings: TrainingSettings, device: Device) -> None:
    """Raise ScapError for a size in `small_images` that `network` cannot take; the network stays as it is."""
    probe = evaluating(copy.deepcopy(network)) if settings.small_images else network
    for side in sorted(set(settings.small_images)):
        try:
            with torch.random.fork_rng(devices=[device] if torch.device(device).type == "cuda" else []):
                probe(torch.zeros(1, channels, side, side, device=device))
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise ScapError(
                f"small_images: the network takes no images of {side} pixels ({reason}); give larger ones"
            ) from error


def _identity(run: _Run, dataset: Dataset, device: Device, version: str) -> str:
    """Fingerprint of all that determines the result, the code included as far as `version` tells it."""
    tensors = run.state() | dataset.train.identity()
    tensors |= {"mean": dataset.mean, "std": dataset.std}
    if run.teacher is not None:
        tensors |= run.teacher.state_dict(prefix="teacher.")
    facts = [asdict(run.settings), run.autocast, run.seed, torch.device(device).type, torch.__version__, version]
    return fingerprint(facts, tensors)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    values = network.state_dict()
    for name, mean in average.state_dict().items():
        if mean.is_floating_point():
            mean.lerp_(values[name], 1 - decay)
        else:
            mean.copy_(values[name])


def _train_epoch(run: _Run, data: Images | FolderImages, mean: Tensor, std: Tensor, epoch: int) -> dict[str, float]:
    """One pass over `data`: the last step's learning rate, the mean loss, the top-1 in percent on the fly."""
    settings, network, device = run.settings, run.network, data.device
    network.train()
    steps = max(1, len(data) // settings.batch_size)
    loss_sum, correct, seen = torch.zeros((), device=device), torch.zeros((), device=device), 0
    batches = augmented_batches(data, mean, std, settings, seed=run.seed, epoch=epoch, memory_format=run.order)
    for step, (inputs, labels) in enumerate(batches, epoch * steps):
        rate = learning_rate_at(settings, (step + 0.5) / (settings.epochs * steps))
        set_learning_rate(run.optimisers, rate)
        with torch.autocast(device.type, torch.bfloat16, enabled=run.autocast):
            logits = network(inputs).float()
            with torch.no_grad():
                teacher_logits = run.teacher(inputs).float() if run.teacher is not None else None
        loss = training_loss(logits, labels, settings, teacher_logits)
        network.zero_grad()
        loss.backward()
        for optimiser in run.optimisers:
            optimiser.step()
        if run.average is not None:  # a shorter memory at first, so that the starting weights fade
            _update_average(run.average, network, min(settings.ema, (1 + step) / (10 + step)))
        loss_sum += loss.detach() * len(labels)
        correct += (logits.argmax(1) == labels).sum()
        seen += len(labels)
    return {"learning_rate": rate, "loss": float(loss_sum) / seen, "train_top1": 100 * float(correct) / seen}


@contextlib.contextmanager
def _deterministic(seed: int, epoch: int, device: torch.device) -> Iterator[None]:
    """A random state of this epoch alone and cuDNN algorithms that repeat their results in full precision, for a while."""
    entropy = np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)
    flags = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), flags:
        torch.manual_seed(int(entropy[0]))
        yield


def check_loss(loss: float, epoch: int, settings: TrainingSettings) -> None:
    """ScapError where the mean loss of an epoch, counted from 0, is not finite."""
    if not math.isfinite(loss):
        problem = f"the loss is {loss} in epoch {epoch + 1} at {settings.learning_rate}"
        decay = f"or a smaller weight_decay (it is {settings.weight_decay})"
        raise ScapError(
            f"learning_rate: {problem}; try a smaller one, {decay}, and see that the data are normalised and hold no NaN"
        )


def _end(network: nn.Module, kept: nn.Module, settings: TrainingSettings, device: Device) -> None:
    """Give `network` the values that are kept, in the precision that they are saved in."""
    network.load_state_dict(kept.state_dict())
    if settings.saved_precision == "float16":
        round_kernels(network)
    _place(network, device, torch.contiguous_format).eval()


@torch.no_grad()
def round_kernels(network: nn.Module) -> None:
    """Round all parameters of two or more dimensions to numbers that float16 holds; a warning names one that it cannot hold.

    Such a one, and norms and biases, which are few, keep their precision. `save_network` needs half the space for the others.
    """
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            largest = largest_of(parameter)
            if too_large(largest, torch.float16) or too_small(largest, torch.float16):
                logger.warning(
                    "saved_precision: %s reaches %.3g, which float16 cannot hold; it stays in float32", name, largest
                )
            else:
                parameter.copy_(parameter.half())


def train(
    network: nn.Module,
    dataset: Dataset,
    settings: TrainingSettings,
    *,
    seed: int,
    device: Device = "cpu",
    resume: Path | None = None,
    version: str = "",
    teacher: nn.Module | None = None,
    report: Callable[[dict[str, float]], None] | None = None,
) -> History:
    """Train `network` in place on `device` and return one row of history per epoch.

    Rows: epoch (from 1), learning_rate (last step), loss, train_top1 and holdout_top1 in percent (NaN without
    a holdout), seconds. The state is saved to the path `resume` after each epoch; a killed run of the same
    settings, seed, weights, images, device and `version` (such as a checksum of the code) continues from it to
    bit-equal weights; the caller deletes the file.
    With `ema` the averaged weights are measured and kept. Raises ScapError where the loss is not finite or a size in
    `settings` does not fit the images or the network.
    """
    check_sizes(dataset.train, settings)
    run = _start(network, teacher, settings, seed, device)
    _check_small_images(network, dataset.train.shape[0], settings, device)
    history: History = []
    if resume is not None:
        identity = _identity(run, dataset, device, version)
        history = load_progress(resume, run.state(), identity)
    data = dataset.train.to(device)
    kept = network if run.average is None else run.average
    for epoch in range(len(history), settings.epochs):
        start = time.perf_counter()
        with _deterministic(seed, epoch, data.device):
            row = {"epoch": epoch + 1, **_train_epoch(run, data, dataset.mean, dataset.std, epoch)}
        check_loss(row["loss"], epoch, settings)
        row["holdout_top1"] = evaluate(kept, dataset.holdout, dataset.mean, dataset.std, device)
        row["seconds"] = time.perf_counter() - start
        history.append(row)
        if resume is not None:
            save_progress(resume, run.state(), history, identity)
        if report is not None:
            report(row)
    _end(network, kept, settings, device)
    return history

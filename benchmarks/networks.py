"""Networks that others wrote, for the benchmarks of surgery and counting: torchvision's and timm's, with random weights."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from scap.data.torchvision_cure import import_torchvision

# Name -> side of the images: 224 is what most are made for; timm's are smaller where they allow it, to save time.
TORCHVISION = {
    "alexnet": 224,
    "vgg11_bn": 224,
    "resnet18": 224,
    "resnet50": 224,
    "resnext50_32x4d": 224,
    "resnet34": 224,
    "densenet121": 224,
    "googlenet": 224,
    "inception_v3": 299,
    "squeezenet1_1": 224,
    "mobilenet_v2": 224,
    "mobilenet_v3_small": 224,
    "mobilenet_v3_large": 224,
    "mnasnet0_5": 224,
    "mnasnet1_0": 224,
    "shufflenet_v2_x0_5": 224,
    "shufflenet_v2_x1_0": 224,
    "efficientnet_b0": 224,
    "efficientnet_v2_s": 224,
    "regnet_y_400mf": 224,
    "regnet_x_400mf": 224,
    "convnext_tiny": 224,
    "swin_t": 224,
    "maxvit_t": 224,
    "vit_b_16": 224,
    "fcn_resnet50": 224,
    "deeplabv3_resnet50": 224,
    "lraspp_mobilenet_v3_large": 224,
    "ssdlite320_mobilenet_v3_large": 320,
    "retinanet_resnet50_fpn": 128,
    "fasterrcnn_mobilenet_v3_large_320_fpn": 128,
    "r3d_18": 32,
}
TIMM = {
    "resnet26d": 64,
    "seresnet18": 64,
    "repvgg_a0": 64,
    "vgg11_bn": 64,
    "efficientnet_lite0": 64,
    "mobilenetv4_conv_small": 64,
    "ghostnet_100": 64,
    "dla34": 64,
    "hrnet_w18_small": 64,
    "cspresnet50": 64,
    "res2net50_26w_4s": 64,
    "skresnet18": 64,
    "convnext_atto": 64,
    "nf_resnet50": 64,
    "mixer_s32_224": 224,
    "vit_tiny_patch16_224": 224,
    "resnet18 features_only": 64,
}


def names(quick: bool) -> list[tuple[str, str, int]]:
    """Source, name and side of the images of each network."""
    found = [("torchvision", name, size) for name, size in TORCHVISION.items()]
    found += [("timm", name, size) for name, size in TIMM.items()]
    return [entry for entry in found if entry[1] in ("resnet18", "seresnet18")] if quick else found


def made(source: str, name: str) -> nn.Module:
    """A network with random weights; timm is needed for the benchmarks alone (pip install timm)."""
    models = import_torchvision().models
    torch.manual_seed(0)
    if source == "timm":
        import timm

        model, _, option = name.partition(" ")
        return timm.create_model(model, pretrained=False, **({option: True} if option else {}))
    options: dict[str, Any] = {"weights": None}
    if name.startswith(("googlenet", "inception")):
        options["init_weights"] = False  # slow
    builder = models.get_model_builder(name)
    if "weights_backbone" in builder.__annotations__ or any(
        part in name for part in ("rcnn", "retina", "ssd", "fcn", "lraspp", "deep")
    ):
        options["weights_backbone"] = None
    return models.get_model(name, **options)


def example_for(name: str, size: int) -> Tensor:
    """One image, or for video networks four frames."""
    shape = (1, 3, 4, size, size) if name.startswith("r3d") else (1, 3, size, size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def with_nms() -> None:
    """torchvision's `nms` in Python where its compiled operators do not load, so that detection networks run."""
    import_torchvision()
    try:
        torch.ops.torchvision.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except NotImplementedError:
        _LIBRARY.impl("nms", _nms, "CompositeExplicitAutograd")


_LIBRARY = torch.library.Library("torchvision", "IMPL")


def _nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    return torch.tensor(list(_kept(boxes, scores, iou_threshold)), dtype=torch.int64)


def _kept(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Iterator[int]:
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    order = scores.argsort(descending=True)
    while len(order):
        best, order = order[0], order[1:]
        yield int(best)
        low, high = boxes[order, :2].maximum(boxes[best, :2]), boxes[order, 2:].minimum(boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared / (area[order] + area[best] - shared) <= iou_threshold]

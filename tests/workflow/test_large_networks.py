"""Segmentation and detection networks of torchvision that take more than the seconds of the inner loop."""

import pytest
import torch
from segmentation import check, half
from torch import nn

import scap
from scap.data.torchvision_cure import import_torchvision


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "fcn_resnet50", "deeplabv3_resnet50"])
def test_segmentation_networks_of_torchvision(name, tmp_path):
    check(name, tmp_path)


class Detector(nn.Module):
    """torchvision's RetinaNet: pyramid and heads on a small backbone. Losses in training, what the heads give otherwise.

    Without what follows in evaluation, the suppression of overlapping boxes: a compiled operator that some builds lack.
    """

    def __init__(self):
        super().__init__()
        detection = import_torchvision().models.detection
        backbone = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
        )
        self.net = detection.RetinaNet(backbone, num_classes=3)

    def forward(self, images, targets=None):
        features = list(self.net.backbone(images).values())
        outputs = self.net.head(features)
        if not self.training:
            return outputs
        sizes = [tuple(images.shape[-2:])] * len(images)
        listed = import_torchvision().models.detection.image_list.ImageList(images, sizes)
        return self.net.compute_loss(targets, outputs, self.net.anchor_generator(listed, features))


def test_a_detection_network_its_pyramid_and_heads(tmp_path):
    torch.manual_seed(0)
    network, images = Detector().eval(), torch.rand(2, 3, 64, 64)
    layers = ["backbone.body.layer1.0.conv1", "head.classification_head.conv.3.0", "head.regression_head.conv.1.0"]
    plan = half(network, [f"net.{layer}" for layer in layers])
    pruned = scap.prune_network(network, plan, images)
    assert [pruned.net.get_submodule(layer).out_channels for layer in layers] == [32, 128, 128]
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 48.0]]), "labels": torch.tensor([1 + k])} for k in range(2)]
    history = scap.finetune(
        pruned,
        [((images, targets), None)] * 2,
        scap.TrainingSettings(epochs=2, batch_size=2, learning_rate=0.002),
        loss=lambda losses, _: sum(losses.values()),
        evaluate=lambda net: {"boxes": net(images)["bbox_regression"].shape[1]},
    )
    assert history[1]["loss"] < history[0]["loss"]
    assert history[1]["boxes"] > 100
    scap.save_network(tmp_path / "file", pruned, example_shape=images.shape)
    again = scap.load_network(tmp_path / "file", build=Detector)
    with torch.no_grad():
        torch.testing.assert_close(again(images), pruned(images))

"""Layers by name, without importing torch: which convolutions of an architecture can be pruned, and what a plan is."""

VGG16_BLOCKS = (2, 2, 3, 3, 3)  # convolutions per block, Simonyan and Zisserman 2015, configuration D

PRUNABLE = {
    "vgg16": [f"conv{i}_{j}" for i, count in enumerate(VGG16_BLOCKS, 1) for j in range(1, count + 1)],
    # Only the first convolution of a residual block: the others write into the residual stream, which couples them.
    "resnet20": [f"block{i}_{j}.conv1" for i in (1, 2, 3) for j in (1, 2, 3)],
}

Plan = dict[str, list[int]]  # layer (module path) -> increasing indices of the output channels that are KEPT

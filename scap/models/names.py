"""Layers by name, without importing torch: which convolutions of an architecture can be pruned."""

# Output channels of the convolutions of each block: Simonyan and Zisserman 2015, configuration D.
VGG16_BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

# Residual blocks in each of the three stages: He et al. 2015, section 4.2.
RESNET_BLOCKS = {"resnet20": 3, "resnet32": 5, "resnet44": 7, "resnet56": 9}

PRUNABLE = {
    "vgg16": [f"conv{i}_{j}" for i, block in enumerate(VGG16_BLOCKS, 1) for j in range(1, len(block) + 1)],
    # Only the first convolution of a residual block: the others write into the residual stream, which couples them.
    **{
        name: [f"layer{stage}.{block}.conv1" for stage in (1, 2, 3) for block in range(blocks)]
        for name, blocks in RESNET_BLOCKS.items()
    },
}

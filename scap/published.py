"""Published results that ours are compared with."""

# VGG16 on CIFAR-10 at threshold 0.6 (arXiv:2601.09352, abstract): shares of FLOPs and parameters removed.
PUBLISHED = {"macs_removed": 0.9011, "params_removed": 0.9630}
PUBLISHED_TOP1 = {"baseline": 93.44, "pruned": 91.77}  # per cent

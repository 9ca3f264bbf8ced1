"""Published results that ours are compared with."""

from dataclasses import dataclass

# VGG16 on CIFAR-10 at threshold 0.6 (arXiv:2601.09352, abstract): shares of FLOPs and parameters removed.
PUBLISHED = {"macs_removed": 0.9011, "params_removed": 0.9630}
PUBLISHED_TOP1 = {"baseline": 93.44, "pruned": 91.77}  # per cent


@dataclass(frozen=True)
class Row:
    """VGG16 on CIFAR-10 as others printed it: top-1 in per cent, shares of FLOPs and parameters removed."""

    name: str
    top1: float
    macs_removed: float
    params_removed: float


# Each after fine-tuning by its own recipe, from a baseline of its own. HRank twice: as printed, by a counter that leaves the
# input channels of the next layer in, and recounted without them.
ROWS = (
    Row("SCAP, published (arXiv:2601.09352)", PUBLISHED_TOP1["pruned"], **PUBLISHED),
    Row("HRank, printed (Lin et al. 2020)", 92.34, 0.653, 0.821),
    Row("HRank, recounted", 92.34, 0.869, 0.950),
    Row("DECORE-100 (Alwani et al. 2022)", 92.44, 0.815, 0.966),
    Row("DECORE-50 (Alwani et al. 2022)", 91.68, 0.883, 0.983),
    Row("DCFF (Lin et al. 2021)", 93.47, 0.768, 0.928),
    Row("CHIP (Sui et al. 2021)", 93.18, 0.786, 0.873),
    Row("CORING (Pham et al. 2024)", 93.83, 0.786, 0.873),
    Row("NORTON (Pham et al. 2024)", 92.54, 0.957, 0.984),
)

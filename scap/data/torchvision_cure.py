"""One place that imports torchvision, beside whatever build of torch is installed.

The compiled operators in torchvision's wheels are linked against one CUDA version. Beside another build of
torch (the CPU one, say) they do not load, and the import fails: "operator torchvision::nms does not exist",
since two detection operators get a fake kernel from Python. Declaring the schemas of these two is enough:
data sets, transforms and models then work; `torchvision.ops.nms` does not, and SCAP never calls it. Where the
real operators exist a second declaration would clash, so the plain import is tried first.
"""

import importlib
import sys
from types import ModuleType

import torch

MISSING_SCHEMAS = tuple(
    f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for operator in ("nms", "qnms")
)
_declared: list[torch.library.Library] = []  # a Library takes its schemas away when it is garbage-collected


def import_torchvision() -> ModuleType:
    """torchvision, even where its compiled operators do not load; ImportError where it is not installed."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # half imported
    if not _declared:
        library = torch.library.Library("torchvision", "DEF")
        for schema in MISSING_SCHEMAS:
            library.define(schema)
        _declared.append(library)
    return importlib.import_module("torchvision")

"""MACs by scap.count_operations beside fvcore's counter, on networks that others wrote; needs `pip install fvcore`.

fvcore counts one FLOP for a multiply-accumulate, as SCAP does; but it also counts batch norms, pooling, resizing and some
elementwise operations, each by a formula of its own. `products` leaves these out of its count: the operators of
convolutions, linear layers and other matrix products. `others` is what the rest of fvcore's count is made of.
"""

import argparse
import logging

from benchmarks.common import Row, parse, say, write_table
from benchmarks.networks import example_for, made
from scap.pruning.copies import undisturbed
from scap.pruning.counting import count_operations

NETWORKS = ("alexnet", "vgg16", "resnet50", "densenet121", "googlenet", "mobilenet_v3_large", "shufflenet_v2_x1_0",
            "efficientnet_b0", "convnext_tiny", "vit_b_16")  # fmt: skip
PRODUCTS = {"conv", "linear", "matmul", "addmm", "bmm", "einsum", "mm"}


def row_of(name: str) -> Row:
    """One network at 224x224."""
    from fvcore.nn import FlopCountAnalysis

    network, example = made("torchvision", name).eval(), example_for(name, 224)
    ours = count_operations(network, example)["macs"]
    with undisturbed(network):  # fvcore sees nothing of attention's fused path
        analysis = FlopCountAnalysis(network, example)
        operators = analysis.by_operator()
        missing = [operator.removeprefix("aten::") for operator in analysis.unsupported_ops()]
    theirs = sum(count for operator, count in operators.items() if operator in PRODUCTS)
    others = ", ".join(f"{operator} {count / 1e6:.4g} M" for operator, count in operators.items() if operator not in PRODUCTS)
    unseen = ", ".join(operator for operator in missing if "attention" in operator or "mm" in operator)
    row = {"network": name, "SCAP": ours, "fvcore products": int(theirs), "difference": ours - int(theirs)}
    return row | {"fvcore total": int(sum(operators.values())), "others": others, "not counted by fvcore": unseen}


def main(options: argparse.Namespace) -> None:
    """Make the table."""
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    rows = []
    for name in NETWORKS[:1] if options.quick else NETWORKS:
        rows.append(row_of(name))
        say(str(rows[-1]))
    write_table("counting", rows, options, "MACs of one image of 224x224")


if __name__ == "__main__":
    main(parse(__doc__))

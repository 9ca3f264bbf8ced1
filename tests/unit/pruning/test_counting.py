"""Counts of MACs and parameters: against closed formulas, an independent counter and after pruning."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from scap.errors import ScapError
from scap.models.build import build_network
from scap.pruning.counting import count_operations, layer_macs, weight_macs
from scap.pruning.surgery import cut_network

BLOCKS = (((64, 64), 32), ((128, 128), 16), ((256,) * 3, 8), ((512,) * 3, 4), ((512,) * 3, 2))


def closed_formula(width: float = 1.0, widths: list[int] | None = None) -> tuple[int, int, int]:
    """Convolution MACs, classifier MACs and parameters of VGG16-BN for 32x32 images and 10 classes."""
    sizes = [size for block, size in BLOCKS for _ in block]
    channels = widths or [round(full * width) for block, _ in BLOCKS for full in block]
    pairs = list(zip([3, *channels], channels, strict=False))
    macs = sum(9 * before * after * size**2 for (before, after), size in zip(pairs, sizes, strict=True))
    params = sum(9 * before * after + after + 2 * after for before, after in pairs)
    return macs, 10 * channels[-1], params + 10 * channels[-1] + 10


@pytest.mark.parametrize("width", [0.125, 0.25, 1.0])
def test_vgg16_counts_follow_the_closed_formula(width):
    counts = count_operations(build_network("vgg16", width=width), torch.zeros(1, 3, 32, 32))
    convolutions, classifier, params = closed_formula(width)
    assert counts == {"macs": convolutions + classifier, "params": params}


def test_the_full_network_has_the_published_size():
    convolutions, _, params = closed_formula()
    assert (round(convolutions / 1e6, 1), params) == (313.2, 14_728_266)


def test_the_pruned_network_follows_the_closed_formula():
    network, example = build_network("vgg16", width=0.25), torch.zeros(1, 3, 32, 32)
    widths = [3, 16, 7, 32, 64, 1, 64, 5, 128, 11, 128, 2, 9]
    convs = [name for name, _ in network.named_children() if name.startswith("conv")]
    plan = {layer: list(range(kept)) for layer, kept in zip(convs, widths, strict=True)}
    pruned = cut_network(network, plan, example)
    convolutions, classifier, params = closed_formula(widths=widths)
    assert count_operations(pruned, example) == {"macs": convolutions + classifier, "params": params}
    assert sum(macs for name, macs in layer_macs(pruned, example).items() if name in plan) == convolutions


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.Conv2d(6, 6, (1, 5), dilation=2, padding=4)),
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2, bias=False), nn.Conv2d(6, 3, 1)),
        nn.Sequential(nn.ConvTranspose2d(4, 6, 2, stride=3, groups=2), nn.Flatten(2), nn.Conv1d(6, 2, 3)),
        nn.Sequential(nn.Linear(13, 7), nn.ReLU(), nn.Conv2d(4, 8, 3)),
    ],
)
def test_an_independent_counter_agrees(network):
    example = torch.zeros(1, 4, 11, 13)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(example)
    assert 2 * count_operations(network, example)["macs"] == counter.get_total_flops() > 0


def test_counts_are_of_one_image_and_of_every_use():
    layer = nn.Conv2d(3, 3, 3, padding=1)
    network = nn.Sequential(layer, nn.ReLU(), layer)
    assert layer_macs(network, torch.zeros(5, 3, 8, 8)) == {"0": 2 * 8 * 8 * 27 * 3}


class Block(nn.Module):
    """A layer that may be another block's, too, and one of its own."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.shared, self.own = layer, nn.Conv2d(3, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.own(self.shared(images))


class Deeper(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.inner = nn.ModuleDict({"block": Block(layer)})

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.inner["block"](images)


SHARED = {
    "two parents": (2, lambda layer: nn.Sequential(Block(layer), Block(layer))),
    "one of them twice": (3, lambda layer: nn.Sequential(Block(layer), layer, Block(layer))),
    "one level deeper": (2, lambda layer: nn.Sequential(Block(layer), Deeper(layer))),
    "a whole block": (2, lambda layer: nn.Sequential(block := Block(layer), nn.Sequential(block))),
    "the root and a part": (2, lambda layer: nn.Sequential(layer, nn.Sequential(layer))),
}


@pytest.mark.parametrize("layer", [nn.Conv2d(3, 3, 3, padding=1), nn.Linear(8, 8)])
@pytest.mark.parametrize(("uses", "built"), SHARED.values(), ids=SHARED)
def test_a_layer_of_several_parents_counts_every_use(uses, built, layer):
    network, example = built(layer), torch.zeros(2, 3, 8, 8)
    macs = layer_macs(network, example)
    shared = next(name for name, module in network.named_modules() if module is layer)
    assert macs[shared] == uses * layer_macs(layer, example)[""] > 0
    assert sum(macs.values()) == count_operations(network, example)["macs"]


class Given(nn.Module):
    """Two convolutions of 1536 and 2048 MACs on what a function makes of the arguments, and parameters for it."""

    def __init__(self, function, **shapes):
        super().__init__()
        self.first, self.second, self.function = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), function
        for name, shape in shapes.items():
            setattr(self, name, nn.Parameter(torch.ones(shape)))

    def body(self, images):
        return self.second(self.first(images).relu())

    def forward(self, *args, **kwargs):
        return self.function(self, *args, **kwargs)


def resized(network, images):
    """As a detector reads images of several sizes."""
    sized = [functional.interpolate((image - network.mean)[None], (8, 8)) for image in images]
    return network.body(torch.cat(sized))


IMAGES, SIZE = torch.zeros(2, 3, 8, 8), torch.tensor([8, 8])
PLAIN = Given(lambda n, x: n.body(x))
NORMALISED = Given(lambda n, x: n.body(x - n.mean), mean=(3, 1, 1))
DETECTOR = Given(resized, mean=(3, 1, 1))
SIZED = Given(lambda n, size, x: n.body(functional.interpolate(x, tuple(map(int, size.tolist())))))
ARGUMENTS = {
    "an image alone": (PLAIN, IMAGES[0]),
    "an image alone, normalised": (NORMALISED, IMAGES[0]),
    "an image alone, to which the network adds N": (Given(lambda n, x: n.body(x[None])), IMAGES[0]),
    "an image alone or a batch": (Given(lambda n, x: n.body(x if x.ndim == 4 else x[None])), IMAGES[0]),
    "a list of images": (DETECTOR, [torch.zeros(3, 9, 7), torch.zeros(3, 6, 9)]),
    "a list of one image": (DETECTOR, [torch.zeros(3, 9, 7)]),
    "a list among arguments": (DETECTOR, {"images": [torch.zeros(3, 9, 7), torch.zeros(3, 6, 9)]}),
    "a size before an image": (SIZED, (SIZE, IMAGES[:1])),
    "a size before as many images": (SIZED, (SIZE, IMAGES)),
    "a size before an image alone": (Given(lambda n, size, x: n.body(x * size[0])), (SIZE, IMAGES[0])),
    "a size of floats": (SIZED, {"size": SIZE.float(), "x": IMAGES[:1]}),
    "a mask of all images": (Given(lambda n, mask, x: n.body(x * mask)), (torch.ones(8, 8), IMAGES)),
    "a mask of each image": (Given(lambda n, mask, x: n.body(x * mask)), (torch.ones(2, 1, 8, 8), IMAGES)),
    "a number without dimensions": (Given(lambda n, factor, x: n.body(x * factor)), (torch.tensor(2.0), IMAGES)),
    "clips of two images": (Given(lambda n, x: n.body(x).view(-1, 2, 4, 8, 8).mean(1)), torch.zeros(4, 3, 8, 8)),
    "two images and no other number": (Given(lambda n, x: n.body(x.view(2, 3, 8, 8))), IMAGES),
}


@pytest.mark.parametrize(("network", "example"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_counts_are_of_one_image_whichever_arguments_hold_them(network, example):
    assert count_operations(network, example)["macs"] == 1536 + 2048
    assert layer_macs(network, example) == {"first": 1536, "second": 2048}
    assert weight_macs(network, example) == {"first.weight": 1536, "second.weight": 2048}


@pytest.mark.parametrize("example", [torch.zeros(192), torch.zeros(3, 8, 8)])
def test_an_image_alone_counts_as_one_without_convolutions(example):
    assert count_operations(nn.Sequential(nn.Flatten(0), nn.Linear(192, 4)), example)["macs"] == 192 * 4


ONCE = {  # MACs beside those of the convolutions, and what is done once for all images
    "a generated weight": (
        2048 + 32 * 16,
        Given(lambda n, x: functional.conv2d(n.body(x), (n.left @ n.right).view(8, 4, 1, 1)), left=(32, 16), right=(16, 1)),
    ),
    "products of parameters": (4 * 7 * 5, Given(lambda n, x: n.body(x) + (n.left @ n.right).sum(), left=(4, 7), right=(7, 5))),
    "a head on the mean of all": (12, Given(lambda n, x: n.body(x).mean((0, 2, 3)) @ n.right, right=(4, 3))),
    "each image with each other": (4, Given(lambda n, x: n.body(x).mean((2, 3)) @ n.body(x).mean((2, 3)).T)),
}


@pytest.mark.parametrize("images", [1, 2, 6])
@pytest.mark.parametrize(("macs", "network"), ONCE.values(), ids=ONCE)
def test_the_number_of_images_does_not_change_the_counts(macs, network, images):
    example = torch.zeros(images, 3, 8, 8)
    layers = layer_macs(network, example)
    assert count_operations(network, example)["macs"] == sum(layers.values()) + macs
    assert layers == layer_macs(network, example[:1])


def test_an_example_of_which_the_first_image_alone_runs_is_refused():
    network = Given(lambda n, x, y: n.body(x) + y)
    with pytest.raises(ScapError, match=r"does not run on an example of shapes \(2, 3, 8, 8\), \(3, 4, 8, 8\)"):
        count_operations(network, (IMAGES, torch.zeros(3, 4, 8, 8)))


def test_counting_leaves_the_network_as_it_was():
    network = build_network("vgg16", width=0.125).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    count_operations(network, torch.randn(4, 3, 32, 32))
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in network.modules())


def test_counting_does_not_depend_on_the_mode():
    network = nn.Sequential(nn.Conv2d(3, 4, 8), nn.BatchNorm2d(4)).train()  # one value a channel: no statistics
    assert count_operations(network, torch.zeros(1, 3, 8, 8)) == {"macs": 768, "params": 780}


class Attending(nn.Module):
    """Attention of one head: 4 products of weights and 2 of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(8, 1, batch_first=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        tokens = images.flatten(2).mT
        return self.heads(tokens, tokens, tokens, need_weights=False)[0]


def test_attention_counts_with_its_products_of_activations():
    counts = count_operations(Attending().eval(), torch.zeros(2, 8, 4, 4))
    assert counts["macs"] == 4 * 16 * 8 * 8 + 2 * 16 * 16 * 8


class Calling(nn.Module):
    """A function of the first image (4, 5), and of parameters of these shapes."""

    def __init__(self, function, *shapes):
        super().__init__()
        self.function, self.own = function, nn.ParameterList(torch.ones(shape) for shape in shapes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.function(images[0], *self.own)


PRODUCTS = {  # MACs, what is called on an image (4, 5), the other factors
    "matrix times vector": (20, torch.mv, (5,)),
    "batch times vector": (20, lambda x, v: x.view(2, 2, 5) @ v, (5,)),
    "addmv": (20, lambda x, v: torch.addmv(torch.ones(4), x, v), (5,)),
    "addmv in place": (20, lambda x, v: torch.ones(4).addmv_(x, v), (5,)),
    "mv into a tensor": (20, lambda x, v: torch.mv(x, v, out=torch.empty(4)), (5,)),
    "dot": (5, lambda x, v: torch.dot(x[0], v), (5,)),
    "vdot": (5, lambda x, v: torch.vdot(x[0], v), (5,)),
    "inner": (5, lambda x, v: torch.inner(x[0], v), (5,)),
    "tensordot of all": (20, lambda x, m: torch.tensordot(x, m, 2), (4, 5)),
    "addmm in place": (60, lambda x, m: torch.ones(4, 3).addmm_(x, m), (5, 3)),
    "baddbmm": (120, lambda x, m: torch.baddbmm(torch.ones(2, 4, 3), x.expand(2, 4, 5), m), (2, 5, 3)),
    "baddbmm in place": (120, lambda x, m: torch.ones(2, 4, 3).baddbmm_(x.expand(2, 4, 5), m), (2, 5, 3)),
    "addbmm": (120, lambda x, m: torch.addbmm(torch.ones(4, 3), x.expand(2, 4, 5), m), (2, 5, 3)),
    "addbmm in place": (120, lambda x, m: torch.ones(4, 3).addbmm_(x.expand(2, 4, 5), m), (2, 5, 3)),
    "addr": (15, lambda x, v: torch.addr(torch.ones(5, 3), x[0], v), (3,)),
    "addr in place": (15, lambda x, v: torch.ones(5, 3).addr_(x[0], v), (3,)),
    "sparse": (60, lambda x, m: torch.sparse.mm(x.to_sparse(), m), (5, 3)),
    "bilinear": (4 * 3 * 5 * 6 + 4 * 3 * 6, lambda x, w: functional.bilinear(x, torch.ones(4, 6), w), (3, 5, 6)),
    "einsum of three": (
        4 * 3 * 5 * 6 + 4 * 3 * 6,
        lambda x, w: torch.einsum("ni,oij,nj->no", x, w, torch.ones(4, 6)),
        (3, 5, 6),
    ),
    "einsum with a vector": (20, lambda x, v: torch.einsum("ni,i->n", x, v), (5,)),
    "multi_dot": (50, lambda x, m, v: torch.linalg.multi_dot([x, m, v]), (5, 6), (6,)),
    "time first": (2 * 3 * 5 * 7, lambda x, w: torch.conv_tbc(x[:, None], w, torch.ones(7)), (3, 5, 7)),
}


@pytest.mark.parametrize("case", PRODUCTS.values(), ids=PRODUCTS)
def test_every_product_counts(case):
    macs, function, *shapes = case
    assert count_operations(Calling(function, *shapes), torch.ones(1, 4, 5))["macs"] == macs


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_recurrent_layers_count_every_step(layer):
    gates = {nn.LSTM: 4, nn.GRU: 3}[layer]
    assert count_operations(layer(8, 16, batch_first=True), torch.zeros(3, 10, 8))["macs"] == 10 * gates * 16 * (8 + 16)


def test_counting_in_any_world_and_precision():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()).to(torch.bfloat16)
    for world in (torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")):
        with world():
            assert count_operations(network, torch.zeros(2, 3, 5, 5)) == {"macs": 9 * 27 * 4, "params": 112}
    assert layer_macs(network, torch.zeros(2, 3, 5, 5)) == {"0": 9 * 27 * 4}
    assert layer_macs(nn.Linear(3, 4), torch.zeros(5, 3)) == {"": 12}

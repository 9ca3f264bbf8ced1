"""A network of layers that a function wires together."""

from torch import nn


class Wired(nn.Module):
    """Its forward pass is `wire(network, images)`; layers may also be parameters and plain tensors."""

    def __init__(self, wire, **layers):
        super().__init__()
        self.wire = wire
        for name, layer in layers.items():
            setattr(self, name, layer)

    def forward(self, images):
        return self.wire(self, images)

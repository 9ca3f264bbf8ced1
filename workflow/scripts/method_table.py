"""One channel through the method, as a table of pixels: the most faithful channel of a layer, on the first image."""

from channels import read_fidelity
from job import job
from table import write_table
from torch import Tensor

from scap.criterion.autoencoder import AutoencoderSettings, load_autoencoder
from scap.criterion.reference import reconstruct
from scap.criterion.spectra import open_activations


def pixels(panel: str, image: Tensor) -> list[dict]:
    return [
        {"panel": panel, "row": row, "column": column, "value": value}
        for row, values in enumerate(image.tolist())
        for column, value in enumerate(values)
    ]


def method_table(activations: str, autoencoder: str, fidelity: str, cfg: dict, output: str) -> None:
    inputs, outputs = (tensor[:1].float() for tensor in open_activations(activations, cfg["layer"]))
    channel = int(read_fidelity(fidelity, cfg["layer"]).argmax())
    outputs = outputs[:, channel : channel + 1]
    settings = AutoencoderSettings(**cfg["autoencoder"])
    network = load_autoencoder(autoencoder, cfg["layer"], settings.representation)
    spectrum, reconstruction = (s[0, 0].square().sum(0) for s in reconstruct(network, inputs, outputs, settings))
    panels = {"input": inputs[0].mean(0), "output": outputs[0, 0]}
    for panel, energy in {"spectrum": spectrum, "reconstruction": reconstruction}.items():
        panels[panel] = energy.roll([size // 2 for size in energy.shape], (0, 1)).clamp_min(1e-12).log10()
    write_table(output, [row for panel, image in panels.items() for row in pixels(panel, image)])


if __name__ == "__main__":
    with job(snakemake):
        paths = (snakemake.input.activations, snakemake.input.autoencoder, snakemake.input.fidelity)
        method_table(*paths, snakemake.params.cfg, snakemake.output[0])

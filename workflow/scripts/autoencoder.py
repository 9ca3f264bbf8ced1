"""Fit one layer's autoencoder and measure how faithfully it reconstructs each output channel."""

from device import pick_device
from job import Report, job
from table import write_table

from scap.checks import check_finite
from scap.criterion.autoencoder import AutoencoderSettings, fidelities, save_autoencoder
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.spectra import open_spectra


def fit(path: str, layer: str, cfg: dict, weights: str, fidelity: str, device: str, report: Report) -> None:
    settings = AutoencoderSettings(**cfg)
    spectra = open_spectra(path, layer, settings.domain)
    network = fit_autoencoder(spectra, settings, layer=layer, device=device, report=report)
    values = fidelities(network, spectra, settings).numpy()
    check_finite(values, f"layer {layer}: fidelity")
    save_autoencoder(weights, network, layer, settings.representation)
    rows = ({"layer": layer, "channel": channel, "fidelity": value} for channel, value in enumerate(values))
    write_table(fidelity, rows)


if __name__ == "__main__":
    with job(snakemake) as report:
        fit(
            snakemake.input.spectra,
            snakemake.wildcards.layer,
            snakemake.params.cfg,
            *snakemake.output,
            pick_device(snakemake),
            report,
        )

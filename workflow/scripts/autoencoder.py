"""Fit one layer's autoencoder and measure how faithfully it reconstructs each output channel."""

from device import pick_device
from job import Report, job
from table import write_table

from scap.criterion.autoencoder import AutoencoderSettings, fidelities, save_autoencoder
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.spectra import open_spectra


def fit(path: str, layer: str, cfg: dict, weights: str, fidelity: str, device: str, report: Report) -> None:
    settings = AutoencoderSettings(**cfg)
    spectra = open_spectra(path, layer, settings.domain)
    network = fit_autoencoder(spectra, settings, layer=layer, device=device, report=report)
    save_autoencoder(weights, network)
    values = fidelities(network, spectra, settings).tolist()
    write_table(fidelity, ({"channel": channel, "fidelity": value} for channel, value in enumerate(values)))


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

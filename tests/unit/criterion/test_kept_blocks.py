"""What of the spectra is kept between passes changes the cost of a fit and nothing else."""

import pytest
import torch
from conftest import choices

from scap.criterion.autoencoder import AutoencoderSettings, KeptBlocks
from scap.criterion.fitting import fit_autoencoder
from scap.criterion.spectra import Spectra, spectra_of


def layer() -> Spectra:
    generator = torch.Generator().manual_seed(0)
    inputs, outputs = (torch.randn(40, k, 32, 32, generator=generator).relu() for k in (3, 20))
    return spectra_of(inputs, outputs)


@pytest.mark.parametrize("representation", ["complex", "power"])
@pytest.mark.parametrize("kind", choices(AutoencoderSettings, "kind"))
def test_a_fit_is_the_same_where_blocks_are_made_again(representation, kind):
    def fit(workspace: int) -> tuple[torch.Tensor, torch.Tensor]:
        settings = AutoencoderSettings(
            representation=representation, kind=kind, bottleneck=3, batch_size=8, epochs=4, workspace_mb=workspace
        )
        fitted = fit_autoencoder(layer(), settings)
        return fitted.rows.detach(), fitted.bias.detach()

    for kept, made_again in zip(fit(512), fit(2), strict=True):
        assert torch.equal(kept, made_again)


@pytest.mark.parametrize(("workspace", "kept"), [(1, 1), (2, 2), (512, 5)])
def test_as_many_blocks_are_kept_as_fit(workspace, kept):
    """Eight images hold 0.6 MiB of outputs and 0.1 MiB of inputs."""
    held = KeptBlocks(layer(), AutoencoderSettings(batch_size=8, workspace_mb=workspace))
    for _ in range(3):
        assert [block.norm.shape[0] for block in held] == [8] * 5
        assert len(held.kept) == kept


def test_what_is_needed_once_is_not_kept():
    held = KeptBlocks(layer(), AutoencoderSettings(batch_size=8))
    assert len(list(held.once())) == 5
    assert not held.kept

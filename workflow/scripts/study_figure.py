"""Draw the figure of a study from its table."""

from job import job

from scap.figures.sensitivity import study_figure
from scap.figures.style import save

if __name__ == "__main__":
    with job(snakemake):
        save(study_figure(snakemake.input.table), snakemake.output)

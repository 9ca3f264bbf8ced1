"""Draw the figure of a study from its table."""

from job import job

from scap.figure_studies import study_figure
from scap.figure_style import save

if __name__ == "__main__":
    with job(snakemake):
        save(study_figure(snakemake.input.table), snakemake.output)

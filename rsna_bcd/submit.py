"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

from omegaconf import DictConfig

from rsna_bcd._stage import process_start, stage


@stage("submit", go_on="What is predicted is kept: run the same command to go on.")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.submit import submit

    submit(cfg, process_start())


if __name__ == "__main__":
    main()

"""`python -m rsna_bcd.prepare`: images and CSV to crops, one table per split, manifest, folds."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("prepare", go_on="What is done is kept: run the same command to go on.")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.prepare import prepare

    prepare(cfg)


if __name__ == "__main__":
    main()

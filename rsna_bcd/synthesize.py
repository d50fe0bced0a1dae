"""`python -m rsna_bcd.synthesize`: a competition made here, in the layout of Kaggle's folder."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("synthesize")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.synthesize import synthesize

    synthesize(cfg)


if __name__ == "__main__":
    main()

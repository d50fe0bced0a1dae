"""`python -m rsna_bcd.bundle`: an ensemble -> the folders of an offline submission to Kaggle."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("bundle")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.bundle import bundle

    bundle(cfg)


if __name__ == "__main__":
    main()

"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("train", go_on="Finished epochs are kept: run the same command to resume.")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.train import train

    train(cfg)


if __name__ == "__main__":
    main()

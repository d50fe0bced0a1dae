"""`python -m rsna_bcd.rehearse`: run a bundle's notebook as Kaggle would, without a network."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("rehearse")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.rehearse import rehearse

    rehearse(cfg)


if __name__ == "__main__":
    main()

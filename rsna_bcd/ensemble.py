"""`python -m rsna_bcd.ensemble`: out-of-fold predictions to a blend and an honest threshold."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("ensemble")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.ensemble import ensemble

    ensemble(cfg)


if __name__ == "__main__":
    main()

"""`python -m rsna_bcd.compare`: all runs by score, or some of them on the same breasts."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("compare")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.compare import compare

    compare(cfg)


if __name__ == "__main__":
    main()

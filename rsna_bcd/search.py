"""`python -m rsna_bcd.search`: which settings score best, by trials that are runs."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("search", go_on="Finished trials are kept: run the same command to go on.")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.search import search

    search(cfg)


if __name__ == "__main__":
    main()

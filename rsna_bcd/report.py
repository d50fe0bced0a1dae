"""`python -m rsna_bcd.report`: out-of-fold predictions to one page, and to a model card."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("report")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.report import report

    report(cfg)


if __name__ == "__main__":
    main()

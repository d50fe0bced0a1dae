"""`python -m rsna_bcd.evaluate`: a submission against the true labels, and a plain baseline."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("evaluate")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    main()

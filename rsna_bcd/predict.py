"""`python -m rsna_bcd.predict`: any mammograms -> what a model says of them, with pictures."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("predict")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.predict import predict

    predict(cfg)


if __name__ == "__main__":
    main()

"""`python -m rsna_bcd.submit`: test images + `ensemble.json` -> `submission.csv`."""

from omegaconf import DictConfig

from rsna_bcd._stage import process_start, stage


def _submit(cfg: DictConfig) -> None:
    from rsna_bcd.stages.submit import submit

    submit(cfg, process_start())  # the time budget includes the start of Python


main = stage("submit", "What is predicted is kept: run the same command to resume.", _submit)

if __name__ == "__main__":
    main()

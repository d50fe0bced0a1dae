"""`python -m rsna_bcd.index`: what the headers of a folder of DICOM files say, as a table."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("index")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.index import index

    index(cfg)


if __name__ == "__main__":
    main()

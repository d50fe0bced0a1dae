"""`python -m rsna_bcd.export`: a trained fold -> ONNX or `torch.export`, for other software."""

from omegaconf import DictConfig

from rsna_bcd._stage import stage


@stage("export")
def main(cfg: DictConfig) -> None:
    """Run the command; only now import what does its work, which may take seconds."""
    from rsna_bcd.stages.export import export

    export(cfg)


if __name__ == "__main__":
    main()

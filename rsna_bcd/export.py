"""`python -m rsna_bcd.export`: a trained fold -> ONNX or `torch.export`, for other software."""

if __name__ == "__main__":
    from rsna_bcd._stage import main  # not above: worker processes import this module, too

    main("export")

"""`python -m rsna_bcd.export`: a trained fold -> ONNX or `torch.export`, for other software."""

from rsna_bcd._stage import stage

main = stage("export")

if __name__ == "__main__":
    main()

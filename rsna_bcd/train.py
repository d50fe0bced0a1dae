"""`python -m rsna_bcd.train`: one fold of one experiment, from crops to out-of-fold predictions."""

from rsna_bcd._stage import stage

main = stage("train", resume_hint="Finished epochs are kept: run the same command to resume.")

if __name__ == "__main__":
    main()

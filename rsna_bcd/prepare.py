"""`python -m rsna_bcd.prepare`: images and CSV to crops, one table per split, manifest, folds."""

from rsna_bcd._stage import stage

main = stage("prepare", resume_hint="What is done is kept: run the same command to resume.")

if __name__ == "__main__":
    main()

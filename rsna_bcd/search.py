"""`python -m rsna_bcd.search`: hyperparameter search; each trial is a run."""

from rsna_bcd._stage import stage

main = stage("search", resume_hint="Finished trials are kept: run the same command to resume.")

if __name__ == "__main__":
    main()

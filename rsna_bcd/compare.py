"""`python -m rsna_bcd.compare`: all runs by score, or some of them on the same breasts."""

from rsna_bcd._stage import stage

main = stage("compare")

if __name__ == "__main__":
    main()

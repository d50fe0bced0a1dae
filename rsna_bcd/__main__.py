"""`python -m rsna_bcd`: the commands and their purpose."""

from pathlib import Path

from rsna_bcd._stage import CONF
from rsna_bcd.settings import COMMANDS


def main() -> None:
    """List the commands: the first line of each one's YAML is its description."""
    width = max(map(len, COMMANDS))
    for name in COMMANDS:
        first = (Path(CONF) / f"{name}.yaml").read_text(encoding="utf-8").partition("\n")[0]
        print(f"python -m rsna_bcd.{name:{width}}  {first.removeprefix('# ')}")
    print("\nSettings are given as key=value. --help shows all of a command with their defaults.")


if __name__ == "__main__":
    main()

"""The command line of a published model: `python -m ecgfm`, or `ecgfm`.

ecgfm embed FILES... --encoder ID --out features.parquet
ecgfm predict FILES... --classifier ID --out predictions.csv
ecgfm info ID
"""

from __future__ import annotations

import sys

from ecgfm import config


def main() -> None:
    """Run a command; `--help` explains each."""
    try:
        from ecgfm.cli.commands import run
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] == "ecgfm":
            raise
        print(f"error: the command line needs the package {error.name}: pip install 'ecgfm[files]'", file=sys.stderr)
        sys.exit(1)
    config.run_command(run)


if __name__ == "__main__":
    main()

"""``python -m penjing``: the command line."""

from penjing.cli import main

if __name__ == "__main__":
    main()

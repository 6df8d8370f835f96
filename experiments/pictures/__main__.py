"""The command; what it does is in `command`."""

import sys

from experiments.start import start


if __name__ == "__main__":  # before the imports, which take seconds
    sys.exit(start("experiments.pictures.command"))

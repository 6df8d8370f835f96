"""`python -m jaxprune`: what can be done with a file of weights and no program."""

import os
import sys

from jaxprune.interop._optional import require


def main(args: list[str] | None = None) -> int:
    """Runs a command; gives 0, 1 with a message if a file is bad, 130 after Ctrl-C."""
    try:
        tyro = require("tyro", "cli")
        require("rich", "cli")
        commands = require("jaxprune._commands", "cli").COMMANDS
        # A wrong flag exits with 2 here.
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="python -m jaxprune",
            description="What to do with a file of pruned weights, and no program.",
            args=args,
        )
        print(end="", flush=True)
    except BrokenPipeError:
        # Who reads what is printed has read enough, as `head` does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ImportError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

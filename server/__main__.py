"""Run the command line as `python -m server`, where the command `preamble` is not on the path."""

from server.cli import main

if __name__ == "__main__":
    main()

"""``python -m skipwise`` is the command ``skipwise``."""

from skipwise.cli.main import run

if __name__ == "__main__":
    run()

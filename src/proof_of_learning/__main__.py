"""``python -m proof_of_learning``: the command ``pol``."""

from proof_of_learning.cli.main import run

if __name__ == "__main__":
    run()

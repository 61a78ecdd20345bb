"""Evaluate one or more models on one set of problems: `python eval.py --help`."""

from rlvr.run.cli import parse_eval, run_program


def main() -> None:
    config = parse_eval()
    from rlvr.run.compare import compare  # torch and transformers, only once the settings are known to be good

    compare(config)


if __name__ == "__main__":
    run_program(main)

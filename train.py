"""Train a language model by reinforcement learning with verifiable rewards: `python train.py --help`."""

import signal
import sys

from rlvr.common.text import Patient
from rlvr.run.cli import parse_train, run_program


def main() -> None:
    config = parse_train()
    from rlvr.engine.parallel import workers  # torch and transformers, only once the settings are known to be good

    with workers(config):  # other processes that share the work, if they help
        from rlvr.train import train

        if stopped_by := train(config)["stopped_by"]:
            sys.exit(128 + getattr(signal, stopped_by))  # as the shell has it: 130 for Ctrl-C, 143 for SIGTERM


if __name__ == "__main__":
    sys.stdout, sys.stderr = Patient(sys.stdout), Patient(sys.stderr)
    run_program(main)

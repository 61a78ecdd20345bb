"""Train a language model by reinforcement learning with verifiable rewards: `python train.py --help`."""

import signal
import sys

from rlvr.config import SettingError, parse_train
from rlvr.common.text import Patient


def main() -> None:
    sys.stdout, sys.stderr = Patient(sys.stdout), Patient(sys.stderr)
    try:
        config = parse_train()
        from rlvr.train import train  # torch and transformers, only once the settings are known to be good

        stopped_by = train(config)["stopped_by"]
        if stopped_by:
            sys.exit(128 + getattr(signal, stopped_by))  # as the shell has it: 130 for Ctrl-C, 143 for SIGTERM
    except KeyboardInterrupt:
        sys.exit(130)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()

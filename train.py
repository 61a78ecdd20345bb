"""Train a language model by reinforcement learning with verifiable rewards: `python train.py --help`."""

import sys

from rlvr.config import SettingError, parse_train


def main() -> None:
    try:
        config = parse_train()
        from rlvr.train import train  # torch and transformers, only once the settings are known to be good

        train(config)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

"""Evaluate one or more models on one set of problems: `python eval.py --help`."""

import sys

from rlvr.config import SettingError, parse_eval


def main() -> None:
    try:
        config = parse_eval()
        from rlvr.evaluate import compare  # torch and transformers, only once the settings are known to be good

        compare(config)
    except KeyboardInterrupt:
        sys.exit(130)
    except SettingError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()

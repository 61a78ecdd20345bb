#!/usr/bin/env bash
# The checks of rlvr/adapters/verl.py that need verl, in an environment of their own (2 GB, two minutes), as verl wants other versions of
# what this project needs:  tests/verl.sh [folder for the environment]
set -euo pipefail
cd "$(dirname "$0")"
venv=${1:-$(mktemp -d)/verl}
[ -x "$venv/bin/python" ] || python3 -m venv "$venv"
"$venv/bin/pip" install -q 'torch>=2.8,<2.14' verl==0.9.1 cachetools fastapi uvicorn matplotlib pytest tyro 'math-verify>=0.9,<0.10'
"$venv/bin/pip" install -q --no-deps TransferQueue pyzmq msgspec nvtx # verl needs them and does not say so
"$venv/bin/python" -m pytest -q -p no:cacheprovider -c /dev/null --rootdir . -W ignore --durations 3 verl_checks.py

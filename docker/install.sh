#!/bin/sh
# What `make` and docker/Dockerfile both do: put sweeper into an environment of its own, with the
# versions of docker/requirements.lock. To be run from the repository's root.
#
#   sh docker/install.sh VENV [EXTRAS]          e.g. .venv dev
#   sh docker/install.sh VENV --dependencies    those alone, which change less often than the code
set -eu
venv=$1
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
if [ "${2:-}" = --dependencies ]; then
  "$venv/bin/pip" install --quiet --requirement docker/requirements.lock
else
  "$venv/bin/pip" install --quiet --constraint docker/requirements.lock --editable ".${2:+[$2]}"
fi

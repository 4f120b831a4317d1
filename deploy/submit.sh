#!/usr/bin/env bash
# Starts a study on a Ray cluster that is running, or goes on with one: the same line does both.
#
#   deploy/submit.sh SPACE.toml STORAGE [options of `orchestrator search`]
#
# The current folder travels along (without what .gitignore names), so a space may refer to code of your own in it.
# STORAGE is a folder that every machine sees, or an s3:// URI: all that matters lies there, nothing in the cluster.
# Wanted in the environment: RAY_API_SERVER_ADDRESS (http://HEAD:8265), RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH.
set -euo pipefail

if [ $# -lt 2 ]; then
  echo "usage: $0 SPACE.toml STORAGE [options of orchestrator search]" >&2
  exit 2
fi
space=$1 storage=$2
shift 2
case $storage in
  /* | *://*) ;;
  *)
    echo "STORAGE is $storage; it must begin with / or be a URI: a job's own folder goes with the job" >&2
    exit 2
    ;;
esac

export RAY_AUTH_MODE=token
# A submission id is used once only; the study's name is what ties launches together.
exec ray job submit --working-dir . --submission-id "$(basename "$space" .toml)-$(date -u +%Y%m%d-%H%M%S)-$$" -- \
  python -m orchestrator search "$space" --storage "$storage" --address auto "$@"

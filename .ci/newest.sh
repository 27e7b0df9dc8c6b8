#!/usr/bin/env bash
# Tells whether the newest Prefect and FastAPI that can be had work together, so that a bound may be raised.
# usage: newest.sh DIR WHEEL     needs uv; makes DIR
set -euo pipefail
folder=$1 wheel=$2
mkdir --parents "$folder"
uv venv --quiet --python 3.11 "$folder/venv"
try() {
    printf '%s\n' "${@:2}" >"$folder/overrides.txt"
    if ! uv pip install --quiet --python "$folder/venv" --override "$folder/overrides.txt" "$wheel" 2>"$folder/log"; then
        echo "$1: cannot be installed: $(grep --max-count=1 --only-matching 'Because.*' "$folder/log" || tail --lines=1 "$folder/log")"
    elif ! "$folder/venv/bin/python" -c 'import prefect.server.api.server' 2>"$folder/log"; then
        echo "$1: $(versions): the server does not import: $(tail --lines=1 "$folder/log")"
    else
        echo "$1: $(versions): the server imports"
    fi
}
versions() { uv pip freeze --quiet --python "$folder/venv" | grep --extended-regexp '^(prefect|fastapi)==' | paste --serial --delimiters=' '; }
try 'newest of both' 'prefect>=3.8.8' 'fastapi>=0.139'
try 'newest FastAPI with our Prefect' 'prefect>=3.8.8,<3.9' 'fastapi>=0.139'

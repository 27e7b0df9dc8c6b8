#!/usr/bin/env bash
# Tells whether the newest Prefect and FastAPI that can be had work together, so that a bound may be raised.
# usage: newest.sh DIR WHEEL     needs uv; makes DIR
set -euo pipefail
folder=$1 wheel=$2
mkdir --parents "$folder"
uv venv --quiet --python 3.11 "$folder/venv"
# A server that starts is not enough: with some versions of FastAPI it refuses the null that Prefect's client sends.
cat >"$folder/probe.py" <<'PYTHON'
import asyncio

import httpx
from prefect.server.api.server import create_app


async def main():
    from prefect.server.database import provide_database_interface

    app = create_app(ephemeral=True)
    await provide_database_interface().create_db()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://server/api") as client:
        for path in ("deployments", "flow_runs"):
            answer = await client.post(f"/{path}/filter", json={"limit": None})
            assert answer.is_success, f"{path}/filter with a null answers {answer.status_code}"
        flow = (await client.post("/flows/", json={"name": "a"})).json()["id"]
        schedule = {"schedule": {"interval": 60, "anchor_date": "2026-01-01T00:00:00Z"}, "active": True}
        made = await client.post("/deployments/", json={"name": "a", "flow_id": flow, "schedules": [schedule]})
        await client.post(f"/deployments/{made.json()['id']}/schedule", json={"min_runs": 2})
        assert (await client.post("/flow_runs/filter", json={})).json(), "a schedule makes no runs"


asyncio.run(main())
PYTHON
try() {
    printf '%s\n' "${@:2}" >"$folder/overrides.txt"
    if ! uv pip install --quiet --python "$folder/venv" --override "$folder/overrides.txt" "$wheel" 2>"$folder/log"; then
        echo "$1: cannot be installed: $(grep --max-count=1 --only-matching 'Because.*' "$folder/log" || tail --lines=1 "$folder/log")"
    elif ! PREFECT_HOME=$folder/prefect "$folder/venv/bin/python" "$folder/probe.py" >"$folder/log" 2>&1; then
        echo "$1: $(versions): broken: $(tail --lines=1 "$folder/log")"
    else
        echo "$1: $(versions): the server works"
    fi
    rm --recursive --force "$folder/prefect"
}
versions() {
    uv pip freeze --quiet --python "$folder/venv" | grep --extended-regexp '^(prefect|fastapi|sqlalchemy)==' | paste --serial --delimiters=' '
}
try 'newest of all' 'prefect>=3.8.8' 'fastapi>=0.139' 'sqlalchemy[asyncio]>=2.0.40'
try 'newest FastAPI with our Prefect' 'prefect>=3.8.8,<3.10' 'fastapi>=0.139'
try 'newest SQLAlchemy with our Prefect' 'prefect>=3.8.8,<3.10' 'sqlalchemy[asyncio]>=2.0.40'

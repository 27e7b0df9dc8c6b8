#!/bin/bash
# A PostgreSQL server on loopback for tests: no password, no fsync, disposable data.
# usage: postgres.sh start DIR PORT     prints its URL (EXECUTIONS_TEST_POSTGRES); a running server is left unchanged
#        postgres.sh stop DIR           ends the server that start launched in DIR
# PostgreSQL refuses to run as root. Root runs it as the user postgres, which needs access to the folders above DIR.
set -euo pipefail
verb=${1:?start or stop} folder=${2:?a folder}
mkdir -p "$folder"
folder=$(readlink -f "$folder")
data=$folder/data

programs=$(ls -d /usr/lib/postgresql/*/bin 2>/dev/null | sort --version-sort | tail --lines=1)
if path=$(command -v pg_ctl); then programs=$(dirname "$(readlink -f "$path")"); fi
[ -x "$programs/initdb" ] || { echo "postgres.sh: no initdb found; install PostgreSQL" >&2; exit 1; }

unprivileged() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups env HOME="$folder" "$@"
    else
        "$@"
    fi
}

start() {
    local port=$1
    if [ "$(id -u)" = 0 ]; then chown postgres:postgres "$folder"; fi
    cd "$folder"    # the user postgres may lack access to the caller's folder
    [ -s "$data/PG_VERSION" ] ||
        unprivileged "$programs/initdb" --pgdata="$data" --username=postgres --auth=trust --no-sync \
            --locale=C.UTF-8 --encoding=UTF8 >"$folder/initdb.log" 2>&1 ||
        { cat "$folder/initdb.log" >&2; exit 1; }
    if ! unprivileged "$programs/pg_ctl" --pgdata="$data" status >/dev/null 2>&1; then
        # No socket file: its path has at most 107 characters; a CI folder may exceed that.
        local flags="-p $port -c listen_addresses=127.0.0.1 -c unix_socket_directories='' -c fsync=off"
        unprivileged "$programs/pg_ctl" --pgdata="$data" --log="$folder/postgres.log" --wait \
            --options="$flags -c max_connections=200" start >/dev/null ||
            { tail --lines=5 "$folder/postgres.log" >&2; exit 1; }
    fi
    echo "postgresql://postgres@127.0.0.1:$(sed --quiet 4p "$data/postmaster.pid")/postgres"
}

stop() {
    [ -f "$data/postmaster.pid" ] || return 0
    cd "$folder"
    unprivileged "$programs/pg_ctl" --pgdata="$data" --mode=immediate --wait stop >/dev/null
}

case $verb in
    start) start "${3:?a port}" ;;
    stop) stop ;;
    *) echo "usage: postgres.sh start DIR PORT | stop DIR" >&2; exit 2 ;;
esac

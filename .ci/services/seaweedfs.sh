#!/bin/bash
# A SeaweedFS server with an S3 API on loopback, for tests. Keys: testkey / testsecret.
# usage: seaweedfs.sh start DIR PORT     prints the endpoint; DIR should be empty, PORT..PORT+3 (and +10000) free
#        seaweedfs.sh stop DIR           ends the server that start launched in DIR
# WEED is the path of the program, if it is not on the PATH.
set -euo pipefail
verb=${1:?start or stop} folder=${2:?a folder}
weed=${WEED:-weed}

start() {
    local port=$1
    mkdir -p "$folder/data"
    if curl --silent --output /dev/null "http://127.0.0.1:$port/"; then
        echo "seaweedfs.sh: port $port is already in use" >&2
        exit 1
    fi
    cat > "$folder/keys.json" <<JSON
{"identities": [
  {"name": "tests", "credentials": [{"accessKey": "testkey", "secretKey": "testsecret"}],
   "actions": ["Admin", "Read", "Write", "List", "Tagging"]},
  {"name": "reader", "credentials": [{"accessKey": "readerkey", "secretKey": "readersecret"}],
   "actions": ["Read", "List"]}
]}
JSON
    local flags=(
        -ip=127.0.0.1 -ip.bind=127.0.0.1
        -master.port=$((port + 1)) -volume.port=$((port + 2)) -filer -filer.port=$((port + 3))
        -s3 -s3.port="$port" -s3.config="$folder/keys.json"
        -s3.port.iceberg=0 -s3.port.lance=0     # otherwise it also listens on 8181 and 9101
        -master.telemetry=false                 # the default sends data to an external host
        -volume.max=1000                        # a bucket needs several volumes; the default suffices for two buckets
        -master.volumeSizeLimitMB=1024 -volume.preStopSeconds=0
    )
    WEED_MASTER_VOLUME_GROWTH_COPY_1=1 setsid nohup "$weed" -logtostderr=true server -dir="$folder/data" "${flags[@]}" \
        </dev/null >"$folder/weed.log" 2>&1 &
    echo $! > "$folder/weed.pid"
    for _ in $(seq 300); do
        # The gateway answers before volumes are writable: also request a file id from the master.
        if curl --silent --output /dev/null "http://127.0.0.1:$port/" &&
            curl --silent "http://127.0.0.1:$((port + 1))/dir/assign" | grep --quiet '"fid"'; then
            echo "http://127.0.0.1:$port"
            return
        fi
        sleep 0.1
    done
    tail --lines=5 "$folder/weed.log" >&2
    stop
    exit 1
}

stop() {
    [ -f "$folder/weed.pid" ] || return 0
    # A graceful stop takes 16 s, and the data are disposable.
    kill -KILL "$(cat "$folder/weed.pid")" 2>/dev/null || true
    rm -f "$folder/weed.pid"
}

case $verb in
    start) start "${3:?a port}" ;;
    stop) stop ;;
    *) echo "usage: seaweedfs.sh start DIR PORT | stop DIR" >&2; exit 2 ;;
esac

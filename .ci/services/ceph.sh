#!/bin/bash
# A minimal Ceph with an Object Gateway on loopback, all in memory, for tests. Keys: testkey / testsecret.
# usage: ceph.sh start DIR PORT     prints the endpoint; DIR must be empty, PORT and PORT+1 free
#        ceph.sh stop DIR           ends the four daemons that start launched in DIR
set -euo pipefail
verb=${1:?start or stop} folder=${2:?a folder}

configure() {
    local port=$1
    mkdir -p "$folder"/{mon,osd,mgr,rgw,log,run}
    : > "$folder/keyring"
    cat > "$conf" <<INI
[global]
fsid = $fsid
run dir = $folder/run
pid file = $folder/run/\$name.pid
admin socket = $folder/run/\$name.\$pid.asok
log file = $folder/log/\$name.log
keyring = $folder/keyring
mon data = $folder/mon
osd data = $folder/osd
mgr data = $folder/mgr
rgw data = $folder/rgw
heartbeat file = /dev/null

# one monitor, located by its address ("public bind addr" would make it ignore the port)
mon host = [v1:127.0.0.1:$((port + 1))]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
ms bind ipv6 = false

# no authentication: only this machine can reach it
auth cluster required = none
auth service required = none
auth client required = none

# one copy, in memory
osd objectstore = memstore
memstore device bytes = 8589934592
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 1
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 2000
mon data avail warn = 2
mon data avail crit = 1

[client.rgw]
rgw frontends = beast endpoint=127.0.0.1:$port
rgw dynamic resharding = false
rgw crypt require ssl = false
INI
}

wait_for() {
    for _ in $(seq 300); do
        "$@" >/dev/null 2>&1 && return
        sleep 0.2
    done
    echo "ceph.sh: gave up waiting for: $*" >&2
    tail --lines=5 "$folder"/log/*.log >&2 || true
    stop
    exit 1
}

mon_answers() { timeout 30 ceph -c "$conf" mon stat; }
osd_is_up() { timeout 30 ceph -c "$conf" osd stat | grep --quiet '1 up'; }

# A monitor that has just started may refuse a command: "EPERM: problem getting command descriptions from mon".
# The same key gives the same id again.
new_osd() {
    for _ in 1 2 3 4; do
        timeout 60 ceph -c "$conf" osd new "$1" && return
        sleep 1
    done
    return 1
}

# A race in ceph-osd: it sometimes reports to the monitor before it has the cluster's id ("wrong fsid") and ends.
start_osd() {
    for _ in 1 2 3; do
        ceph-osd -c "$conf" -i "$1" >/dev/null 2>"$folder/log/osd-start.log" && return
        sleep 0.5
    done
    cat "$folder/log/osd-start.log" >&2
    return 1
}

start() {
    local port=$1 osd_id osd_key
    mkdir -p "$folder" && folder=$(readlink -f "$folder")
    conf=$folder/ceph.conf fsid=$(cat /proc/sys/kernel/random/uuid)
    export CEPH_CONF=$conf
    configure "$port"

    monmaptool --create --fsid "$fsid" --addv a "[v1:127.0.0.1:$((port + 1))]" "$folder/monmap" >/dev/null
    ceph-mon -c "$conf" --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/keyring"
    ceph-mon -c "$conf" -i a
    osd_key=$(cat /proc/sys/kernel/random/uuid)
    wait_for mon_answers
    osd_id=$(new_osd "$osd_key")
    ceph-osd -c "$conf" -i "$osd_id" --mkfs --osd-uuid "$osd_key" >/dev/null 2>&1
    start_osd "$osd_id"
    ceph-mgr -c "$conf" -i x >/dev/null 2>&1 || echo "ceph.sh: no manager daemon; the gateway works without one" >&2
    wait_for osd_is_up
    radosgw -c "$conf" -n client.rgw
    wait_for curl --silent --output /dev/null "http://127.0.0.1:$port/"
    timeout 60 radosgw-admin -c "$conf" -n client.rgw user create --uid=tests --display-name=tests \
        --access-key=testkey --secret-key=testsecret >/dev/null
    echo "http://127.0.0.1:$port"
}

stop() {
    local file
    for file in "$folder"/run/client.rgw.pid "$folder"/run/mgr.x.pid "$folder"/run/osd.*.pid "$folder"/run/mon.a.pid; do
        [ -f "$file" ] || continue
        kill -KILL "$(cat "$file")" 2>/dev/null || true
        rm -f "$file"
    done
}

case $verb in
    start) start "${3:?a port}" ;;
    stop) stop ;;
    *) echo "usage: ceph.sh start DIR PORT | stop DIR" >&2; exit 2 ;;
esac

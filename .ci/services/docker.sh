#!/bin/bash
# A separate Docker engine for tests: own socket, own data, no bridge, no firewall rules, isolated from the machine's engine.
# It has one image, `executions-test`, with shell, core programs, awk and perl of this machine, built without a registry.
# usage: docker.sh start DIR     prints its DOCKER_HOST; DIR should be empty
#        docker.sh stop DIR      ends the engine that start launched in DIR, ends its containers, and removes its mounts
# Needs root or sudo.
set -euo pipefail
verb=${1:?start or stop} folder=${2:?a folder}
mkdir -p "$folder"
folder=$(readlink -f "$folder")

as_root() { if [ "$(id --user)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

start() {
    # A socket path has at most 107 characters; a CI folder may exceed that.
    local sockets
    sockets=$(mktemp --directory /tmp/docker.XXXXXX)
    echo "$sockets" > "$folder/sockets"
    trap 'tail --lines=20 "$folder/dockerd.log" >&2; stop' EXIT # removed once the engine works
    local flags=(
        --host="unix://$sockets/s" --data-root="$folder/data" --exec-root="$sockets/x" --pidfile="$folder/dockerd.pid"
        --bridge=none --iptables=false --ip6tables=false --ip-forward=false --ip-masq=false --userland-proxy=false
        --group="$(id --group --name)" --log-level=warn
    )
    # Kubernetes gives its pods a negative oom_score_adj. If root may not set a negative value, no pod would start: use 0 instead.
    if ! as_root bash -c 'echo -1 >/proc/self/oom_score_adj' 2>/dev/null; then
        clamped_runtime
        flags+=(--add-runtime="clamped=$folder/runc-clamped" --default-runtime=clamped)
    fi
    as_root setsid nohup dockerd "${flags[@]}" </dev/null >"$folder/dockerd.log" 2>&1 &
    export DOCKER_HOST=unix://$sockets/s
    for _ in $(seq 600); do
        if docker version >/dev/null 2>&1; then
            image | docker import --change 'ENV PATH=/usr/bin:/bin' - executions-test >/dev/null
            trap - EXIT
            echo "$DOCKER_HOST"
            return
        fi
        sleep 0.1
    done
    exit 1
}

clamped_runtime() {
    cat >"$folder/runc-clamped" <<'SH'
#!/bin/bash
for argument; do
    case $previous in --bundle | -b) config=$argument/config.json ;; esac
    previous=$argument
done
[ ! -f "$config" ] || sed --in-place 's/"oomScoreAdj":-[0-9]*/"oomScoreAdj":0/' "$config"
exec runc "$@"
SH
    chmod 755 "$folder/runc-clamped"
}

# Write the files of an image as a tar: each program with its shared libraries.
image() {
    local root=$folder/image name path library
    mkdir -p "$root"/{usr/bin,usr/lib,usr/lib64,tmp,etc,proc,sys,dev,var/tmp}
    chmod 1777 "$root/tmp" "$root/var/tmp"
    ln -sfn usr/bin "$root/bin"; ln -sfn usr/lib "$root/lib"; ln -sfn usr/lib64 "$root/lib64"
    printf 'root:x:0:0:root:/:/bin/sh\nsomebody:x:1234:1234::/:/bin/sh\n' > "$root/etc/passwd"
    printf 'root:x:0:\nsomebody:x:1234:\n' > "$root/etc/group"
    for name in dash awk basename cat chmod cp cut date dd dirname env expr find grep head hostname id ln ls mkdir mktemp mv \
        nproc od perl printenv rm sed seq setsid sha256sum sleep sort stat tail tar tee touch tr uname uniq wc; do
        path=$(readlink -f "$(command -v "$name")")
        cp "$path" "$root/usr/bin/$name"
        while read -r library; do
            mkdir -p "$root/$(dirname "$library")"
            cp --dereference "$library" "$root/$library"
        done < <(ldd "$path" | grep --only-matching '/[^ ]*lib[^ ]*')
    done
    ln -sfn dash "$root/usr/bin/sh"
    perl -e 'print "$_\n" for grep { -d } @INC' | grep perl-base | while read -r path; do
        mkdir -p "$root$(dirname "$path")"
        cp --recursive "$path" "$root$path"
    done
    tar --create --directory="$root" .
}

stop() {
    local sockets pid
    [ -f "$folder/sockets" ] || return 0
    sockets=$(cat "$folder/sockets")
    if [ -f "$folder/dockerd.pid" ]; then
        pid=$(cat "$folder/dockerd.pid")
        DOCKER_HOST=unix://$sockets/s timeout 60 bash -c 'docker ps --all --quiet | xargs -r docker rm --force' >/dev/null 2>&1 || true
        as_root kill -TERM "$pid" 2>/dev/null || true
        for _ in $(seq 300); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
        as_root kill -KILL "$pid" 2>/dev/null || true
    fi
    { grep --only-matching " \($folder\|$sockets\)/[^ ]*" /proc/self/mounts || true; } | sort --reverse |
        while read -r mounted; do as_root umount --lazy "$mounted"; done
    as_root rm --recursive --force "$sockets" "$folder/data" "$folder/image" "$folder/sockets" \
        "$folder/dockerd.pid" "$folder/runc-clamped"
}

case $verb in
    start) start ;;
    stop) stop ;;
    *) echo "usage: docker.sh start DIR | stop DIR" >&2; exit 2 ;;
esac

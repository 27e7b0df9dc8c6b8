#!/bin/bash
# A Kubernetes cluster with one node for tests: API server, scheduler, controller manager and a kubelet, all on loopback.
# Its containers run on the Docker engine of docker.sh and use its images; a pod without hostNetwork has only loopback.
# usage: kubernetes.sh start DIR PORT    prints a kubeconfig (EXECUTIONS_TEST_KUBERNETES); DIR should be empty,
#                                        PORT..PORT+3 and PORT+10000 free. EXECUTIONS_TEST_DOCKER names the engine;
#                                        if it is unset, an engine is started in DIR/docker
#        kubernetes.sh stop DIR          ends all processes started in DIR, and the containers of the cluster
# The programs (1.20.2) are unpacked from KUBERNETES_PROGRAMS or ../shared/infrastructure (k8s-bin.tar.xz). If neither exists, they
# are built from Debian bookworm's source (8 minutes on 2 cores, 3.3 GB of disk) and cached in KUBERNETES_CACHE.
# Needs root or sudo, etcd, openssl, gcc and Debian's docker.io.
set -euo pipefail
verb=${1:?start or stop} folder=${2:?a folder}
mkdir -p "$folder"
folder=$(readlink -f "$folder")
services=$(dirname "$(readlink -f "$0")")
readonly version=v1.20.2 programs=${KUBERNETES_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/prefect-executions/kubernetes-1.20.2}
node=$(hostname -s)

as_root() { if [ "$(id --user)" -eq 0 ]; then "$@"; else sudo "$@"; fi; }

kubectl() { "$programs/kubectl" --kubeconfig="$folder/kubeconfig" "$@"; }

await() { # await SECONDS COMMAND…
    local until=$((SECONDS + $1))
    shift
    while ! "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || { echo "kubernetes.sh: gave up waiting for: $*" >&2; exit 1; }
        sleep 0.2
    done
}

have_programs() {
    [ -x "$programs/kubelet" ] && [ -x "$programs/kubectl" ] && [ "$("$programs/kube-apiserver" --version)" = "Kubernetes $version" ]
}

get_programs() {
    have_programs && return
    local packed=${KUBERNETES_PROGRAMS:-$services/../../../shared/infrastructure/k8s-bin.tar.xz}
    mkdir -p "$programs"
    if [ -f "$packed" ]; then
        tar --extract --file="$packed" --directory="$programs" --strip-components=1
    else
        build_programs
    fi
    have_programs
}

# Debian's source package contains the upstream tree with all dependencies, so Go downloads nothing.
build_programs() {
    local work=$folder/build
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends -o DPkg::Lock::Timeout=600 \
        golang-go dpkg-dev rsync jq make xz-utils >/dev/null
    # A separate apt configuration, so that the machine's sources stay unchanged.
    mkdir -p "$work"/{etc/apt.conf.d,etc/preferences.d,etc/sources.list.d,lists/partial,cache/archives/partial,state,go/src/k8s.io,home}
    : >"$work/state/status"
    cp /etc/apt/apt.conf.d/* "$work/etc/apt.conf.d/" 2>/dev/null || true
    local mirror
    mirror=$(sed --quiet 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources 2>/dev/null | head --lines=1)
    [ -n "$mirror" ] || mirror=$(awk '$1 == "deb" { for (i = 2; i < NF; i++) if ($i ~ /:\/\//) { print $i; exit } }' /etc/apt/sources.list)
    printf '%s [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s bookworm main\n' deb "$mirror" deb-src "$mirror" \
        >"$work/etc/sources.list"
    cat >"$work/apt.conf" <<CONF
Dir::Etc "$work/etc";
Dir::Etc::sourcelist "$work/etc/sources.list";
Dir::Etc::sourceparts "$work/etc/sources.list.d";
Dir::Etc::preferencesparts "$work/etc/preferences.d";
Dir::State "$work/state";
Dir::State::status "$work/state/status";
Dir::State::lists "$work/lists";
Dir::Cache "$work/cache";
CONF
    (
        export APT_CONFIG=$work/apt.conf
        cd "$work"
        apt-get update -qq
        apt-get source -qq --download-only kubernetes
        apt-get download -qq kubernetes-client
    ) >&2
    dpkg -x "$work"/kubernetes-client_*.deb "$work/client"
    cp "$work/client/usr/bin/kubectl" "$programs/"
    dpkg-source --no-check -x "$work"/kubernetes_*.dsc "$work/source" >/dev/null
    ln -sfn "$work/source" "$work/go/src/k8s.io/kubernetes"
    (
        cd "$work/go/src/k8s.io/kubernetes"
        export GOPATH=$work/go HOME=$work/home CGO_ENABLED=0 GOFLAGS=
        export KUBE_GIT_VERSION=$version KUBE_GIT_TREE_STATE=clean KUBE_GIT_COMMIT=debian KUBE_GIT_MAJOR=1 KUBE_GIT_MINOR=20
        make GOLDFLAGS='-s -w' WHAT='cmd/kube-apiserver cmd/kube-controller-manager cmd/kube-scheduler cmd/kubelet'
    ) >"$folder/build.log" 2>&1 || { tail --lines=20 "$folder/build.log" >&2; exit 1; }
    cp "$work"/source/_output/bin/kube{-apiserver,-controller-manager,-scheduler,let} "$programs/"
    chmod -R u+w "$work"
    rm -rf "$work"
}

make_certificates() {
    mkdir -p "$folder/pki"
    cd "$folder/pki"
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 3650 -subj /CN=tests 2>/dev/null
    certificate apiserver /CN=kube-apiserver 'IP:127.0.0.1,IP:10.96.0.1,DNS:localhost,DNS:kubernetes.default.svc'
    certificate admin /O=system:masters/CN=admin
    certificate controllers /CN=system:kube-controller-manager
    certificate scheduler /CN=system:kube-scheduler
    certificate node "/O=system:nodes/CN=system:node:$node" "IP:127.0.0.1,DNS:localhost,DNS:$node"
    openssl genrsa -out accounts.key 2048 2>/dev/null
    openssl rsa -in accounts.key -pubout -out accounts.pub 2>/dev/null
}

certificate() { # certificate NAME SUBJECT [NAMES]
    openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2" 2>/dev/null
    openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -out "$1.crt" -days 3650 -extfile <(
        printf 'keyUsage=digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n%s' "${3:+subjectAltName=$3}"
    ) 2>/dev/null
}

kubeconfig() { # kubeconfig CERTIFICATE PORT
    cat <<YAML
apiVersion: v1
kind: Config
clusters: [{name: tests, cluster: {server: "https://127.0.0.1:$2", certificate-authority: $folder/pki/ca.crt}}]
users: [{name: tests, user: {client-certificate: $folder/pki/$1.crt, client-key: $folder/pki/$1.key}}]
contexts: [{name: tests, context: {cluster: tests, user: tests, namespace: default}}]
current-context: tests
YAML
}

launch() { # launch NAME COMMAND…
    local name=$1
    shift
    # The program writes its own pid: the shell knows only the pid of its parent.
    as_root setsid nohup bash -c 'echo $$ >"$0"; exec "$@"' "$folder/$name.pid" "$@" </dev/null >"$folder/$name.log" 2>&1 &
}

start_control_plane() {
    local port=$1 name pki=$folder/pki
    for name in controllers scheduler node; do kubeconfig $name "$port" >"$folder/$name.kubeconfig"; done
    kubeconfig admin "$port" >"$folder/kubeconfig"
    launch etcd etcd --name=tests --data-dir="$folder/etcd" --unsafe-no-fsync \
        --listen-client-urls="http://127.0.0.1:$((port + 1))" --advertise-client-urls="http://127.0.0.1:$((port + 1))" \
        --listen-peer-urls="http://127.0.0.1:$((port + 2))" --initial-advertise-peer-urls="http://127.0.0.1:$((port + 2))" \
        --initial-cluster="tests=http://127.0.0.1:$((port + 2))"
    launch apiserver "$programs/kube-apiserver" --etcd-servers="http://127.0.0.1:$((port + 1))" \
        --bind-address=127.0.0.1 --advertise-address=127.0.0.1 --secure-port="$port" --authorization-mode=Node,RBAC \
        --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
        --service-account-key-file="$pki/accounts.pub" --service-account-signing-key-file="$pki/accounts.key" \
        --service-account-issuer=https://kubernetes.default.svc --service-cluster-ip-range=10.96.0.0/24 \
        --kubelet-client-certificate="$pki/admin.crt" --kubelet-client-key="$pki/admin.key" \
        --kubelet-preferred-address-types=Hostname --allow-privileged=true
    await 120 kubectl get --raw /readyz
    launch controllers "$programs/kube-controller-manager" --kubeconfig="$folder/controllers.kubeconfig" \
        --port=0 --secure-port=0 --leader-elect=false --use-service-account-credentials=true \
        --service-account-private-key-file="$pki/accounts.key" --root-ca-file="$pki/ca.crt"
    launch scheduler "$programs/kube-scheduler" --kubeconfig="$folder/scheduler.kubeconfig" \
        --port=0 --secure-port=0 --leader-elect=false
    await 120 kubectl get serviceaccount default
}

start_kubelet() {
    local port=$1
    pause_image
    mkdir -p "$folder/kubelet" "$folder/sysctl"
    cat >"$folder/kubelet.yaml" <<YAML
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
port: $((port + 3))
healthzBindAddress: 127.0.0.1
healthzPort: $((port + 10000))
readOnlyPort: 0
authentication: {x509: {clientCAFile: $folder/pki/ca.crt}, webhook: {enabled: false}, anonymous: {enabled: false}}
authorization: {mode: AlwaysAllow}
tlsCertFile: $folder/pki/node.crt
tlsPrivateKeyFile: $folder/pki/node.key
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failSwapOn: false
makeIPTablesUtilChains: false
hairpinMode: none
resolvConf: /etc/resolv.conf
imageGCHighThresholdPercent: 100
evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
syncFrequency: 5s
YAML
    # The Docker engine must see the kubelet's mounts for pods.
    as_root mount --bind "$folder/kubelet" "$folder/kubelet"
    as_root mount --make-shared "$folder/kubelet"
    # The kubelet insists on writing six kernel settings. It writes to bind-mounted files instead, so the machine's settings stay unchanged.
    cat >"$folder/kubelet.sh" <<SH
set -eu
mount --make-rprivate /proc
for setting in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \\
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$folder/sysctl/\${setting##*/}
    echo "\${setting#*=}" >"\$file"
    mount --bind "\$file" "/proc/sys/\${setting%%=*}"
done
exec "$programs/kubelet" --config="$folder/kubelet.yaml" --kubeconfig="$folder/node.kubeconfig" --root-dir="$folder/kubelet" \\
    --cert-dir="$folder/kubelet/pki" --hostname-override=$node --container-runtime=docker --docker-endpoint=$DOCKER_HOST \\
    --pod-infra-container-image=executions-pause:1 --network-plugin=
SH
    launch kubelet unshare --mount --propagation unchanged bash "$folder/kubelet.sh"
    await 120 curl --silent --fail "http://127.0.0.1:$((port + 10000))/healthz"
    await 120 kubectl wait --for=condition=Ready --timeout=1s "node/$node"
}

# The pause image holds a pod's namespaces: a program that only waits.
pause_image() {
    docker image inspect executions-pause:1 >/dev/null 2>&1 && return
    mkdir -p "$folder/pause"
    gcc -O1 -static -s -x c -o "$folder/pause/pause" - <<'C'
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>
static void leave(int number) { _exit(0); }
static void reap(int number) { while (waitpid(-1, 0, WNOHANG) > 0); }
int main(void) { signal(SIGTERM, leave); signal(SIGINT, leave); signal(SIGCHLD, reap); for (;;) pause(); }
C
    tar --create --directory="$folder/pause" pause | docker import --change 'ENTRYPOINT ["/pause"]' - executions-pause:1 >/dev/null
}

start() {
    local port=$1
    get_programs
    trap 'tail --lines=5 "$folder"/*.log >&2; stop' EXIT # removed once the cluster works
    export DOCKER_HOST=${EXECUTIONS_TEST_DOCKER:-}
    [ -n "$DOCKER_HOST" ] || DOCKER_HOST=$("$services/docker.sh" start "$folder/docker")
    echo "$DOCKER_HOST" >"$folder/engine"
    make_certificates
    cd "$folder"
    start_control_plane "$port"
    start_kubelet "$port"
    trap - EXIT
    echo "$folder/kubeconfig"
}

end() { # end NAME
    local pid
    [ -f "$folder/$1.pid" ] || return 0
    pid=$(cat "$folder/$1.pid")
    as_root kill -TERM "$pid" 2>/dev/null || true
    for _ in $(seq 100); do [ -d "/proc/$pid" ] || break; sleep 0.1; done
    as_root kill -KILL "$pid" 2>/dev/null || true
    as_root rm -f "$folder/$1.pid"
}

stop() {
    local name
    for name in kubelet scheduler controllers apiserver etcd; do end $name; done
    if [ -f "$folder/engine" ]; then
        DOCKER_HOST=$(cat "$folder/engine") timeout 60 \
            bash -c 'docker ps --all --quiet --filter label=io.kubernetes.pod.name | xargs -r docker rm --force' >/dev/null 2>&1 || true
    fi
    [ ! -d "$folder/docker" ] || "$services/docker.sh" stop "$folder/docker"
    { grep --only-matching " $folder/kubelet[^ ]*" /proc/self/mounts || true; } | sort --reverse |
        while read -r mounted; do as_root umount --lazy "$mounted"; done
    as_root rm -rf "$folder"/{etcd,kubelet,kubelet.sh,kubelet.yaml,sysctl,pause,engine,kubeconfig}
}

case $verb in
    start) start "${3:?a port}" ;;
    stop) stop ;;
    *) echo "usage: kubernetes.sh start DIR PORT | stop DIR" >&2; exit 2 ;;
esac

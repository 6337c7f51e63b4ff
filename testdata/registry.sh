# A real registry (Debian's package docker-registry) on the loopback interface. Sourced.
#
#   registry_start STORAGE LOG     starts one on a free port, sets registry_port and registry_pid
#   registry_push OCI TAG NAME     copies an image of an OCI layout to it, bytes and digests unchanged
#   registry_stop                  ends the one that was started

registry_start() {
    mkdir -p "$1"
    _try=0
    while :; do
        registry_port=$(shuf -i 20000-32000 -n 1)
        _config=$(mktemp)
        cat >"$_config" <<CONFIG
version: 0.1
log: {level: warn, accesslog: {disabled: false}}
storage: {filesystem: {rootdirectory: "$1"}, cache: {blobdescriptor: inmemory}, delete: {enabled: true}}
http: {addr: "127.0.0.1:$registry_port"}
CONFIG
        OTEL_TRACES_EXPORTER=none docker-registry serve "$_config" >"$2" 2>&1 9>&- &
        registry_pid=$!
        _wait=0
        while [ "$_wait" -lt 100 ] && kill -0 "$registry_pid" 2>/dev/null; do
            if grep -q 'listening on' "$2" || registry_answers; then
                rm -f "$_config"
                return 0
            fi
            _wait=$((_wait + 1))
            sleep 0.1
        done
        kill "$registry_pid" 2>/dev/null || :
        rm -f "$_config"
        _try=$((_try + 1))
        [ "$_try" -lt 5 ] || { echo "registry.sh: docker-registry does not start; see $2" >&2; return 1; }
    done
}

# Somebody listens on registry_port (state 0A in the kernel's table)
registry_answers() {
    grep -q "^ *[0-9]*: 0100007F:$(printf '%04X' "$registry_port") 00000000:0000 0A" /proc/net/tcp
}

registry_push() {
    skopeo copy --quiet --insecure-policy --preserve-digests --dest-tls-verify=false \
        "oci:$1:$2" "docker://127.0.0.1:$registry_port/$3"
}

registry_stop() {
    [ -z "${registry_pid:-}" ] || { kill "$registry_pid" 2>/dev/null || :; wait "$registry_pid" 2>/dev/null || :; }
    registry_pid=
}

# Functions that make an OCI image layout out of tar files with what every Debian machine has: tar, gzip (or zstd),
# sha256sum. Sourced by examples/demo.sh, testdata/os-image.sh and testdata/bench.sh; needs neither root nor network.
#
#   oci_init DIR                          an empty layout in DIR
#   oci_image DIR TAG HOW CREATED VERSION TAR...
#                                         image of these layers, compressed with HOW (none|gzip|zstd), tagged TAG;
#                                         blobs that DIR has already are left as they are
#   oci_media_prefix                      set to "docker" for Docker v2s2 media types instead of OCI's
#
# The same tars give the same digests: nothing here reads a clock, and gzip stores no name and no time.

oci_arch() {
    case "$(uname -m)" in
        x86_64) echo amd64 ;;
        aarch64) echo arm64 ;;
        riscv64) echo riscv64 ;;
        *) uname -m ;;
    esac
}

oci_init() {
    mkdir -p "$1/blobs/sha256"
    printf '{"imageLayoutVersion":"1.0.0"}' >"$1/oci-layout"
    [ -f "$1/index.json" ] || printf '{"schemaVersion":2,"manifests":[]}' >"$1/index.json"
}

# FILE -> its sha256 in hex
oci_sha256() {
    sha256sum <"$1" | cut -d' ' -f1
}

# DIR FILE -> the digest's hex; FILE becomes a blob of DIR
oci_take_blob() {
    _hex=$(oci_sha256 "$2")
    mv -f "$2" "$1/blobs/sha256/$_hex"
    echo "$_hex"
}

# DIR TAR HOW -> hex of the compressed blob
oci_compress() {
    _tmp="$1/.layer.$$"
    case "$3" in
        none) cp "$2" "$_tmp" ;;
        gzip) gzip -n -c "$2" >"$_tmp" ;;
        zstd) zstd -q -3 -T0 -c "$2" >"$_tmp" ;;
        *) echo "oci.sh: no compression called '$3' (none, gzip, zstd)" >&2; return 1 ;;
    esac
    oci_take_blob "$1" "$_tmp"
}

oci_image() {
    _dir=$1 _tag=$2 _how=$3 _created=$4 _version=$5
    shift 5
    case "$_how" in none) _suffix= ;; *) _suffix="+$_how" ;; esac
    if [ "${oci_media_prefix:-oci}" = docker ]; then
        _m=application/vnd.docker.distribution.manifest.v2+json
        _c=application/vnd.docker.container.image.v1+json
        _l=application/vnd.docker.image.rootfs.diff.tar.gzip
        [ "$_how" = gzip ] || { echo "oci.sh: Docker's media types know gzip only" >&2; return 1; }
    else
        _m=application/vnd.oci.image.manifest.v1+json
        _c=application/vnd.oci.image.config.v1+json
        _l=application/vnd.oci.image.layer.v1.tar$_suffix
    fi
    _diff_ids= _layers= _history=
    for _tar in "$@"; do
        _blob=$(oci_compress "$_dir" "$_tar" "$_how") || return 1
        _size=$(stat -c %s "$_dir/blobs/sha256/$_blob")
        _diff_ids="$_diff_ids,\"sha256:$(oci_sha256 "$_tar")\""
        _layers="$_layers,{\"mediaType\":\"$_l\",\"digest\":\"sha256:$_blob\",\"size\":$_size}"
        _history="$_history,{\"created\":\"$_created\",\"created_by\":\"$(basename "$_tar" .tar)\"}"
    done
    cat >"$_dir/.config.$$" <<CONFIG
{"created":"$_created","architecture":"$(oci_arch)","os":"linux","config":{"Labels":{"containers.bootc":"1","org.opencontainers.image.version":"$_version"}},"rootfs":{"type":"layers","diff_ids":[${_diff_ids#,}]},"history":[${_history#,}]}
CONFIG
    _size=$(stat -c %s "$_dir/.config.$$")
    _hex=$(oci_take_blob "$_dir" "$_dir/.config.$$")
    cat >"$_dir/.manifest.$$" <<MANIFEST
{"schemaVersion":2,"mediaType":"$_m","config":{"mediaType":"$_c","digest":"sha256:$_hex","size":$_size},"layers":[${_layers#,}],"annotations":{"org.opencontainers.image.version":"$_version"}}
MANIFEST
    _size=$(stat -c %s "$_dir/.manifest.$$")
    _hex=$(oci_take_blob "$_dir" "$_dir/.manifest.$$")
    oci_tag "$_dir" "$_tag" "$_m" "$_hex" "$_size"
}

# DIR TAG MEDIATYPE HEX SIZE: TAG now names this manifest
oci_tag() {
    _new="{\"mediaType\":\"$3\",\"digest\":\"sha256:$4\",\"size\":$5,\"platform\":{\"architecture\":\"$(oci_arch)\",\"os\":\"linux\"},\"annotations\":{\"org.opencontainers.image.ref.name\":\"$2\"}}"
    _old=$(sed -e 's/^.*"manifests":\[//' -e 's/\]}$//' "$1/index.json" \
        | sed -e 's/}},{"mediaType"/}}\n{"mediaType"/g' \
        | grep -v -F "\"org.opencontainers.image.ref.name\":\"$2\"}" | tr '\n' ',' | sed -e 's/,*$//')
    printf '{"schemaVersion":2,"manifests":[%s%s]}' "${_old:+$_old,}" "$_new" >"$1/.index.$$"
    mv -f "$1/.index.$$" "$1/index.json"
}

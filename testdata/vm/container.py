"""The image that examples/debian-13/Containerfile makes, by the real podman of Debian 13 (testdata/podman.sh).

What it is FROM, Debian's own container image, cannot be fetched here: mmdebstrap makes one like it. All else is as the recipe
has it. Made again where the recipe or the program changed.
"""

import pathlib
import resource
import shutil
import subprocess

import image

PODMAN = image.REPO / "testdata" / "podman.sh"
FROM = "docker.io/library/debian:13-slim"
# What the recipe copies.
CONTEXT = ["Makefile", "bootloader/initramfs", "cli/systemd", "examples/debian-13"]
BUILD = """
    cp {folder}/resolv.conf {folder}/hosts /etc/
    printf '[storage]\\ndriver = "overlay"\\ngraphroot = "/var/lib/containers/storage"\\nrunroot = "/run/containers"\\n' >/run/storage.conf
    printf '[containers]\\nnetns = "host"\\n[engine]\\ncgroup_manager = "cgroupfs"\\n' >/run/containers.conf
    export CONTAINERS_STORAGE_CONF=/run/storage.conf CONTAINERS_CONF=/run/containers.conf
    podman import --quiet {folder}/debian.tar {source} >/dev/null
    podman build --isolation=chroot --network=host {limits} -f {context}/examples/debian-13/Containerfile -t localhost/os:13 {context}
    podman push --quiet localhost/os:13 oci:{folder}/oci:13
"""


def base(work):
    """Its layout, with the tag `13`."""
    folder = work / "container"
    mark, wanted = folder / "key", image.key("container", PODMAN.read_bytes(), BUILD)
    if mark.exists() and mark.read_text() == wanted:
        return image.Layout(folder / "oci")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    # The folder that `make test` has, too.
    root = image.REPO / "target" / "podman-root"
    root.parent.mkdir(exist_ok=True)
    subprocess.run(["sh", PODMAN, "make", root], check=True)
    _debian(folder)
    context = folder / "context"
    for path in CONTEXT:
        whole = shutil.copytree if (image.REPO / path).is_dir() else shutil.copy2
        (context / path).parent.mkdir(parents=True, exist_ok=True)
        whole(image.REPO / path, context / path)
    built = image.program()
    (context / "target/release").mkdir(parents=True)
    for name in (built, built.with_name("cfs-update-root")):
        shutil.copy2(name, context / "target/release")
    for name in ("resolv.conf", "hosts"):
        shutil.copy2(f"/etc/{name}", folder / name)
    script = BUILD.format(folder=folder, context=context, source=FROM, limits=_limits())
    with open(folder / "log", "wb") as log:
        done = subprocess.run(["sh", PODMAN, "run", root, folder, script], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    if done.returncode != 0:
        raise RuntimeError("podman build: " + (folder / "log").read_text(errors="replace")[-3000:])
    mark.write_text(wanted)
    return image.Layout(folder / "oci")


def _debian(folder):
    """Debian 13 with apt, without documentation, as a tar."""
    keys = folder / "keyring"
    keys.mkdir()
    for ring in pathlib.Path("/usr/share/keyrings").glob("debian-archive-*.gpg"):
        shutil.copy2(ring, keys)
    listed = subprocess.run(["apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages"],
                            stdout=subprocess.PIPE, text=True, check=True).stdout
    mirror = sorted(line.removeprefix("Debian ") for line in listed.splitlines() if line.startswith("Debian "))[:1]
    subprocess.run(["mmdebstrap", "--quiet", "--mode=root", "--variant=apt", f"--keyring={keys}",
                    "--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
                    "--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
                    "trixie", folder / "debian.tar", *mirror], check=True)


def _limits():
    """podman asks for more than this machine's own limits, which may not be allowed."""
    limits = []
    for name, which in (("nofile", resource.RLIMIT_NOFILE), ("nproc", resource.RLIMIT_NPROC)):
        hard = resource.getrlimit(which)[1]
        most = 1 << 20
        count = most if hard == resource.RLIM_INFINITY else min(hard, most)
        limits.append(f"--ulimit {name}={count}:{count}")
    return " ".join(limits)

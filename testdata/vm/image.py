"""The images under test: made once by examples/debian-13, then extended by layers that are cheap to make and to pull.

Invariant: what is in the folder of a key was made from exactly that recipe and that program; a half-made one has no key.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import tarfile
import time

REPO = pathlib.Path(__file__).resolve().parents[2]
RECIPE = REPO / "examples" / "debian-13"
# By this run: the image stays the same to its end, whatever is built meanwhile.
MADE = set()


def program():
    """The program under test: CFS_PROGRAM, or the debug build."""
    built = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPO / "target")) / "debug" / "cfs-update"
    path = pathlib.Path(os.environ.get("CFS_PROGRAM") or built).resolve()
    if not path.exists():
        raise SystemExit(f"there is no {path}; build it, or set CFS_PROGRAM")
    return path


def key(*more):
    """A digest of everything that the base image is made of."""
    digest = hashlib.sha256(repr(more).encode())
    built = program()
    files = [built, built.with_name("cfs-update-root"), REPO / "testdata" / "oci.sh", REPO / "Makefile"]
    for folder in (RECIPE, REPO / "bootloader" / "initramfs", REPO / "cli" / "systemd"):
        files += sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        if path.exists():
            digest.update(str(path.name).encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:32]


def base(work, packages="strace fsverity"):
    """The layout of the base image below `work`, made if it is not there."""
    layout = pathlib.Path(work) / "base"
    if layout in MADE:
        return Layout(layout)
    wanted = key(packages)
    mark = pathlib.Path(work) / "base.key"
    if mark.exists() and mark.read_text() == wanted:
        MADE.add(layout)
        return Layout(layout)
    mark.unlink(missing_ok=True)
    shutil.rmtree(layout, ignore_errors=True)
    env = dict(os.environ, CFS_PROGRAM=str(program()), EXTRA_PACKAGES=packages)
    subprocess.run([RECIPE / "build.sh", layout], env=env, check=True)
    mark.write_text(wanted)
    MADE.add(layout)
    return Layout(layout)


def tar_layer(entries):
    """A tar file's bytes of {path: text, bytes, a link as ("->", target), or None for a folder}; `path!` is executable."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for path, content in entries.items():
            info = tarfile.TarInfo("./" + path.rstrip("!"))
            info.mode, info.mtime = (0o755 if path.endswith("!") else 0o644), 1_767_225_600
            if content is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(info)
            elif isinstance(content, tuple):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, content[1], 0o777
                tar.addfile(info)
            else:
                data = content.encode() if isinstance(content, str) else content
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


class Layout:
    """An OCI image layout in a folder."""

    def __init__(self, path):
        self.path = pathlib.Path(path)
        self.blobs = self.path / "blobs" / "sha256"

    @classmethod
    def new(cls, path):
        """An empty one."""
        shutil.rmtree(path, ignore_errors=True)
        layout = cls(path)
        layout.blobs.mkdir(parents=True)
        (layout.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (layout.path / "index.json").write_text('{"schemaVersion":2,"manifests":[]}')
        return layout

    def manifest(self, tag):
        """Manifest and config of a tag."""
        index = json.loads((self.path / "index.json").read_text())
        found = [m for m in index["manifests"]
                 if m["annotations"]["org.opencontainers.image.ref.name"] == tag]
        manifest = json.loads(self._blob(found[-1]["digest"]).read_text())
        return manifest, json.loads(self._blob(manifest["config"]["digest"]).read_text())

    def tag(self, name, layers, version, created):
        """A new image: layers of this layout by descriptor and diff_id, or tar bytes."""
        descriptors, diff_ids = [], []
        for layer in layers:
            if isinstance(layer, bytes):
                layer = self.put_layer(layer)
            descriptors.append(layer[0])
            diff_ids.append(layer[1])
        labels = {"containers.bootc": "1", "org.opencontainers.image.version": version}
        config = {"created": created, "architecture": "amd64", "os": "linux", "config": {"Labels": labels},
                  "rootfs": {"type": "layers", "diff_ids": diff_ids}}
        config = self._put(_json(config), "application/vnd.oci.image.config.v1+json")
        kind = "application/vnd.oci.image.manifest.v1+json"
        manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors}
        descriptor = self._put(_json(manifest), kind)
        descriptor["annotations"] = {"org.opencontainers.image.ref.name": name}
        path = self.path / "index.json"
        index = json.loads(path.read_text())
        index["manifests"] = [m for m in index["manifests"] if m["annotations"] != descriptor["annotations"]]
        index["manifests"].append(descriptor)
        path.write_bytes(_json(index))
        return descriptor["digest"]

    def put_layer(self, data):
        """Stores a tar; gives what `tag` takes."""
        return self._put(data, "application/vnd.oci.image.layer.v1.tar"), _sha256(data)

    def layers(self, tag):
        """The layers of a tag, for `tag` of the same layout or of one that took them."""
        manifest, config = self.manifest(tag)
        return list(zip(manifest["layers"], config["rootfs"]["diff_ids"]))

    def take(self, other, layers):
        """Links the blobs of another layout's layers into this one."""
        for descriptor, _ in layers:
            name = descriptor["digest"].removeprefix("sha256:")
            if not (self.blobs / name).exists():
                os.link(other.blobs / name, self.blobs / name)

    def unpack(self, tag, to):
        """Extracts the layers with GNU tar, for a disk image and as the measure of what is mounted."""
        pathlib.Path(to).mkdir(parents=True)
        times = {}
        for descriptor, _ in self.layers(tag):
            blob = self._blob(descriptor["digest"])
            how = ["zstd", "-dc"] if descriptor["mediaType"].endswith("zstd") else ["cat"]
            plain = pathlib.Path(f"{to}.tar")
            with open(plain, "wb") as out:
                subprocess.run([*how, blob], check=True, stdout=out)
            subprocess.run(["tar", "-C", to, "--numeric-owner", "-xpf", plain], check=True)
            with tarfile.open(plain) as tar:
                times.update({entry.name: entry.mtime for entry in tar if entry.isdir()})
            plain.unlink()
        # A later layer's files change the times of folders that it does not mention.
        for name, mtime in times.items():
            os.utime(pathlib.Path(to) / name, (mtime, mtime))

    def _blob(self, digest):
        return self.blobs / digest.removeprefix("sha256:")

    def _put(self, data, media_type):
        digest = _sha256(data)
        self._blob(digest).write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def created(day):
    """A creation time: later images are newer than earlier ones."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(1_767_225_600 + 86400 * day))


def _sha256(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def _json(value):
    return json.dumps(value, separators=(",", ":")).encode()

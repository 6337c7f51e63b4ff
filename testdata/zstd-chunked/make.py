#!/usr/bin/python3
"""Makes the two images of this folder: an OS in one zstd:chunked layer, and an update of it in which two files differ.

    make.py skopeo copy --insecure-policy        # the program that compresses, with its first arguments

The layers that are here were made by skopeo 1.18.0 (Debian 13), the first in Debian that writes the tar-split. They are
kept so that what podman's tools write can be tested where those tools are not: cli/tests/e2e/chunked.rs.
"""
import hashlib, io, json, os, random, shutil, subprocess, sys, tarfile, tempfile

here = os.path.dirname(os.path.abspath(__file__))


def tree(version):
    noise = random.Random(1)
    files = {"usr/lib/os-release": f'NAME=Test\nID=test\nVERSION_ID={version}\nPRETTY_NAME="Test {version}"\n'.encode(),
             "etc/hostname": b"test\n",
             "usr/lib/modules/6.1.0/vmlinuz": noise.randbytes(5000),
             "usr/lib/modules/6.1.0/initramfs.img": noise.randbytes(7000)}
    for n in range(40):
        files[f"usr/share/f{n}"] = noise.randbytes(noise.choice([20, 64, 65, 700, 3000]))
    files["usr/lib/holes"] = noise.randbytes(9000) + bytes(30000) + noise.randbytes(11000)
    if version == 2:
        files["usr/share/f7"] = noise.randbytes(3000)
        files["usr/lib/holes"] = files["usr/lib/holes"][:-1] + b"!"
    return files


def tar(version):
    out = io.BytesIO()
    archive = tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT)
    folders = ["boot", "dev", "etc", "proc", "run", "sys", "sysroot", "tmp", "usr", "usr/lib", "usr/lib/modules",
               "usr/lib/modules/6.1.0", "usr/share", "var"]

    def add(name, kind, content=b"", link=""):
        info = tarfile.TarInfo(name)
        info.type, info.size, info.linkname, info.mtime = kind, len(content), link, 1767225600.25
        info.mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
        archive.addfile(info, io.BytesIO(content))

    for folder in folders:
        add(folder, tarfile.DIRTYPE)
    for name, content in tree(version).items():
        add(name, tarfile.REGTYPE, content)
    add("etc/os-release", tarfile.SYMTYPE, link="../usr/lib/os-release")
    add("usr/share/hard", tarfile.LNKTYPE, link="usr/share/f1")
    add("usr/share/empty", tarfile.REGTYPE)
    add("usr/share/ä", tarfile.REGTYPE, "ü".encode())
    archive.close()
    return out.getvalue()


def layout(folder, layer, created):
    def put(data):
        digest = hashlib.sha256(data).hexdigest()
        os.makedirs(f"{folder}/blobs/sha256", exist_ok=True)
        with open(f"{folder}/blobs/sha256/{digest}", "wb") as file:
            file.write(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    kind = "application/vnd.oci.image"
    described = put(layer)
    config = {"architecture": "amd64", "os": "linux", "created": created, "config": {"Labels": {"containers.bootc": "1"}},
              "rootfs": {"type": "layers", "diff_ids": [described["digest"]]}}
    manifest = {"schemaVersion": 2, "mediaType": f"{kind}.manifest.v1+json",
                "config": {"mediaType": f"{kind}.config.v1+json", **put(json.dumps(config).encode())},
                "layers": [{"mediaType": f"{kind}.layer.v1.tar", **described}]}
    entry = {"mediaType": f"{kind}.manifest.v1+json", **put(json.dumps(manifest).encode()),
             "annotations": {"org.opencontainers.image.ref.name": "os"}}
    for name, content in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", {"schemaVersion": 2, "manifests": [entry]})):
        with open(f"{folder}/{name}", "w") as file:
            json.dump(content, file)


for version in (1, 2):
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as work:
        layout(f"{work}/plain", tar(version), f"2026-01-0{version}T00:00:00Z")
        target = f"{here}/v{version}"
        shutil.rmtree(target, ignore_errors=True)
        subprocess.run([*sys.argv[1:], "--dest-compress-format", "zstd:chunked", f"oci:{work}/plain:os",
                        f"oci:{work}/made:os"], check=True)
        shutil.copytree(f"{work}/made", target)

#!/usr/bin/env python3
"""Builds the images of the demo's applications, in one archive for "ctr images import", without a registry.

    build.py --out FILE.tar      after make apps has built the jars and the Go program

The Java applications share the layer of the runtime, which is Debian's openjdk-17-jre-headless without desktop and
tools. Each jar is unpacked, and a class data archive beside it halves its start time. Such an archive identifies the
runtime and the jars by size and modification time, so all these files get the time 0, also in the layers.
"""

import argparse
import fnmatch
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "image"))

from build import CLONE, LOADERS, MACHINES, NSSWITCH, Missing, output_of, pack, unpack_packages  # noqa: E402 - shares the builder of the pod's image

SUITE = "bookworm"
PACKAGES = ("libc6", "libgcc-s1", "libstdc++6", "openjdk-17-jre-headless", "zlib1g")
LIBRARIES = ("libc.so.6", "libgcc_s.so.1", "libm.so.6", "libstdc++.so.6", "libz.so.1")
LEFT_OUT = (
    "ct.sym",
    "jfr",
    "src.zip",
    "libawt*",
    "libjawt*",
    "libfontmanager*",
    "libsplashscreen*",
    "*psfont*",
)
OPTIONS = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m")
JAVA_APPS = ("discovery", "config-server", "ratings")

JAVA_RECIPE = """\
FROM scratch
COPY jre /
COPY {name} /app
ENTRYPOINT ["/jre/bin/java", "-XX:SharedArchiveFile=app.jsa", {options}, "-jar", "app.jar"]
USER 65532:65532
WORKDIR /app
"""
GO_RECIPE = """\
FROM scratch
COPY static-server /
ENTRYPOINT ["/static-server"]
USER 65532:65532
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="build.py", description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    folder = CLONE / "build" / "apps"
    try:
        arch = output_of("dpkg", "--print-architecture")
        shutil.rmtree(folder, ignore_errors=True)
        java = runtime(arch, folder / "jre")
        install(java, "discovery", folder / "discovery", env={})
        install(java, "config-server", folder / "config-server", env={})
        with config_server(java, folder / "config-server") as url:
            install(java, "ratings", folder / "ratings", env={"CONFIG_SERVER": url})
        (folder / "static-server").mkdir()
        shutil.copy(CLONE / "build" / "static-server", folder / "static-server")
        options = ", ".join(f'"{option}"' for option in OPTIONS)
        images = {
            f"pidone-{name}": (JAVA_RECIPE.format(name=name, options=options), folder) for name in JAVA_APPS
        }
        images["pidone-static-server"] = (GO_RECIPE, folder / "static-server")
        pack(arch, out, images, level=None)
    except Missing as missing:
        print(f"the images cannot be built: {missing}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as failed:
        print(f"{' '.join(map(str, failed.cmd[:3]))} ...: exit code {failed.returncode}", file=sys.stderr)
        return 1
    return 0


def runtime(arch: str, root: Path) -> Path:
    """Write the layer of the Java runtime into ``root``, and return the path of its java."""
    packages = unpack_packages(arch, PACKAGES, suite=SUITE, cache="openjdk-17")
    home = f"usr/lib/jvm/java-17-openjdk-{arch}"
    copy_files(packages, root, f"{home}/lib", f"{home}/conf")

    for name in ("usr/lib64", "tmp", "etc"):
        (root / name).mkdir(parents=True, exist_ok=True)
    for name in ("lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    (root / home / "bin").mkdir()
    (root / "jre").symlink_to(home)
    (root / "etc/nsswitch.conf").write_text(NSSWITCH)

    libraries = f"lib/{MACHINES[arch]}-linux-gnu"
    places = {f"{libraries}/{name}": f"{libraries}/{name}" for name in LIBRARIES}
    places |= {
        f"{home}/bin/java": f"{home}/bin/java",
        LOADERS[arch]: f"{libraries}/{Path(LOADERS[arch]).name}",
    }
    for target, source in places.items():
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(
            next(file for file in (packages / "usr" / source, packages / source) if file.exists()),
            root / target,
        )

    reset_times(root)
    java = root / "jre/bin/java"
    # as Debian's installation does
    subprocess.run([java, "-Xshare:dump"], check=True, stdout=subprocess.DEVNULL)
    return java


def copy_files(packages: Path, root: Path, *folders: str) -> None:
    """Copy folders, and the targets of links instead of links, because the runtime's links point into /etc."""
    for folder in folders:
        for path in sorted((packages / folder).rglob("*")):
            name = path.relative_to(packages)
            source = packages / os.readlink(path).removeprefix("/") if path.is_symlink() else path
            if source.is_file() and not any(
                fnmatch.fnmatch(part, left) for part in name.parts for left in LEFT_OUT
            ):
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, root / name)


def reset_times(root: Path) -> None:
    """Set the modification time of all files to 0."""
    for path in root.rglob("*"):
        os.utime(path, (0, 0), follow_symlinks=False)


def install(java: Path, name: str, folder: Path, *, env: Mapping[str, str]) -> None:
    """Unpack an application as app.jar, its libraries, and app.jsa, the archive of the classes of its start."""
    jar = HERE / name / "target" / f"{name}.jar"
    if not jar.exists():
        raise Missing(f"{jar.relative_to(CLONE)} is missing: make apps")
    extract = ["extract", "--destination", str(folder)]
    subprocess.run([java, "-Djarmode=tools", "-jar", str(jar), *extract], check=True)
    (folder / f"{name}.jar").rename(folder / "app.jar")
    reset_times(folder)
    archive = [
        "-XX:ArchiveClassesAtExit=app.jsa",
        "-Dspring.context.exit=onRefresh",
        "-Xlog:cds=off",
        "-Xlog:cds+dynamic=off",
    ]
    subprocess.run(
        [java, *archive, *OPTIONS, "-jar", "app.jar"],
        cwd=folder,
        env={**os.environ, **env, "SERVER_PORT": "0"},
        check=True,
        stdout=subprocess.DEVNULL,
    )


@contextmanager
def config_server(java: Path, folder: Path) -> Iterator[str]:
    """Run the config server, and yield its URL: without its answer the ratings do not start, and load no classes."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [java, "-XX:SharedArchiveFile=app.jsa", *OPTIONS, "-jar", "app.jar"]
    server = subprocess.Popen(command, cwd=folder, env={**os.environ, "SERVER_PORT": str(port)})
    try:
        yield f"http://127.0.0.1:{port}"  # the ratings retry until it answers
    finally:
        server.terminate()
        server.wait()


if __name__ == "__main__":
    sys.exit(main())

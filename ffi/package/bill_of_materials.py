"""What is inside libjrs or the `jrs` command: sbom.cdx.json (CycloneDX 1.5), SOUP.md (for IEC 62304) and the licence texts.

    python3 bill_of_materials.py FOLDER [PACKAGE [FEATURES]]     jrs-ffi if no package is named, which is libjrs

From `cargo tree`, `cargo metadata` and Cargo.lock: the crates that the package links on Linux, without tests, build scripts and
procedural macros. Nothing is fetched. The same sources give the same files.
"""

import json
import shutil
import subprocess
import sys
import uuid
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = sys.argv[2] if len(sys.argv) > 2 else "jrs-ffi"
FEATURES = sys.argv[3] if len(sys.argv) > 3 else ""
NAME = {"jrs-ffi": "libjrs"}.get(PACKAGE, PACKAGE)
TARGET = "x86_64-unknown-linux-gnu"


def metadata():
    command = ["cargo", "metadata", "--format-version=1", "--locked", f"--filter-platform={TARGET}"]
    return json.loads(subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE).stdout)


def chosen():
    """Names and versions of what PACKAGE links with these features: `cargo metadata` resolves those of the whole workspace."""
    command = ["cargo", "tree", "--locked", "-p", PACKAGE, "--features", FEATURES, "--target", TARGET, "--prefix", "none"]
    command += ["--edges", "no-dev,no-build,no-proc-macro", "--format", "{p}"]
    lines = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
    return {(name, version.removeprefix("v")) for name, version, *_ in (line.split() for line in lines if line)}


def linked(graph):
    """The packages that PACKAGE links, by id, and their dependencies."""
    wanted = chosen()
    packages = {p["id"]: p for p in graph["packages"]}
    nodes = {n["id"]: n for n in graph["resolve"]["nodes"]}
    is_linked = lambda p: (p["name"], p["version"]) in wanted
    start = next(p["id"] for p in graph["packages"] if p["name"] == PACKAGE)
    found, queue = {}, [start]
    while queue:
        package = queue.pop()
        if package in found:
            continue
        is_normal = lambda dep: any(kind["kind"] is None for kind in dep["dep_kinds"])
        needed = [d["pkg"] for d in nodes[package]["deps"] if is_normal(d) and is_linked(packages[d["pkg"]])]
        found[package] = sorted(needed)
        queue += needed
    return [packages[i] for i in sorted(found, key=lambda i: (packages[i]["name"], packages[i]["version"]))], found


def checksums():
    """SHA-256 of every crate's archive, by name and version, from Cargo.lock."""
    sums, entry = {}, {}
    for line in (ROOT / "Cargo.lock").read_text().splitlines():
        if line == "[[package]]":
            entry = {}
        elif " = " in line:
            key, value = line.split(" = ", 1)
            entry[key] = value.strip('"')
            if key == "checksum":
                sums[entry["name"], entry["version"]] = entry[key]
    return sums


def reference(package):
    return f"pkg:cargo/{package['name']}@{package['version']}"


def sbom(packages, dependencies, sums, rustc):
    by_id = {p["id"]: p for p in packages}

    def component(package):
        entry = {
            "type": "library",
            "bom-ref": reference(package),
            "name": package["name"],
            "version": package["version"],
            "description": package["description"] or "",
            "licenses": [{"expression": (package["license"] or "NOASSERTION").replace("/", " OR ")}],
            "purl": reference(package),
        }
        checksum = sums.get((package["name"], package["version"]))
        if checksum:
            entry["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        if package["repository"]:
            entry["externalReferences"] = [{"type": "vcs", "url": package["repository"]}]
        return entry

    own = next(p for p in packages if p["name"] == PACKAGE)
    main = {**component(own), "name": NAME}
    standard_library = {
        "type": "library",
        "bom-ref": "rust-std",
        "name": "rust standard library",
        "version": rustc,
        "licenses": [{"expression": "MIT OR Apache-2.0"}],
    }
    document = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {"component": main},
        "components": [component(p) for p in packages if p is not own] + [standard_library],
        "dependencies": [
            {"ref": reference(by_id[i]), "dependsOn": [reference(by_id[d]) for d in dependencies[i]]}
            for i in sorted(dependencies, key=lambda i: reference(by_id[i]))
        ],
    }
    # From the content, so that equal sources give equal files.
    serial = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(document, sort_keys=True))
    return {"bomFormat": "CycloneDX", "serialNumber": f"urn:uuid:{serial}", **document}


def soup(packages, sums, rustc):
    lines = [
        f"# SOUP in {NAME}",
        "",
        "Software of unknown provenance (IEC 62304, 8.1.2) that is linked into it. Known anomalies: the",
        "RustSec advisory database (`cargo deny check advisories` in the sources checks this list against it).",
        "",
        "| name | version | maker (repository) | licence | what it is for | SHA-256 of the source |",
        "|---|---|---|---|---|---|",
    ]
    for package in packages:
        if package["source"] is None:
            continue
        purpose = " ".join((package["description"] or "").split()).replace("|", "/")
        checksum = sums.get((package["name"], package["version"]), "")
        lines.append(
            f"| {package['name']} | {package['version']} | {package['repository'] or ''} | {package['license'] or ''} "
            f"| {purpose} | `{checksum}` |"
        )
    lines.append(
        f"| rust standard library | {rustc} | https://github.com/rust-lang/rust | MIT OR Apache-2.0 "
        "| standard library and compiler | |"
    )
    return "\n".join(lines) + "\n"


def copy_licences(packages, folder):
    for package in packages:
        if package["source"] is None:
            continue
        home = Path(package["manifest_path"]).parent
        texts = [f for f in home.iterdir() if f.is_file() and f.name.upper().startswith(("LICEN", "COPYING", "NOTICE"))]
        own = folder / f"{package['name']}-{package['version']}"
        own.mkdir(parents=True, exist_ok=True)
        for text in texts:
            shutil.copyfile(text, own / text.name)
        if not texts:
            (own / "LICENCE.txt").write_text(f"{package['license']} (the crate ships no text)\n")


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    packages, dependencies = linked(metadata())
    rustc = subprocess.run(["rustc", "--version"], check=True, stdout=subprocess.PIPE, text=True).stdout.split()[1]
    sums = checksums()
    (folder / "sbom.cdx.json").write_text(json.dumps(sbom(packages, dependencies, sums, rustc), indent=2) + "\n")
    (folder / "SOUP.md").write_text(soup(packages, sums, rustc))
    copy_licences(packages, folder / "licences")


if __name__ == "__main__":
    main()

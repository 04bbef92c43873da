"""Checks what is in the wheel and the source distribution of a folder.

    python tools/check_distribution.py dist

Needs the standard library only. Exits with 1 and a line for each fault.
"""

import pathlib
import re
import sys
import tarfile
import zipfile

PACKAGES = ("keras_linattn", "keras_linattn_cli")
LIMITS = {".whl": 1 << 20, ".gz": 4 << 20}  # bytes
IN_SOURCE = ("LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml")
IN_SOURCE += ("tests/conftest.py", "docs/mechanisms.md")


def faults_of_wheel(path):
    with zipfile.ZipFile(path) as wheel:
        names = wheel.namelist()
        (metadata,) = (x for x in names if x.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
        licences = [x for x in names if x.endswith("licenses/LICENSE")]
    for name in names:
        top = name.partition("/")[0]
        if top not in PACKAGES and not top.endswith(".dist-info"):
            yield f"{name} does not belong in the wheel"
        elif top in PACKAGES and not name.endswith((".py", "py.typed")):
            yield f"{name} is not Python code"
    for package in PACKAGES:
        if f"{package}/__init__.py" not in names:
            yield f"the package {package} is missing"
    if "keras_linattn/py.typed" not in names:
        yield "py.typed is missing: type checkers would ignore annotations"
    if len(licences) != 1:
        yield "the licence is missing"
    if "License-Expression: Apache-2.0" not in text:
        yield "the metadata do not name the licence Apache-2.0"
    links = re.findall(r"\]\((.+?)\)", text)  # of the README, which PyPI shows
    for link in links:
        if not link.startswith(("https://", "#")):
            yield f"the link {link} of the README is dead on PyPI"
    if any(".example/" in link for link in links):
        print("note: set the address of the site in pyproject.toml")


def faults_of_source(path):
    with tarfile.open(path) as source:
        names = source.getnames()
    top = names[0].partition("/")[0]
    for name in IN_SOURCE:
        if f"{top}/{name}" not in names:
            yield f"{name} is missing in the source distribution"
    for name in names:
        if any(part in name for part in ("/.venv", "/build/", "__pycache__")):
            yield f"{name} does not belong in the source distribution"


def main(folder):
    wheels, sources = (
        list(folder.glob(pattern)) for pattern in ("*.whl", "*.tar.gz")
    )
    faults = []
    if len(wheels) != 1 or len(sources) != 1:
        faults.append(f"{folder} must hold one wheel and one .tar.gz")
    for path in wheels + sources:
        size, limit = path.stat().st_size, LIMITS[path.suffix]
        print(f"{path.name}: {size / 1024:,.0f} KiB")
        if size > limit:
            faults.append(f"{path.name} has over {limit >> 10:,} KiB")
        check = faults_of_wheel if path in wheels else faults_of_source
        faults += [f"{path.name}: {fault}" for fault in check(path)]
    for fault in faults:
        print(fault, file=sys.stderr)
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(pathlib.Path(sys.argv[1])))

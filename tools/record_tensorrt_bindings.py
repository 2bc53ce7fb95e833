"""Record the names and signatures of NVIDIA's TensorRT Python bindings.

TensorRT's Python names come and go between releases, and no machine has all of them
installed. NVIDIA's bindings wheels are small (1.3 MB) and import without a GPU over stub
libraries, so this script asks them what they really have and writes one JSON file for each
version. `tests/aeseg_edge/backends/test_trt_names.py` holds the builder and the backend to what all
of them share. The wheels themselves are not redistributed.

Run it with a Python that NVIDIA has wheels for (3.10 to 3.12), gcc and PyPI at hand:

    python tools/record_tensorrt_bindings.py                # refreshes every recorded version
    python tools/record_tensorrt_bindings.py 11.5.0.1       # adds one
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

RECORDS = Path(__file__).resolve().parent.parent / "tests" / "tensorrt_record"
VERSIONS = ("10.3.0", "10.16.1.11", "11.4.0.106")

# The entry points that the bindings are linked against. None is called while the names are read.
STUB = """
#define STUB(name) void *name(void) { return 0; }
STUB(createInferBuilder_INTERNAL)
STUB(createInferRefitter_INTERNAL)
STUB(createInferRuntime_INTERNAL)
STUB(createNvOnnxParserRefitter_INTERNAL)
STUB(createNvOnnxParser_INTERNAL)
STUB(getBuilderPluginRegistry)
STUB(getNvOnnxParserVersion)
STUB(getPluginRegistry)
STUB(initLibNvInferPlugins)
"""
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")

# Graph layers and plugins are never built by hand here; leaving them out keeps a record small.
OMITTED = re.compile(r"I\w+Layer$|I?Plugin|.*Plugin|.*Attention|I?Dims|Permutation|.*Expr")

Signature = str
Record = dict[str, object]


def describe(module: object) -> Record:
    """Read names, kinds and signatures from the imported bindings.

    Args:
        module: The `tensorrt_bindings` module.

    Returns:
        {"version", "names": {name: {"kind": "class" | "enum" | "function", ...}}}, JSON-ready.
    """
    names: Record = {}
    for name, value in sorted(vars(module).items()):
        if name.startswith("_") or OMITTED.match(name):
            continue
        if inspect.isclass(value) and hasattr(value, "__members__"):
            values = {key: int(member) for key, member in value.__members__.items()}
            names[name] = {"kind": "enum", "values": values}
        elif inspect.isclass(value) and value.__module__.startswith("tensorrt_bindings"):
            names[name] = {"kind": "class", **_class(value)}
        elif callable(value) and not inspect.isclass(value):
            names[name] = {"kind": "function", "signatures": _signatures(name, value)}
    return {"version": module.__version__, "names": names}  # type: ignore[attr-defined]


def _class(value: type) -> Record:
    members: Record = {}
    for name in sorted(dir(value)):
        if name.startswith("_") and name != "__init__":
            continue
        member = inspect.getattr_static(value, name)
        if isinstance(member, property) or hasattr(member, "fget"):
            members[name] = {
                "kind": "property",
                "type": _result(_signatures(name, member.fget)),
                "writable": member.fset is not None,
            }
        elif inspect.isclass(getattr(value, name)):
            inner = getattr(value, name)
            values = {k: int(v) for k, v in getattr(inner, "__members__", {}).items()}
            members[name] = {"kind": "enum", "values": values}
        elif callable(getattr(value, name)):
            members[name] = {
                "kind": "method",
                "signatures": _signatures(name, getattr(value, name)),
            }
    return {"members": members}


def _signatures(name: str, value: object) -> list[Signature]:
    """Signatures from a pybind11 docstring ("name(self: T, a: int) -> R", or a numbered list)."""
    text = getattr(value, "__doc__", None) or ""
    found = [
        line
        for line in text.splitlines()
        if re.match(rf"(\d+\. )?{re.escape(name)}\(|\(arg0: ", line.strip())
        and "*args, **kwargs" not in line
    ]
    if not found and inspect.isfunction(value):
        found = [f"{name}{inspect.signature(value)}"]
    return [_plain(line) for line in found]


def _plain(line: str) -> str:
    """Spell a signature the same way for every pybind11 version that NVIDIA used."""
    line = re.sub(r"^\d+\. ", "", line.strip())
    line = re.sub(r"\btensorrt_bindings\.(tensorrt\.)?", "", line)
    for spelling, plain in (
        (r"typing\.SupportsInt( \| typing\.SupportsIndex)?", "int"),
        (r"typing\.SupportsFloat( \| typing\.SupportsIndex)?", "float"),
        (r"(typing|collections\.abc)\.Sequence", "list"),
        (r"(typing_extensions|collections\.abc)\.Buffer", "buffer"),
        (r"<(\w+\.\w+): \d+>", r"\1"),
        (r" object at 0x[0-9a-f]+", ""),
    ):
        line = re.sub(spelling, plain, line)
    return line


def _result(signatures: list[Signature]) -> str:
    return signatures[0].rpartition("-> ")[2] if signatures else ""


def record(version: str, folder: Path) -> Record:
    """Fetch one version's wheel and describe it in a fresh interpreter.

    Args:
        version: Such as "10.3.0".
        folder: An empty folder for the wheel, its content and the stub libraries.

    Returns:
        What `describe` read.

    Raises:
        subprocess.CalledProcessError: pip, gcc or the import failed; its output says why.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*pip, "--dest", str(folder), f"tensorrt-cu12-bindings=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    (folder / "stub.c").write_text(STUB)
    major = version.partition(".")[0]
    for library in LIBRARIES:
        target = folder / f"lib{library}.so.{major}"
        subprocess.run(
            ["gcc", "-shared", "-fPIC", "-o", str(target), str(folder / "stub.c")], check=True
        )
    # The loader reads LD_LIBRARY_PATH when a process starts, hence a process for each version.
    environment = {**os.environ, "LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}
    command = [sys.executable, str(Path(__file__).resolve()), "--describe"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE).stdout
    described: Record = json.loads(output)
    return described


def main() -> None:
    """Write one record for each version asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("versions", nargs="*", default=VERSIONS)
    parser.add_argument("--describe", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.describe:
        import tensorrt_bindings  # type: ignore[import-not-found]

        json.dump(describe(tensorrt_bindings), sys.stdout)
        return
    RECORDS.mkdir(exist_ok=True)
    for version in arguments.versions:
        with tempfile.TemporaryDirectory() as folder:
            content = record(version, Path(folder))
        path = RECORDS / f"tensorrt-{version}.json"
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        print(f"{path.name}: {len(content['names'])} names")  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

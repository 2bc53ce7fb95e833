"""Where the time of one graph goes: ONNX Runtime's own profile, node by node."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from aeseg_edge.backends.choose import choose_entry
from aeseg_edge.backends.session import label_feed, open_session
from aeseg_edge.bundle.archive import Bundle
from aeseg_edge.bundle.codebook import Codebook
from aeseg_edge.bundle.contract import ENCODED, HEAD, OUTPUTS, GraphSpec
from aeseg_edge.bundle.precisions import ONNXRUNTIME
from aeseg_edge.errors import BackendError
from aeseg_edge.support.require import require

_EVENT = "_kernel_time"


@dataclass(frozen=True)
class NodeTime:
    """One node of the graph as it runs, after all fusions; the median of its ms over the runs.

    `head` says whether it belongs to the head (smoothing, scores, margin, upsampling, labels).
    """

    name: str
    op: str
    head: bool
    milliseconds: float
    runs: int


@dataclass(frozen=True)
class NodeProfile:
    """All nodes, slowest first, and the median ms of a whole run, with what is between nodes."""

    nodes: tuple[NodeTime, ...]
    run_milliseconds: float

    @property
    def head_milliseconds(self) -> float:
        """Time in nodes of the head."""
        return sum(node.milliseconds for node in self.nodes if node.head)

    @property
    def encoder_milliseconds(self) -> float:
        """Time in nodes of the encoder."""
        return sum(node.milliseconds for node in self.nodes if not node.head)

    @property
    def head_share(self) -> float:
        """Head over all nodes, 0..1. The profiler's own cost is on both sides."""
        whole = self.head_milliseconds + self.encoder_milliseconds
        return self.head_milliseconds / whole if whole else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return every node as JSON types."""
        return {
            "run_ms": round(self.run_milliseconds, 4),
            "head_ms": round(self.head_milliseconds, 4),
            "encoder_ms": round(self.encoder_milliseconds, 4),
            "head_share": round(self.head_share, 5),
            "nodes": [
                {
                    "name": node.name,
                    "op": node.op,
                    "head": node.head,
                    "ms": round(node.milliseconds, 5),
                    "runs": node.runs,
                }
                for node in self.nodes
            ],
        }


def profile_nodes(
    bundle: Bundle,
    frame: NDArray[np.uint8],
    *,
    precision: str = "auto",
    threads: int = 1,
    frames: int = 100,
    warmup: int = 20,
    everything: bool = False,
) -> NodeProfile:
    """Run a bundle's graph with ONNX Runtime's profiler on.

    Head and encoder are told apart on the graph as it runs, which ONNX Runtime writes when it
    opens it: all that depends on the tensor ``encoded`` is head, and all that keeps the name
    of a head's node; fusions rename nodes, but not the tensors between them.

    Args:
        bundle: At the size it is to run at.
        frame: uint8 [H, W, C] at the graph's size.
        precision: As for ``Segmenter.load``.
        threads: Inside one operation.
        frames: Timed runs.
        warmup: Runs before them, left out.
        everything: Smooth, and give latents and margin too; labels alone otherwise.

    Raises:
        MissingDependency: If onnx or onnxruntime is not installed.
        BackendError: If the graph cannot be run, or writes no profile.
        BundleError: If the bundle has no such graph.
    """
    entry = choose_entry(bundle.manifest, precision, ONNXRUNTIME)
    events, head = run_profiled(
        bundle.graph(*entry.key),
        bundle.manifest.spec,
        bundle.codebook,
        frame,
        threads=threads,
        runs=warmup + frames,
        everything=everything,
    )
    if not head:
        raise BackendError(
            f"no node of the {entry.precision} graph is known as the head's",
            fix="Export the bundle again with this version of aeseg_edge.",
        )
    return summarise_profile(events, head, warmup)


def run_profiled(
    graph: bytes,
    spec: GraphSpec,
    codebook: Codebook,
    frame: NDArray[np.uint8],
    *,
    threads: int,
    runs: int,
    everything: bool = False,
) -> tuple[list[dict[str, Any]], set[str]]:
    """Run a deployed graph with the profiler on; see ``profile_nodes``.

    Gives the profile's events, without those of nodes inside branches (what they take is in the
    time of the branch already), and the names of the head's nodes.
    """
    onnx = require("onnx")
    try:
        with tempfile.TemporaryDirectory(prefix="aeseg-profile-") as folder:
            written = Path(folder) / "runs.onnx"
            session = open_session(
                graph,
                threads=threads,
                sizes=spec.sizes,
                profile=Path(folder) / "profile",
                optimised=written,
            )
            feed = label_feed(session, spec, codebook, frame, everything=everything)
            for _ in range(runs):
                session.run(OUTPUTS, feed)
            events = json.loads(Path(session.end_profiling()).read_text())
            nodes = onnx.load(written).graph.node
    except (OSError, ValueError) as error:
        raise BackendError(
            f"ONNX Runtime's profile cannot be read: {error}",
            fix="Free some space, or set TMPDIR to a folder on another disk.",
        ) from error
    inner = inner_nodes(nodes)
    shown = [each for each in events if str(each["name"]).removesuffix(_EVENT) not in inner]
    return shown, head_nodes(nodes)


def head_nodes(nodes: Iterable[Any]) -> set[str]:
    """Return the names of the head's nodes among ``onnx.NodeProto`` in topological order."""
    tensors = {ENCODED}
    found: set[str] = set()
    for node in nodes:
        if node.name.startswith(HEAD) or not tensors.isdisjoint(node.input):
            found.add(node.name)
            tensors.update(node.output)
    return found


def inner_nodes(nodes: Iterable[Any]) -> set[str]:
    """Return the names of the ``onnx.NodeProto`` inside branches."""
    found: set[str] = set()
    for node in nodes:
        for attribute in node.attribute:
            if attribute.g.node:
                found.update(each.name for each in attribute.g.node)
                found |= inner_nodes(attribute.g.node)
    return found


def summarise_profile(events: Iterable[dict[str, Any]], head: set[str], warmup: int) -> NodeProfile:
    """Sum up the profiler's events (Chrome's trace event format, durations in microseconds).

    `head` names the head's nodes, the first `warmup` runs are left out. BackendError where no node
    was timed.
    """
    times, runs = node_times(events, warmup)
    found = [
        NodeTime(name, op, name in head, float(np.median(spent)), len(spent))
        for (name, op), spent in times.items()
    ]
    found.sort(key=lambda node: -node.milliseconds)
    return NodeProfile(tuple(found), float(np.median(runs)))


def node_times(
    events: Iterable[dict[str, Any]], warmup: int
) -> tuple[dict[tuple[str, str], NDArray[np.float64]], NDArray[np.float64]]:
    """Read the times of nodes and of whole runs from a profile; see ``summarise_profile``.

    Milliseconds of each counted run, float64 [runs]: of every node by name and operator, in the
    order that they run in, and of the whole.
    """
    times: dict[tuple[str, str], list[float]] = {}
    runs: list[float] = []
    for event in events:
        name = str(event.get("name", ""))
        if event.get("cat") == "Session" and name == "model_run":
            runs.append(event["dur"])
        if event.get("cat") == "Node" and name.endswith(_EVENT):
            key = name.removesuffix(_EVENT), str(event["args"]["op_name"])
            times.setdefault(key, []).append(event["dur"])
    if not times or len(runs) <= warmup:
        raise BackendError(
            "ONNX Runtime's profile times no node", fix="Use a build of it with profiling."
        )
    # Nodes that share a name (layout changes do) come one after the other in each run.
    counted = {
        key: np.array(spent, np.float64).reshape(len(runs), -1)[warmup:].sum(axis=1) / 1e3
        for key, spent in times.items()
    }
    return counted, np.array(runs[warmup:], np.float64) / 1e3


def format_table(profile: NodeProfile, *, most: int = 20) -> str:
    """Return the slowest nodes and the share of the head, as plain text."""
    whole = profile.encoder_milliseconds + profile.head_milliseconds
    shown = profile.nodes[:most]
    width = max(len(node.op) for node in shown)
    lines = [f"{'ms':>9}{'%':>7}  part     {'operator':<{width}}  node"]
    for node in shown:
        lines.append(
            f"{node.milliseconds:>9.3f}{100 * node.milliseconds / whole:>7.1f}  "
            f"{'head   ' if node.head else 'encoder'}  {node.op:<{width}}  {node.name}"
        )
    left = profile.nodes[most:]
    if left:
        rest = sum(node.milliseconds for node in left)
        lines.append(f"{rest:>9.3f}{100 * rest / whole:>7.1f}  {len(left)} more nodes")
    lines.append(
        f"encoder {profile.encoder_milliseconds:.2f} ms, head {profile.head_milliseconds:.2f} ms "
        f"({100 * profile.head_share:.1f} % of the nodes' time); a run takes "
        f"{profile.run_milliseconds:.2f} ms with the profiler on"
    )
    return "\n".join(lines)

"""Measured rows as a Markdown table: what others take, as multiples of our time."""

from __future__ import annotations

from typing import Any

_PEERS = {
    "eager": "eager", "eager_channels_last": "channels-last", "compile": "torch.compile",
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "openvino_bf16": "OpenVINO bf16",
    "tensorflow": "TensorFlow",
}  # fmt: skip


def table(results: dict[str, Any]) -> str:
    """One row a net; a dash where an engine was not measured or cannot run the net."""
    heads = ["net", "input", "seconds", *_PEERS.values()]
    heads += ["error fast / exact", "MB (OpenVINO)", "first / cached, s"]
    lines = [_line(heads), _line(["---"] * len(heads))]
    lines += [_line(_cells(name, rows)) for name, rows in results.items() if rows.get("hyper")]
    return "\n".join(lines)


def _cells(name: str, rows: dict[str, Any]) -> list[str]:
    ours, exact, openvino = rows["hyper"], rows.get("hyper_exact"), rows.get("openvino")
    size = "x".join(map(str, rows["shape"]))
    peers = [f"{rows[peer]['speedup']:.2f}x" if rows.get(peer) else "-" for peer in _PEERS]
    errors = f"{ours['max_rel_error']:.1e} / "
    errors += f"{exact['max_rel_error']:.1e}" if exact else "-"
    memory = f"{ours['peak_rss_mb']:.0f} ("
    memory += f"{openvino['peak_rss_mb']:.0f})" if openvino else "-)"
    first = f"{ours['compile_s']:.1f} / {ours['cached_compile_s']:.1f}"
    return [name, size, f"{ours['median_s']:.3f}", *peers, errors, memory, first]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"

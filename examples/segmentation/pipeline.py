"""The first step of `raw_to_segmented.yaml`: what `hyper align` does before its recipe runs."""

from __future__ import annotations

from typing import Any

from hyper import TaskContext, align, align_source


def start(
    context: TaskContext, *, source: str, destination: str, from_fields: str = ""
) -> dict[str, Any]:
    """Open the alignment's session; returns it, and the sections, pairs and blocks.

    Args:
        from_fields: of another alignment, used in place of matches; for another channel.
    """
    client = context.client
    stack = align_source.inspect_array(client, source)
    options = align.AlignOptions(from_fields=from_fields)
    align.check_lengths(stack, options)
    session = client.session(destination)
    session.write(align.SETTINGS_FILE, align.job_settings(stack, options, destination))
    sections = stack.shape[0]
    return {
        "session": session.name,
        "z": {"range": [0, sections]},
        "pairs": {"range": [0, sections - 1]},
        "blocks": {"range": [0, len(align.blocks(stack.shape))]},
    }

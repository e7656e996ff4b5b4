"""`hyper infer`: a net over a whole volume."""

from __future__ import annotations

from typing import Annotated

import typer

from hyper.cli import output


def _sizes(text: str | None) -> tuple[int, ...]:
    if not text:
        return ()
    try:
        z, y, x = (int(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter("write z,y,x in voxels, such as 16,256,256") from None
    return z, y, x


def infer(
    model: Annotated[str, typer.Argument(help="an ONNX file, or tenant/name[@v]/path.onnx")],
    source: Annotated[str, typer.Argument(help="tenant/name[@v]/array")],
    destination: Annotated[str, typer.Argument(help="tenant/name/array, new in its next version")],
    dtype: Annotated[str, typer.Option(help="of the destination")] = "float32",
    channels: Annotated[int, typer.Option(help="of the result (0: as the model says)", min=0)] = 0,
    patch: Annotated[str | None, typer.Option(help="z,y,x of the net's input")] = None,
    overlap: Annotated[str | None, typer.Option(help="z,y,x of neighbouring patches")] = None,
    mode: Annotated[str, typer.Option(help="exact, fast, faster or bf16")] = "fast",
    scale: Annotated[float, typer.Option(help="input = value * scale + shift")] = 1.0,
    shift: Annotated[float, typer.Option(help="see --scale")] = 0.0,
    output_scale: Annotated[
        float, typer.Option(help="stored = output * output scale + output shift")
    ] = 1.0,
    output_shift: Annotated[float, typer.Option(help="see --output-scale")] = 0.0,
    blending: Annotated[str, typer.Option(help="crop, linear or bump")] = "crop",
    augmentation: Annotated[str, typer.Option(help="none, flips, flips_zyx or rotations")] = "none",
    mask: Annotated[str, typer.Option(help="tenant/name/array: not 0 where wanted")] = "",
    detach: Annotated[bool, typer.Option("--detach", help="do not wait for the end")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="print a JSON object")] = False,
) -> None:
    """Run a net over a volume, on the cluster's inference services."""
    from hyper.cli import watch
    from hyper.cli.job import client_for
    from hyper.errors import WorkFailedError
    from hyper.infer import InferOptions, submit

    options = InferOptions(
        dtype, channels, _sizes(patch), _sizes(overlap), mode, scale, shift, output_scale,
        output_shift, blending, augmentation, mask,
    )  # fmt: skip
    with client_for(destination) as client:
        workflow = submit(client, model, source, destination, options)
        result: dict[str, object] = {"workflow": workflow.name, "array": destination}
        if not detach:
            status = watch.watch(workflow)
            if status.state != "SUCCEEDED":
                raise typer.Exit(WorkFailedError.exit_code)
            array = client.open_array(destination)
            result |= {"shape": list(array.shape), "dtype": array.dtype.name, "url": array.url}
    output.emit(result, f"{destination}: {workflow.name}", as_json=json_output)


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command("infer")(infer)

"""Nets that people bring, from their own packages: nnU-Net's and MONAI's, at their usual widths.

Only in `.venv-bench` (`peers.py`); a function imports its package when it is called.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from benchmarks.inference.nets import prepare

_WIDTHS = (32, 64, 128, 256, 320, 320)


def _nnunet(kind: str, **more: Any) -> nn.Module:
    import dynamic_network_architectures.architectures.unet as unet

    stages = len(_WIDTHS)
    net = getattr(unet, kind)(
        input_channels=1, n_stages=stages, features_per_stage=_WIDTHS, conv_op=nn.Conv3d,
        kernel_sizes=3, strides=[1, *[2] * (stages - 1)], num_classes=3, conv_bias=True,
        norm_op=nn.InstanceNorm3d, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True}, **more,
    )  # fmt: skip
    return prepare(net)


def nnunet_plain() -> nn.Module:
    """nnU-Net's default, `3d_fullres`: strided convolutions, instance norm, leaky ReLU."""
    return _nnunet("PlainConvUNet", n_conv_per_stage=2, n_conv_per_stage_decoder=2)


def nnunet_residual() -> nn.Module:
    """nnU-Net's ResEnc preset M."""
    return _nnunet(
        "ResidualEncoderUNet", n_blocks_per_stage=(1, 3, 4, 6, 6, 6), n_conv_per_stage_decoder=1
    )


def monai_basic_unet() -> nn.Module:
    """MONAI's BasicUNet at its defaults."""
    from monai.networks.nets import BasicUNet

    return prepare(BasicUNet(spatial_dims=3, in_channels=1, out_channels=2))


def monai_unet() -> nn.Module:
    """MONAI's UNet with residual units, as in its tutorials."""
    from monai.networks.nets import UNet

    net = UNet(
        spatial_dims=3, in_channels=1, out_channels=2, channels=(16, 32, 64, 128, 256),
        strides=(2, 2, 2, 2), num_res_units=2, norm="batch",
    )  # fmt: skip
    return prepare(net)


def monai_dynunet() -> nn.Module:
    """MONAI's DynUNet, anisotropic first level."""
    from monai.networks.nets import DynUNet

    net = DynUNet(
        spatial_dims=3, in_channels=1, out_channels=3,
        kernel_size=[(1, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)],
        strides=[(1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
        upsample_kernel_size=[(1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2)],
    )  # fmt: skip
    return prepare(net)


def monai_segresnet() -> nn.Module:
    """MONAI's SegResNet at its defaults but for 16 channels."""
    from monai.networks.nets import SegResNet

    return prepare(SegResNet(spatial_dims=3, in_channels=1, out_channels=2, init_filters=16))

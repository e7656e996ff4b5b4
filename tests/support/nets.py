"""Nets in the shape of those that people bring: nnU-Net's and MONAI's, written anew, small."""

from __future__ import annotations

import torch
from torch import nn

Tensor = torch.Tensor


def conv_norm(i: int, o: int, stride: int = 1, kernel: int = 3) -> nn.Sequential:
    """nnU-Net's block: convolution, instance norm, leaky ReLU."""
    return nn.Sequential(
        nn.Conv3d(i, o, kernel, stride, kernel // 2),
        nn.InstanceNorm3d(o, affine=True),
        nn.LeakyReLU(inplace=True),
    )


class PlainNnUNet(nn.Module):
    """Strided convolutions down, transposed ones up, concatenating skips."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 20), classes: int = 3) -> None:
        super().__init__()
        pairs = list(zip((1, *widths[:-1]), widths, strict=True))
        self.encoder = nn.ModuleList(
            nn.Sequential(conv_norm(i, o, 1 if n == 0 else 2), conv_norm(o, o))
            for n, (i, o) in enumerate(pairs)
        )
        steps = list(zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.up = nn.ModuleList(nn.ConvTranspose3d(i, o, 2, 2) for i, o in steps)
        self.decoder = nn.ModuleList(
            nn.Sequential(conv_norm(2 * o, o), conv_norm(o, o)) for _, o in steps
        )
        self.head = nn.Conv3d(widths[0], classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for up, stage, skip in zip(self.up, self.decoder, skips[-2::-1], strict=True):
            x = stage(torch.cat((up(x), skip), 1))
        return self.head(x)


class ResidualBlock(nn.Module):
    """nnU-Net's residual encoder: average pooling and a 1 x 1 x 1 convolution in the skip."""

    def __init__(self, i: int, o: int, stride: int) -> None:
        super().__init__()
        self.first = conv_norm(i, o, stride)
        self.second = nn.Sequential(
            nn.Conv3d(o, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True)
        )
        skip: list[nn.Module] = [nn.AvgPool3d(stride, stride)] if stride > 1 else []
        if i != o:
            skip += [nn.Conv3d(i, o, 1, bias=False), nn.InstanceNorm3d(o, affine=True)]
        self.skip = nn.Sequential(*skip)
        self.act = nn.LeakyReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.second(self.first(x)) + self.skip(x))


class ResidualNnUNet(PlainNnUNet):
    """With residual blocks in the encoder."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 20)) -> None:
        super().__init__(widths)
        pairs = list(zip((1, *widths[:-1]), widths, strict=True))
        self.encoder = nn.ModuleList(
            nn.Sequential(ResidualBlock(i, o, 1 if n == 0 else 2), ResidualBlock(o, o, 1))
            for n, (i, o) in enumerate(pairs)
        )


class BasicUNet(nn.Module):
    """MONAI's: max pooling, replicate padding of what does not fit, instance norm, dropout."""

    def __init__(self, widths: tuple[int, ...] = (6, 9, 14)) -> None:
        super().__init__()

        def twice(i: int, o: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for a in (i, o):
                layers += [
                    nn.Conv3d(a, o, 3, padding=1), nn.InstanceNorm3d(o, affine=True),
                    nn.Dropout(0.1), nn.LeakyReLU(0.1),
                ]  # fmt: skip
            return nn.Sequential(*layers)

        a, b, c = widths
        self.first, self.down1, self.down2 = twice(1, a), twice(a, b), twice(b, c)
        self.pool = nn.MaxPool3d(2)
        self.up2, self.join2 = nn.ConvTranspose3d(c, b, 2, 2), twice(2 * b, b)
        self.up1, self.join1 = nn.ConvTranspose3d(b, a, 2, 2), twice(2 * a, a)
        self.head = nn.Conv3d(a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.first(x)
        b = self.down1(self.pool(a))
        c = self.down2(self.pool(b))
        y = self.join2(torch.cat([b, self._fit(self.up2(c), b)], 1))
        y = self.join1(torch.cat([a, self._fit(self.up1(y), a)], 1))
        return self.head(y)

    def _fit(self, x: Tensor, skip: Tensor) -> Tensor:
        pads = []
        for axis in (4, 3, 2):
            pads += [0, skip.shape[axis] - x.shape[axis]]
        return nn.functional.pad(x, pads, "replicate") if any(pads) else x


class MonaiUNet(nn.Module):
    """MONAI's UNet: residual units, 3 x 3 x 3 transposed convolutions of stride 2, PReLU."""

    def __init__(self, widths: tuple[int, ...] = (6, 10, 16), norm: str = "batch") -> None:
        super().__init__()
        make = nn.BatchNorm3d if norm == "batch" else nn.InstanceNorm3d

        def unit(i: int, o: int, stride: int) -> nn.ModuleList:
            main = nn.Sequential(
                nn.Conv3d(i, o, 3, stride, 1), make(o), nn.PReLU(),
                nn.Conv3d(o, o, 3, 1, 1), make(o), nn.PReLU(),
            )  # fmt: skip
            same = i == o and stride == 1
            skip = nn.Identity() if same else nn.Conv3d(i, o, 3, stride, 1)
            return nn.ModuleList([main, skip])

        def up(i: int, o: int) -> nn.Sequential:
            transposed = nn.ConvTranspose3d(i, o, 3, 2, 1, output_padding=1)
            return nn.Sequential(transposed, make(o), nn.PReLU(o))

        a, b, c = widths
        self.down1, self.down2, self.deep = unit(1, a, 2), unit(a, b, 2), unit(b, c, 1)
        self.up2, self.after2 = up(b + c, a), unit(a, a, 1)
        self.up1, self.after1 = up(2 * a, 2), nn.Conv3d(2, 2, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        def run(unit: nn.ModuleList, x: Tensor) -> Tensor:
            return unit[0](x) + unit[1](x)

        a = run(self.down1, x)
        b = run(self.down2, a)
        y = run(self.after2, self.up2(torch.cat([b, run(self.deep, b)], 1)))
        y = self.up1(torch.cat([a, y], 1))
        return self.after1(y) + y


class DynUNet(nn.Module):
    """MONAI's DynUNet: anisotropic kernels and strides, residual blocks, bias-free."""

    def __init__(self, widths: tuple[int, ...] = (8, 12, 16)) -> None:
        super().__init__()

        def block(i: int, o: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]):
            pad = tuple(k // 2 for k in kernel)
            return nn.ModuleList([
                nn.Conv3d(i, o, kernel, stride, pad, bias=False), nn.InstanceNorm3d(o, affine=True),
                nn.Conv3d(o, o, kernel, 1, pad, bias=False), nn.InstanceNorm3d(o, affine=True),
                nn.Conv3d(i, o, 1, stride, bias=False), nn.InstanceNorm3d(o, affine=True),
            ])  # fmt: skip

        a, b, c = widths
        self.act = nn.LeakyReLU(0.01, inplace=True)
        self.first = block(1, a, (1, 3, 3), (1, 1, 1))
        self.down = block(a, b, (3, 3, 3), (1, 2, 2))
        self.deep = block(b, c, (3, 3, 3), (2, 2, 2))
        self.up2 = nn.ConvTranspose3d(c, b, 2, 2, bias=False)
        self.up1 = nn.ConvTranspose3d(b, a, (1, 2, 2), (1, 2, 2), bias=False)
        self.join2 = block(2 * b, b, (3, 3, 3), (1, 1, 1))
        self.join1 = block(2 * a, a, (3, 3, 3), (1, 1, 1))
        self.head = nn.Conv3d(a, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        def run(m: nn.ModuleList, x: Tensor) -> Tensor:
            y = m[3](m[2](self.act(m[1](m[0](x)))))
            return self.act(y + m[5](m[4](x)))

        a = run(self.first, x)
        b = run(self.down, a)
        y = run(self.join2, torch.cat((self.up2(run(self.deep, b)), b), 1))
        return self.head(run(self.join1, torch.cat((self.up1(y), a), 1)))


class SegResNet(nn.Module):
    """MONAI's SegResNet: pre-activation, group norm, trilinear up-sampling, sum skips."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()

        class Block(nn.Module):
            def __init__(self, c: int) -> None:
                super().__init__()
                self.norm1, self.norm2 = nn.GroupNorm(4, c), nn.GroupNorm(4, c)
                self.conv1 = nn.Conv3d(c, c, 3, padding=1, bias=False)
                self.conv2 = nn.Conv3d(c, c, 3, padding=1, bias=False)

            def forward(self, x: Tensor) -> Tensor:
                y = self.conv1(torch.relu(self.norm1(x)))
                return self.conv2(torch.relu(self.norm2(y))) + x

        self.first = nn.Conv3d(1, width, 3, padding=1, bias=False)
        self.block1 = Block(width)
        self.down = nn.Conv3d(width, 2 * width, 3, 2, 1, bias=False)
        self.block2 = Block(2 * width)
        self.narrow = nn.Conv3d(2 * width, width, 1, bias=False)
        self.up = nn.Upsample(scale_factor=2, mode="trilinear", align_corners=False)
        self.block3 = Block(width)
        self.head = nn.Sequential(nn.GroupNorm(4, width), nn.ReLU(), nn.Conv3d(width, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        a = self.block1(self.first(x))
        b = self.block2(self.down(a))
        return self.head(self.block3(self.up(self.narrow(b)) + a))

"""Colours of images in sRGB, whatever space their files say that they are in."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageCms

from .fields import UserError
from .files import one_line

Primaries = Sequence[Sequence[float]]  # x and y of red, green, blue and white
D65, D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)  # xy; XYZ, as profiles have it
BT709: Primaries = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06), D65)
ADOBE: Primaries = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06), D65)
SRGB = (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)  # y = (a x + b)^g from d on, else c x
# As H.273 numbers them. Transfers of films are shown as sRGB's is.
PRIMARIES: dict[int, Primaries] = {
    1: BT709, 2: BT709, 9: ((0.708, 0.292), (0.17, 0.797), (0.131, 0.046), D65),
    12: ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), D65)}
TRANSFERS = {**dict.fromkeys((1, 2, 6, 13, 14, 15), SRGB), 8: (1.0,)}
NUMBERS = {"PNG": re.compile(rb"\0\0\0\x04cICP(.)(.)", re.DOTALL),
           "AVIF": re.compile(rb"colrnclx\0(.)\0(.)", re.DOTALL)}
# Modes of images that a profile of each space fits, and first the one that is converted.
MODES = {"RGB": ("RGB", "RGBA", "RGBX", "P", "PA", "L", "LA", "1"), "CMYK": ("CMYK",),
         "GRAY": ("L", "LA", "1")}
BRADFORD = np.array(((0.8951, 0.2664, -0.1614), (-0.7502, 1.7135, 0.0367),
                     (0.0389, -0.0685, 1.0296)))


def profile_of(image: Image.Image, head: bytes) -> bytes | None:
    """The ICC profile of an opened image, or one that means what the other metadata say; None for
    sRGB. head: the file's first bytes. UserError for colours that are not read here."""
    icc, pattern = image.info.get("icc_profile"), NUMBERS.get(image.format or "")
    numbers = pattern and pattern.search(head.partition(b"IDAT")[0])
    if numbers and (image.format == "PNG" or not icc):
        space, transfer = numbers[1][0], numbers[2][0]
        if space not in PRIMARIES or transfer not in TRANSFERS:
            raise UserError(f"has colours such as HDR's (primaries {space}, transfer {transfer} "
                            "of H.273); save it as sRGB")
        return matrix_profile(PRIMARIES[space], TRANSFERS[transfer])
    if icc or "srgb" in image.info:
        return icc
    gamma: float | None = image.info.get("gamma")  # of PNG
    xy: tuple[float, ...] | None = image.info.get("chromaticity")
    if gamma is not None or xy is not None:
        same = gamma is None or 0.45 < gamma < 0.46  # which stands for sRGB's curve
        curve = SRGB if same else (1 / max(gamma or 0, 1e-6),)
        return matrix_profile(BT709 if xy is None else (*zip(xy[2::2], xy[3::2]), xy[:2]), curve)
    exif = image.getexif()
    inner = exif.get_ifd(0x8769)  # Adobe RGB is 2 in it, or as cameras say it, interoperable as R03
    adobe = inner.get(0xA001) == 2 or 0xA005 in inner and exif.get_ifd(0xA005).get(1) == "R03"
    return matrix_profile(ADOBE, (563 / 256,)) if adobe else None


def matrix_profile(primaries: Primaries, curve: Sequence[float]) -> bytes | None:
    """An ICC profile (version 4) of primaries and a curve, which is as SRGB, or an exponent alone;
    None for sRGB. UserError for what no profile can say."""
    if curve == SRGB and np.abs(np.subtract(primaries, BT709)).max() < 0.002:
        return None
    try:
        xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
        rgb = xyz[:, :3] * np.linalg.solve(xyz[:, :3], xyz[:, 3])  # which make white
        gains = BRADFORD @ D50 / (BRADFORD @ xyz[:, 3])
        colorants = np.linalg.solve(BRADFORD, gains[:, None] * BRADFORD) @ rgb
        fixed = [struct.pack(f">{len(x)}i", *(round(65536 * v) for v in x))
                 for x in (*colorants.T, curve, D50)]
    except (ArithmeticError, ValueError, struct.error, np.linalg.LinAlgError) as error:
        raise UserError("has colours of no known space; save it as sRGB") from error
    shape = b"para\0\0\0\0" + struct.pack(">HH", 3 * (len(curve) > 1), 0) + fixed[3]
    tags = {f"{c}XYZ": b"XYZ \0\0\0\0" + x for c, x in zip("rgb", fixed)}
    table, at, body = struct.pack(">I", 6), 204, b""  # where the body begins
    for name, content in (tags | dict.fromkeys(("rTRC", "gTRC", "bTRC"), shape)).items():
        table += name.encode() + struct.pack(">II", at + len(body), len(content))
        body += content
    head = struct.pack(">I4xI12s12x4s28x12s48x", at + len(body), 0x04000000, b"mntrRGB XYZ ",
                       b"acsp", fixed[4])
    return head + table + body


def in_srgb(image: Image.Image, mode: str, profile: bytes | None) -> Image.Image:
    """An image as mode RGB or RGBA. UserError for a profile that does not fit it."""
    if profile is None:
        return image if image.mode == mode else image.convert(mode)
    try:
        source, to = ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB")
        if image.mode not in (fits := MODES.get(space := source.profile.xcolor_space.strip(), ())):
            raise UserError(f"{space} for pixels of mode {image.mode}")
        own = image.convert(fits[0])
        converted = ImageCms.profileToProfile(own, source, to, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise UserError(f"has a colour profile that does not fit it ({one_line(error)}); save it "
                        "as sRGB") from error
    assert converted is not None
    if mode == "RGBA":
        converted.putalpha(image.convert("RGBA").getchannel("A"))
    return converted

"""Reference images for image to video: read, and brought to a network's size."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from .files import one_line

RESIZE = ("crop", "pad", "stretch")
SUFFIXES = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tga", ".tif", ".tiff", ".webp")
UNREAD_SUFFIXES = (".heic", ".heif", ".hif", ".jxl", ".exr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf")
UNREAD = (  # first bytes of a file that is taken for an image, and what it is
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIC image"),
    (rb"\xff\x0a|.{4}JXL ", "a JPEG XL image"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"(?i)\s*<(!doc|html)", "a web page"),
    (rb"(?i)\s*<(\?xml|svg)", "an SVG drawing"),
    (rb"%PDF|%!PS|\xc5\xd0\xd3\xc6", "a PDF or PostScript document"),
    (rb".{4}ftyp(?!avi[fs])|\x1a\x45\xdf\xa3", "a video"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
SMALLEST = 16  # pixels a side: what is smaller holds nothing to animate
LARGE = 4096  # pixels of the shorter side: what has twice of them is shrunk by a whole factor as soon as it is read


def find_images(path: Path) -> list[Path]:
    """A file, or the images of a folder by name, frame2 before frame10. ValueError if there are none."""
    if not path.exists():
        raise ValueError(f"the image {path} does not exist")
    if not path.is_dir():
        return [path]
    known = SUFFIXES + UNREAD_SUFFIXES  # the latter, so that they are not left out in silence
    found = [p for p in path.iterdir() if p.suffix.lower() in known and p.name[0] != "." and not p.is_dir()]
    if not found:
        raise ValueError(f"the folder {path} has no images ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", p.name)])


def read_image(path: Path) -> Tensor:
    """uint8 h w 3, upright as its EXIF data says; transparent pixels on white, the first frame of several.

    What is much larger than any video is shrunk, see LARGE. ValueError if it cannot be read or is too small.
    """
    if not path.is_file():  # to read a pipe or a device could take for ever
        raise ValueError(f"the image {path} is {'no regular file' if path.exists() else 'not there'}")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata
            head = file.read(64)
            if kind := next((kind for pattern, kind in UNREAD if re.match(pattern, head, re.DOTALL)), None):
                raise _Unfit(f"is {kind}, which is not read here; save it as PNG or JPEG")
            with Image.open(file) as image:  # from an open file: by name, Pillow 13 scrambles turned TIFFs
                return torch.from_numpy(_pixels(ImageOps.exif_transpose(image)))
    except _Unfit as error:
        raise ValueError(f"the image {path} {error}") from None
    except Image.DecompressionBombError as error:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ValueError(f"the image {path} has more than {most:.0f} million pixels; shrink it first") from error
    except Exception as error:  # whatever the decoder of some format raises
        raise ValueError(f"the image {path} cannot be read, or is damaged ({one_line(error)})") from error


class _Unfit(ValueError):
    """Why an image that can be read will not do."""


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 h w 3 of an opened image."""
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise _Unfit(f"has {width}x{height} pixels; at least {SMALLEST} a side are needed")
    if image.mode.startswith("I"):  # grey, more than 8 bits a pixel
        values = np.asarray(image).astype(np.int32)
        if 0 <= values.min() and values.max() <= 65535:
            image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode[0] in "IF":
        raise _Unfit(f"has pixels of mode {image.mode}; save it with 8 or 16 bits a channel")
    mode = "RGBA" if image.has_transparency_data else "RGB"
    image = image if image.mode == mode else image.convert(mode)
    if (factor := min(image.size) // LARGE) > 1:
        image = image.reduce(factor)
    pixels = np.array(image)
    if mode == "RGB":
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def fit(image: Tensor | np.ndarray, height: int, width: int, resize: str = "crop") -> Tensor:
    """An image in a network's size: uint8 h w 3 to uint8 height width 3; as it is, if it fits already.

    resize: "crop" fills the frame and cuts off what stands over at both sides, "pad" fits into it, between black
    bars, "stretch" changes the aspect. ValueError for another one, and for what is no such image.
    """
    image = torch.as_tensor(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise ValueError(f"an image of {image.dtype} {tuple(image.shape)}; uint8 height width 3 is needed")
    if resize not in RESIZE:
        raise ValueError(f"resize={resize!r}; use one of {', '.join(RESIZE)}")
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    if resize == "stretch":
        size = height, width
    else:
        scale = (max if resize == "crop" else min)(height / h, width / w)
        size = max(1, round(h * scale)), max(1, round(w * scale))
    x = image.permute(2, 0, 1)[None].float()
    x = F.interpolate(x, size, mode="bicubic", antialias=True)[0].clamp(0, 255).round().byte().permute(1, 2, 0)
    top, left = (height - size[0]) // 2, (width - size[1]) // 2  # of the image in the frame; below zero it stands over
    canvas = torch.zeros(height, width, 3, dtype=torch.uint8)
    rows, columns = slice(max(0, top), min(height, top + size[0])), slice(max(0, left), min(width, left + size[1]))
    canvas[rows, columns] = x[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
    return canvas

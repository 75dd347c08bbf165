"""Reference images for image to video: read, and brought to a network's size."""

from __future__ import annotations

import re
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RESIZE = ("crop", "pad", "stretch")
SUFFIXES = (".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".jp2", ".png", ".ppm", ".tif", ".tiff", ".webp")
SMALLEST = 16  # pixels a side: what is smaller holds nothing to animate


def find_images(path: Path) -> list[Path]:
    """A file, or the images of a folder by name, frame2 before frame10. ValueError if there are none."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"the image {path} does not exist")
    found = [p for p in path.iterdir() if p.suffix.lower() in SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise ValueError(f"the folder {path} has no images ({', '.join(SUFFIXES)})")
    return sorted(found, key=lambda p: [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", p.name)])


def read_image(path: Path) -> Tensor:
    """uint8 h w 3, upright as its EXIF data says; transparent pixels on white, the first frame of several.

    ValueError if it cannot be read or is too small.
    """
    try:
        with iio.imopen(path, "r", plugin="pillow") as file:
            mode = file.metadata(index=0, exclude_applied=False)["mode"]
            deep = mode.startswith("I")  # grey, more than 8 bits a pixel
            image = np.asarray(file.read(index=0, mode=None if deep else "RGBA", rotate=True))  # type: ignore[call-arg]
    except Exception as error:  # whatever the decoder of some format raises
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"the image {path} cannot be read, or is damaged ({first})") from error
    if mode == "F" or (deep and image.max() > 65535):
        raise ValueError(f"the image {path} has pixels of mode {mode}; save it with 8 or 16 bits a channel")
    if deep:
        grey = (image / 257).round()
        image = np.stack([grey, grey, grey, np.full_like(grey, 255)], axis=-1)
    height, width = image.shape[:2]
    if min(height, width) < SMALLEST:
        raise ValueError(f"the image {path} has {width}x{height} pixels; at least {SMALLEST} a side are needed")
    alpha = image[..., 3:].astype(np.float32) / 255
    flat = image[..., :3] * alpha + 255 * (1 - alpha)
    return torch.from_numpy(flat.round().astype(np.uint8))


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

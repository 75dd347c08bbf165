"""Reference images for image to video: reads them, and brings them to a network's size."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .colors import in_srgb, profile_of
from .fields import UserError
from .files import one_line

RESIZE = ("crop", "pad", "stretch")
SUFFIXES = tuple(".avif .bmp .gif .jfif .jpeg .jpg .jp2 .png .ppm .tga .tif .tiff .webp".split())
UNREAD_SUFFIXES = tuple(".heic .heif .hif .jxl .exr .dng .cr2 .cr3 .nef .arw .raf .orf".split())
UNREAD = (  # first bytes of files that people take for an image, and what they are
    (rb".{4}ftyp(hei|hev|mif1|msf1)", "a HEIC image"),
    (rb"\xff\x0a|.{4}JXL ", "a JPEG XL image"),
    (rb"v/1\x01", "an OpenEXR image"),
    (rb"(?i)\s*<(!doc|html)", "a web page"),
    (rb"(?i)\s*<(\?xml|svg)", "an SVG drawing"),
    (rb"%PDF|%!PS|\xc5\xd0\xd3\xc6", "a PDF or PostScript document"),
    (rb".{4}ftyp(?!avi[fs])|\x1a\x45\xdf\xa3", "a video"),
    (rb"version https://git-lfs", "a Git LFS pointer, not the file itself"),
)
SMALLEST = 16  # pixels a side: less holds nothing to animate
RANGES = 255, 4095, 65535  # grey values of more than 8 bits a pixel end at one of them
LARGE = 4096  # pixels of the shorter side: from twice this on, images are shrunk when they are read


def find_images(path: Path) -> list[Path]:
    """A file, or the images of a folder by name, frame2 before frame10. UserError if there are
    none."""
    if not path.exists():
        raise UserError(f"the image {path} does not exist")
    if not path.is_dir():
        return [path]
    known = SUFFIXES + UNREAD_SUFFIXES  # the latter are refused when they are read, not skipped
    found = [p for p in path.iterdir()
             if p.suffix.lower() in known and p.name[0] != "." and not p.is_dir()]
    if not found:
        raise UserError(f"the folder {path} has no images ({', '.join(SUFFIXES)})")
    return sorted(found, key=by_number)


def by_number(path: Path) -> list[int | str]:
    """A key that sorts paths by the numbers in them: frame2 before frame10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def read_image(path: str | Path, note: Callable[[str], object] = warnings.warn) -> Tensor:
    """An image as uint8 h w 3 in sRGB, upright by its EXIF data; transparent pixels become white.

    Of an animation it is the first frame. Very large images are shrunk, see LARGE. note: is told
    what had to be assumed of it. UserError if it cannot be read or is too small.
    """
    path, assumed = Path(path), list[str]()
    if not path.is_file():  # a pipe might never end
        what = "is no regular file" if path.exists() else "does not exist"
        raise UserError(f"the image {path} {what}")
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of large images and odd metadata
            head = file.read(1 << 20)
            for pattern, kind in UNREAD:
                if re.match(pattern, head, re.DOTALL):
                    raise UserError(f"is {kind}, which is not read here; save it as PNG or JPEG")
            # Opened as a file: by name, Pillow 13 scrambles turned TIFFs.
            with Image.open(file) as image:
                profile = profile_of(image, head)
                pixels = _pixels(ImageOps.exif_transpose(image), profile, assumed)
    except UserError as error:
        raise UserError(f"the image {path} {error}") from None
    except Image.DecompressionBombError as error:
        raise UserError(f"the image {path} has too many pixels; shrink it first") from error
    except UnidentifiedImageError as error:
        raise UserError(f"the image {path} is no image that can be read, or is damaged") from error
    except Exception as error:  # decoders of some formats raise anything
        reason = one_line(error)
        raise UserError(f"the image {path} cannot be read, or is damaged ({reason})") from error
    for text in assumed:
        note(f"the image {path} {text}")
    return torch.from_numpy(pixels)


def _pixels(image: Image.Image, profile: bytes | None, assumed: list[str]) -> np.ndarray:
    """uint8 h w 3 of an opened image. UserError if it cannot be used."""
    width, height = image.size
    if min(width, height) < SMALLEST:
        raise UserError(f"has {width}x{height} pixels; at least {SMALLEST} a side are needed")
    if image.mode.startswith("I"):  # grey, more than 8 bits a pixel
        values = np.asarray(image).astype(np.int64)
        if 0 <= values.min() and (most := values.max()) <= 65535:
            top = next(x for x in RANGES if most <= x) if most else 65535
            if top < 65535:
                assumed.append(f"has grey values up to {most} and is taken for 0 to {top}; if it "
                               "has another range, save it with 8 bits a channel")
            levels = (values * 255 + top // 2) // top
            levels[values == image.info.get("transparency", -1)] = 255
            image = Image.fromarray(levels.astype(np.uint8))
    if image.mode[0] in "IF":
        raise UserError(f"has pixels of mode {image.mode}; save it with 8 or 16 bits a channel")
    clear = image.info.get("transparency")
    if isinstance(clear, tuple) and max(clear) > 255:  # of 16 bits, when the colours have 8 left
        image.info["transparency"] = tuple(x >> 8 for x in clear)
    mode = "RGBA" if image.has_transparency_data else "RGB"
    image = in_srgb(image, mode, profile)
    if (factor := min(image.size) // LARGE) > 1:
        image = image.reduce(factor)
    pixels = np.array(image)
    if mode == "RGB":
        return pixels
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return (pixels[..., :3] * alpha + 255 * (1 - alpha)).round().astype(np.uint8)


def fit(image: Tensor | np.ndarray, height: int, width: int, resize: str = "crop") -> Tensor:
    """An image at a network's size: uint8 h w 3 to uint8 height width 3.

    resize: "crop" fills the frame and cuts off what sticks out, "pad" fits into it between black
    bars, "stretch" changes the aspect ratio. An image that fits is returned as it is. UserError for
    another resize or another kind of array.
    """
    image = torch.as_tensor(image)
    if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[-1] != 3:
        raise UserError(f"an image of {image.dtype} {tuple(image.shape)}; uint8 height width 3 is "
                        "needed")
    if resize not in RESIZE:
        raise UserError(f"resize={resize!r}; use one of {', '.join(RESIZE)}")
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    size = height, width
    if resize != "stretch":
        scale = (max if resize == "crop" else min)(height / h, width / w)
        size = max(1, round(h * scale)), max(1, round(w * scale))
    x = F.interpolate(image.permute(2, 0, 1)[None].float(), size, mode="bicubic", antialias=True)[0]
    top, left = (height - size[0]) // 2, (width - size[1]) // 2  # below zero where it sticks out
    x = F.pad(x, (left, width - size[1] - left, top, height - size[0] - top))  # or crop
    return x.clamp(0, 255).round().byte().permute(1, 2, 0)

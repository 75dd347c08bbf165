"""Reference images: any common format, upright, in the network's size."""

import os
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from zerosmooth import images
from zerosmooth.colors import ADOBE, PRIMARIES, SRGB, matrix_profile
from zerosmooth.fields import UserError
from zerosmooth.images import find_images, fit, read_image
from zerosmooth.models.clip import shrink


@pytest.fixture
def picture() -> np.ndarray:
    """A ramp to the right and down, with a red corner at the top left: 24 high, 40 wide."""
    ramp = np.add.outer(np.arange(24) * 4, np.arange(40) * 2)[..., None].repeat(3,
                                                                                2).astype(np.uint8)
    ramp[:6, :6] = (255, 0, 0)
    return ramp


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp", "jpg", "gif", "ppm"])
def test_common_formats_are_read(tmp_path, picture, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = read_image(path)
    assert image.dtype == torch.uint8 and image.shape == (24, 40, 3)
    error = np.abs(image.numpy().astype(int) - picture).mean()
    assert error < {"jpg": 6, "gif": 6}.get(suffix, 0.01)


def test_exif_rotation_alpha_and_grey_levels(tmp_path, picture):
    turned = Image.fromarray(picture)
    exif = turned.getexif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    turned.save(tmp_path / "turned.png", exif=exif)
    assert torch.equal(read_image(tmp_path / "turned.png"),
                       torch.from_numpy(np.rot90(picture, -1).copy()))

    alpha = np.dstack([picture, np.full((24, 40), 255, np.uint8)])
    alpha[:, 20:, 3] = 0
    Image.fromarray(alpha).save(tmp_path / "alpha.png")
    image = read_image(tmp_path / "alpha.png")
    assert (image[:, 20:] == 255).all() and torch.equal(image[:, :20],
                                                        torch.from_numpy(picture[:, :20]))

    for name, grey in {
        "grey": Image.fromarray(picture[..., 1]),
        "deep": Image.fromarray(picture[..., 1].astype(np.uint16) * 257),
        "bits": Image.fromarray(picture[..., 1] > 60),
    }.items():
        grey.save(tmp_path / f"{name}.png")
        image = read_image(tmp_path / f"{name}.png").float()
        assert image.shape == (24, 40, 3) and torch.equal(image[..., 0], image[..., 2])
        shown = torch.from_numpy(picture[..., 1]).float()
        assert ((image[..., 0] - (255.0 * (shown > 60)
                                  if name == "bits" else shown)).abs() <= 1).all()


@pytest.mark.parametrize(("suffix", "kind", "top"), [
    ("tiff", np.int32, 255), ("tiff", np.int32, 4095), ("tiff", np.uint16, 4095),
    ("png", np.uint16, 4095), ("png", np.uint16, 65535), ("tiff", np.int32, 65535)])
def test_the_range_of_deep_grey_is_seen_and_said(tmp_path, picture, suffix, kind, top):
    shown, path = picture[..., 1] + 80, tmp_path / f"x.{suffix}"
    Image.fromarray((shown.astype(np.int64) * top // 255).astype(kind)).save(path)
    said: list[str] = []
    image = read_image(path, said.append)[..., 0].numpy().astype(int)
    assert np.abs(image - shown).max() <= 1
    assert len(said) == (top < 65535) and all(f"is taken for 0 to {top};" in text for text in said)
    if said:
        with pytest.warns(UserWarning, match="x.* has grey values up to"):
            read_image(path)


def test_black_of_16_bits_is_black(tmp_path):
    Image.fromarray(np.zeros((24, 40), np.uint16)).save(tmp_path / "x.png")
    assert not read_image(tmp_path / "x.png", pytest.fail).any()


@pytest.mark.parametrize("channels", [1, 3])
def test_a_transparent_colour_of_16_bits_is_white(tmp_path, channels):
    levels = np.full((24, 40, channels), 40_000, ">u2")
    levels[:, 20:] = 1000

    def part(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(
            ">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", 40, 24, 16, {1: 0, 3: 2}[channels], 0, 0, 0)
    rows = b"".join(b"\0" + row.tobytes() for row in levels)
    clear = struct.pack(">H", 1000) * channels
    (tmp_path / "x.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"tRNS", clear)
        + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b""))
    image = read_image(tmp_path / "x.png")
    assert (image[:, 20:] == 255).all() and ((image[:, :20].int() - 156).abs() <= 1).all()


# --- colours

PIXEL = (200, 100, 80)
DISPLAY_P3 = matrix_profile(PRIMARIES[12], SRGB)
P3, FROM_P3 = struct.pack(">4B", 12, 13, 0, 1), (215, 93, 73)  # by Apple's own profile
FROM_ADOBE, LINEAR = (227, 100, 78), (229, 168, 152)
CHRM = struct.pack(">8I", 31270, 32900, 68000, 32000, 26500, 69000, 15000, 6000)  # of P3
BT709 = struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000)


def flat(path, mode="RGB", color=PIXEL, chunks=(), **options):
    """An image of one colour. chunks: name and content of those that a PNG gets."""
    Image.new(mode, (20, 24), color).save(path, **options)
    content = path.read_bytes()
    for name, data in chunks:
        chunk = struct.pack(">I", len(data)) + name + data
        content = content[:33] + chunk + struct.pack(">I", zlib.crc32(chunk[4:])) + content[33:]
    path.write_bytes(content)
    return path


def colour(path) -> list[int]:
    pixels = read_image(path).reshape(-1, 3)
    assert (pixels.int() - pixels[0].int()).abs().max() <= 1
    return pixels[0].tolist()


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff", "avif"])
def test_a_profile_is_converted_to_srgb(tmp_path, suffix):
    options = {"jpg": {"quality": 100, "subsampling": 0}, "webp": {"lossless": True},
               "avif": {"quality": 100}}.get(suffix, {})
    path = flat(tmp_path / f"x.{suffix}", icc_profile=DISPLAY_P3, **options)
    assert np.abs(np.subtract(colour(path), FROM_P3)).max() <= 2 * (suffix in ("jpg", "avif"))


@pytest.mark.parametrize(("mode", "pixel", "expected"), [
    ("RGBA", (*PIXEL, 255), FROM_P3), ("L", 128, (128, 128, 128)),
    ("RGBA", (*PIXEL, 0), (255, 255, 255)), ("P", 0, (0, 0, 0))])
def test_a_profile_goes_with_every_way_to_store_pixels(tmp_path, mode, pixel, expected):
    path = flat(tmp_path / "x.png", mode, pixel, icc_profile=DISPLAY_P3)
    assert colour(path) == list(expected)


def test_a_grey_profile_goes_with_grey_pixels_alone(tmp_path):
    linear = matrix_profile(PRIMARIES[1], (1.0,)).replace(b"RGB ", b"GRAY").replace(b"rTRC",
                                                                                   b"kTRC")
    assert colour(flat(tmp_path / "x.png", "L", 128, icc_profile=linear)) == [188] * 3
    assert colour(flat(tmp_path / "x.png", "LA", (128, 255), icc_profile=linear)) == [188] * 3
    with pytest.raises(UserError, match="x.png has a colour profile that does not fit it .GRAY for "
                                        "pixels of mode RGB.; save it as sRGB"):
        read_image(flat(tmp_path / "x.png", icc_profile=linear))


@pytest.mark.parametrize(("chunks", "expected"), [
    ([(b"cICP", P3)], FROM_P3),
    ([(b"cICP", bytes((1, 13, 0, 1)))], PIXEL),
    ([(b"cICP", bytes((1, 13, 0, 1))), (b"gAMA", struct.pack(">I", 100_000))], PIXEL),
    ([(b"cHRM", CHRM)], FROM_P3),
    ([(b"cHRM", CHRM), (b"gAMA", struct.pack(">I", 45455))], FROM_P3),
    ([(b"cHRM", CHRM), (b"sRGB", b"\0")], PIXEL),
    ([(b"cHRM", BT709), (b"gAMA", struct.pack(">I", 45455))], PIXEL),
    ([(b"gAMA", struct.pack(">I", 100_000))], LINEAR),
])
def test_what_the_chunks_of_a_png_say_is_converted(tmp_path, chunks, expected):
    assert np.abs(np.subtract(colour(flat(tmp_path / "x.png", chunks=chunks)), expected)).max() <= 1


@pytest.mark.parametrize("inner", [{0xA001: 2}, {0xA001: 0xFFFF, 0xA005: {1: "R03", 2: b"0100"}},
                                   {0xA001: 1}, {0xA001: 0xFFFF}])
def test_adobes_colours_are_known_from_exif_alone(tmp_path, inner):
    exif = Image.Exif()
    exif[0x8769] = inner
    for suffix in ("png", "jpg"):
        path = flat(tmp_path / f"x.{suffix}", exif=exif,
                    **({"quality": 100, "subsampling": 0} if suffix == "jpg" else {}))
        expected = FROM_ADOBE if inner[0xA001] == 2 or 0xA005 in inner else PIXEL
        assert np.abs(np.subtract(colour(path), expected)).max() <= 2
    icc = matrix_profile(ADOBE, SRGB)  # which goes before it
    assert colour(flat(tmp_path / "x.png", exif=exif, icc_profile=icc)) != colour(path)


def test_colours_that_cannot_be_converted_are_told(tmp_path):
    for profile in (b"no profile", DISPLAY_P3[:200], DISPLAY_P3.replace(b"RGB ", b"CMYK")):
        with pytest.raises(UserError, match="x.png has a colour profile that does not fit it .*"
                                            "save it as sRGB"):
            read_image(flat(tmp_path / "x.png", icc_profile=profile))
    for chunk in ((b"cICP", bytes((9, 16, 0, 1))), (b"cICP", bytes((99, 13, 0, 1)))):
        with pytest.raises(UserError, match="x.png has colours such as HDR's .primaries .*sRGB"):
            read_image(flat(tmp_path / "x.png", chunks=[chunk]))
    for chunk in ((b"cHRM", bytes(32)), (b"gAMA", bytes(4))):
        with pytest.raises(UserError, match="x.png has colours of no known space; save it"):
            read_image(flat(tmp_path / "x.png", chunks=[chunk]))


def test_images_that_cannot_be_used_are_told(tmp_path, picture):
    (tmp_path / "text.png").write_text("no picture")
    Image.fromarray(picture).save(tmp_path / "whole.png")
    cut = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    Image.fromarray(picture[:4, :4]).save(tmp_path / "tiny.png")
    Image.fromarray(np.full((24, 40), 0.5, np.float32)).save(tmp_path / "float.tiff")
    Image.fromarray(np.full((24, 40), 200_000, np.int32)).save(tmp_path / "wide.tiff")
    for name in ("float", "wide"):
        with pytest.raises(ValueError, match="8 or 16 bits a channel"):
            read_image(tmp_path / f"{name}.tiff")
    for name, text in {"text": "no image that can be read", "cut": "cannot be read",
                       "tiny": "4x4 pixels"}.items():
        with pytest.raises(ValueError, match=text):
            read_image(tmp_path / f"{name}.png")


@pytest.mark.parametrize(
    "head,kind",
    [
        (b"\0\0\0\x18ftypheic", "a HEIC image"),
        (b"\0\0\0\x18ftypmif1", "a HEIC image"),
        (b"\xff\x0a\0\0", "a JPEG XL image"),
        (b"\0\0\0\x18ftypisom", "a video"),
        (b"<!DOCTYPE html>", "a web page"),
        (b"<svg>", "an SVG drawing"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "a PDF or PostScript document"),
    ],
)
def test_images_of_other_kinds_are_named(tmp_path, head, kind):
    (tmp_path / "x.jpg").write_bytes(head + bytes(100))
    with pytest.raises(ValueError,
                       match=f"x.jpg is {kind}, which is not read here; save it as PNG or JPEG"):
        read_image(tmp_path / "x.jpg")


def test_nothing_in_a_folder_is_left_out_in_silence(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.png")
    Image.fromarray(picture).save(tmp_path / "b.jfif", "JPEG")
    (tmp_path / "c.heic").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "d.png").mkdir()
    # The last is told when it is read.
    assert [p.name for p in find_images(tmp_path)] == ["a.png", "b.jfif", "c.heic"]
    with pytest.raises(ValueError, match="c.heic is a HEIC image"):
        read_image(tmp_path / "c.heic")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ValueError, match="x.png is no regular file"):
        read_image(tmp_path / "x.png")


def test_giant_images_are_shrunk_or_told(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "LARGE", 50)
    ramp = np.add.outer(np.arange(220) // 2,
                        np.arange(160) // 2)[..., None].repeat(3, 2).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    image = read_image(tmp_path / "x.png")
    assert image.shape == (74, 54, 3)  # a third
    assert (image[:70, :50].int() - torch.from_numpy(ramp[1:211:3, 1:151:3]).int()).abs().max() <= 1
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ValueError, match="too many pixels; shrink it first"):
        read_image(tmp_path / "x.png")


def test_turned_tiffs_are_upright(tmp_path, picture):
    turned = Image.fromarray(picture)
    exif = turned.getexif()
    exif[0x0112] = 6
    for compression in (None, "tiff_lzw"):
        turned.save(tmp_path / "x.tiff", exif=exif, compression=compression)
        assert torch.equal(read_image(tmp_path / "x.tiff"),
                           torch.from_numpy(np.rot90(picture, -1).copy()))


def test_a_folder_gives_its_images_by_name(tmp_path, picture):
    for name in ("b.png", "a.JPG", "frame10.png", "frame2.png"):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._a.JPG").write_text("what some systems leave beside files")
    assert [p.name for p in find_images(tmp_path)] == ["a.JPG", "b.png", "frame2.png",
                                                       "frame10.png"]
    assert find_images(tmp_path / "b.png") == [tmp_path / "b.png"]
    (tmp_path / "empty").mkdir()
    for path, text in {"empty": "has no images", "none": "does not exist"}.items():
        with pytest.raises(ValueError, match=text):
            find_images(tmp_path / path)


@pytest.mark.parametrize("size", [(48, 48), (16, 64), (12, 20), (24, 40)])
def test_every_way_to_fit_gives_the_size(picture, size):
    image = torch.from_numpy(picture)
    for resize in ("crop", "pad", "stretch"):
        assert fit(image, *size, resize).shape == (*size, 3)
    with pytest.raises(ValueError, match="crop, pad, stretch"):
        fit(image, *size, "squeeze")


def test_crop_keeps_the_middle_and_pad_keeps_everything():
    image = torch.zeros(20, 40, 3, dtype=torch.uint8)
    image[:, 10:30] = 200
    assert (fit(image, 20, 20, "crop") == 200).all()
    padded = fit(image, 40, 40, "pad")
    assert (padded[:10] == 0).all() and (padded[30:] == 0).all() and (padded[12:28,
                                                                             14:26] == 200).all()
    assert torch.equal(fit(image, 20, 40, "stretch"), image)


def test_shrinking_keeps_flat_images_and_suppresses_what_would_alias():
    flat = torch.full((1, 3, 100, 60), 0.3)
    assert torch.allclose(shrink(flat, 16), torch.full((1, 3, 16, 16), 0.3), atol=1e-5)
    stripes = torch.ones(1, 3, 128, 128)
    stripes[..., ::2] = -1
    assert shrink(stripes, 16).abs().max() < 0.05  # without the Gaussian it would be up to 1

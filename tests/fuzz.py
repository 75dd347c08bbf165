"""Damages what comes in, a thousand times, and sees that it is used or refused: no traceback, no
hang, no half a file.

    python -m tests.fuzz                        # a thousand cases, the same every time
    python -m tests.fuzz --only configs --seed 7 --count 100
    python -m tests.fuzz --case 123             # one of them again; its files are kept

A target makes damaged files and gives back what to do with them, as a command would. It may end
well, or with what `run_command` says of a user's mistake: one printable line. Anything else fails,
with the number of its case.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import faulthandler
import io
import json
import math
import random
import re
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms
from safetensors.torch import save

import zerosmooth.checkpoint
from weights_convert import __main__ as converter
from weights_convert import lora
from weights_convert.engine import Table
from weights_convert.source import Source, open_source
from zerosmooth.colors import PRIMARIES, SRGB, matrix_profile
from zerosmooth.families import FAMILIES
from zerosmooth.family import Networks
from zerosmooth.images import find_images, fit, read_image
from zerosmooth.pipeline import NonFiniteError
from zerosmooth_cli.command import run_command

from .conftest import TINY_FAMILIES
from .test_configs import FILES, PUBLISHED, family_of, variant
from .test_convert import SMALL, published

LONGEST = 20.0  # seconds of a case
ODD: list[Any] = [None, True, False, -1, 0, 1, 2, 3, 7, 10**9, 2**70, -(2**70), 0.5, -0.0, 1e39,
                  math.inf, math.nan, "", "x", "x" * 20_000, "\0", "\x1b[31m\n", "\ud800", "14",
                  "../../x", [], [[]], [1] * 99, {}, {"a": 1}]
Work = Callable[[], object]


# --- how things are damaged


def damage_json(rng: random.Random, value: Any) -> Any:
    """One or two changes somewhere in a value of JSON."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 2))):
        holders = [value]
        for x in holders:
            inner = x.values() if isinstance(x, dict) else x
            holders += [y for y in inner if isinstance(y, (dict, list)) and y]
        holder = rng.choice(holders)
        key = rng.choice(list(holder)) if isinstance(holder, dict) else rng.randrange(len(holder))
        old, what = holder[key], rng.randrange(6)
        number = isinstance(old, (int, float)) and not isinstance(old, bool)
        if what == 0:
            del holder[key]
        elif what == 1 and isinstance(holder, dict):
            holder[rng.choice(("surprise", "", "\x1b[31m", str(key) * 2))] = rng.choice(ODD)
        elif what == 2 and number:
            holder[key] = rng.choice((old + 1, old - 1, old * 2, old // 2, -old))
        elif what == 3 and isinstance(holder, dict):
            holder[key] = holder[rng.choice(list(holder))]
        else:
            holder[key] = rng.choice(ODD)
        if not value:
            return value
    return value


def damage_bytes(rng: random.Random, content: bytes) -> bytes:
    """Cut, lengthened, or changed in some places."""
    what, at = rng.randrange(6), rng.randrange(len(content) + 1)
    if rng.random() < 0.5:
        at = min(at, rng.randrange(200))  # where headers are
    if what == 0:
        return content[:at]
    if what == 1:
        return content + rng.randbytes(rng.choice((1, 100, 5000)))
    if what == 2:
        return content[:at] + content[at + rng.choice((1, 8, 100)) :]
    if what == 3:
        return content[:at] + rng.randbytes(rng.choice((1, 8))) + content[at:]
    changed = bytearray(content)
    for _ in range(rng.choice((1, 3, 30))):
        if changed:
            place = min(at + rng.randrange(100), len(changed) - 1)
            changed[place] = rng.choice((0, 1, 127, 128, 255, rng.randrange(256)))
    return bytes(changed)


def safetensors(header: Any, body: bytes) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


# --- what is damaged, and what is done with it


@cache
def tiny(name: str) -> tuple[dict, bytes]:
    """Header and body of a family's tiny checkpoint."""
    torch.manual_seed(0)
    config = TINY_FAMILIES[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        tensors = Networks(FAMILIES[name], config).state_dict().items()
        zerosmooth.checkpoint.save(path, FAMILIES[name], config, tensors, torch.float32, "a test",
                                   "0" * 64)
        content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def use_checkpoint(path: Path) -> None:
    """What is taken for a whole checkpoint must make a video."""
    checkpoint = zerosmooth.checkpoint.describe(path)
    zerosmooth.checkpoint.check_tensors(checkpoint)
    pipeline = zerosmooth.checkpoint.load_described(checkpoint, "cpu")
    takes = checkpoint.family.takes
    image = torch.zeros(20, 30, 3, dtype=torch.uint8) if "image" in takes else None
    side = checkpoint.config.side * math.ceil(8 / checkpoint.config.side)
    with contextlib.suppress(NonFiniteError):
        pipeline.sample(image, steps=1, key_frames=2, height=side, width=side)


def headers(rng: random.Random, folder: Path) -> Work:
    header, body = tiny(rng.choice(list(TINY_FAMILIES)))
    if rng.random() < 0.5:
        content = safetensors(damage_json(rng, header), body)
    else:
        content = damage_bytes(rng, safetensors(header, body))
    path = folder / "x.safetensors"
    path.write_bytes(content)
    return lambda: use_checkpoint(path)


def tensors(rng: random.Random, folder: Path) -> Work:
    """Damage inside tensors, in a file of the same size: never used."""
    header, body = tiny(rng.choice(list(TINY_FAMILIES)))
    changed, at = bytearray(body), rng.randrange(len(body))
    end = min(len(body), at + rng.choice((1, 4, 100, len(body))))
    what = rng.randrange(4)
    if what == 0:
        changed[at:end] = bytes(end - at)
    elif what == 1:
        changed[at:end] = rng.randbytes(end - at)
    elif what == 2:
        changed[at] ^= 1 << rng.randrange(8)
    else:
        at = at // 4 * 4
        changed[at : at + 4] = struct.pack("<f", rng.choice((math.nan, math.inf)))
    path = folder / "x.safetensors"
    path.write_bytes(safetensors(header, bytes(changed)))

    def work() -> None:
        zerosmooth.checkpoint.load(path)
        assert changed == body, "a damaged checkpoint was loaded"

    return work


def configs(rng: random.Random, folder: Path) -> Work:
    header, body = tiny(rng.choice(list(TINY_FAMILIES)))
    text = header["__metadata__"]["config"]
    if rng.random() < 0.9:
        text = json.dumps(damage_json(rng, json.loads(text)))
    else:
        text = rng.choice(('{"unet":' * 100_000, "9" * 5000, text[: rng.randrange(len(text))]))
    path = folder / "x.safetensors"
    metadata = {**header["__metadata__"], "config": text}
    path.write_bytes(safetensors({**header, "__metadata__": metadata}, body))
    return lambda: use_checkpoint(path)


def use_source(path: Path) -> None:
    source = open_source(path).checked(torch.float16)
    for name in source.shapes:
        source.read(name)


def sources(rng: random.Random, folder: Path) -> Work:
    """Published files: pickles of both kinds and safetensors, and an index with its shards."""
    state: Any = {f"model.{i}.weight": torch.full((i + 1, 2), float(i)) for i in range(3)}
    kind = rng.choice(("zip", "legacy", "safetensors", "index"))
    path = folder / f"x.{kind}"
    if kind == "index":
        (folder / "a.safetensors").write_bytes(save(state))
        index = {"metadata": {"total_size": 48},
                 "weight_map": dict.fromkeys(state, "a.safetensors")}
        path = folder / "x.safetensors.index.json"
        path.write_bytes(json.dumps(damage_json(rng, index)).encode("utf-8", "surrogatepass"))
    elif kind == "safetensors":
        path.write_bytes(damage_bytes(rng, save(state)))
    else:
        ones = torch.ones(2)
        odds: list[Any] = [None, 1, "x", [], state, argparse.Namespace(a=1), {1: 2},
                           ones.to_sparse(), np.ones(2)]
        odd = rng.choice(odds)
        state = rng.choice((state, {"model": state}, {**state, "x": odd}, {1: odd}, odd, [odd]))
        buffer = io.BytesIO()
        torch.save(state, buffer, _use_new_zipfile_serialization=kind == "zip")
        content = buffer.getvalue()
        path.write_bytes(content if rng.random() < 0.3 else damage_bytes(rng, content))
    return lambda: use_source(path)


@cache
def ours() -> bytes:
    """A pickle that converts to a small VideoCrafter2."""
    with tempfile.TemporaryDirectory() as folder:
        return published(Path(folder)).read_bytes()


def conversions(rng: random.Random, folder: Path) -> Work:
    """Through the command: a file under the final name is whole."""
    content = ours() if rng.random() < 0.1 else damage_bytes(rng, ours())
    (folder / "model.ckpt").write_bytes(content)
    output = folder / "out.safetensors"

    def work() -> None:
        argv = ["vc2", str(folder / "model.ckpt"), "-o", str(output), "--dtype",
                rng.choice(list(converter.DTYPES))]
        converter.convert_to_file(*converter.parse(argv))
        zerosmooth.checkpoint.check_tensors(zerosmooth.checkpoint.describe(output))

    return work


def folders(rng: random.Random, folder: Path) -> Work:
    """What the configs beside weights say: it is followed, and then makes a video, or refused."""
    name = rng.choice(list(PUBLISHED))
    part = rng.choice(list(PUBLISHED[name]))
    values, family = PUBLISHED[name][part], family_of(name)
    said = damage_json(rng, values) if values else rng.choice(ODD)
    (folder / part).mkdir()
    text = json.dumps(said).encode("utf-8", "surrogatepass")
    file = folder / part / FILES.get(part, "config.json")
    file.write_bytes(damage_bytes(rng, text) if rng.random() < 0.1 else text)

    def work() -> None:
        config = variant(folder, family)
        steps, eta = config.defaults.steps, config.defaults.eta
        sampler = config.sampler.sampler(steps, eta)
        assert len(sampler) and all(0 <= sampler.share(i) <= 1 for i in range(len(sampler)))
        zerosmooth.checkpoint.try_out(family, config)

    return work


@cache
def weights() -> dict[str, torch.Tensor]:
    """Of a LoRA of one layer, of 8 channels."""
    return {"down": torch.ones(2, 8), "up": torch.ones(8, 2), "alpha": torch.tensor(2.0)}


def loras(rng: random.Random, folder: Path) -> Work:
    """Factors and alphas of any shape and kind, under names of many kinds."""
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    begins = [f"unet.{layer}", f"lora_unet_{layer.replace('.', '_')}", f"lora_te2_{layer}",
              f"base_model.model.{layer}", layer, f"diffusion_model.{layer}"]
    ends = {"down": (".lora_down.weight", ".lora_A.weight", ".lora_A.x.weight", ".hada_w1_a"),
            "up": (".lora_up.weight", ".lora_B.weight", ".lora_B.x.weight", ".dora_scale"),
            "alpha": (".alpha",)}
    state: dict[str, torch.Tensor] = {}
    for begin in rng.choices(begins, k=rng.choice((1, 1, 1, 2))):
        which = rng.choices(range(4), (9, 9, 9, 1))[0]
        for side, x in weights().items():
            if rng.random() < 0.07:
                shapes = [(0, 8), (8, 0), (2,), (), (2, 8, 1, 1), (8, 2, 1), (3, 8), (0,)]
                value = rng.choice((1.0, math.nan, 1e39))
                x = torch.full(rng.choice(shapes), value, dtype=torch.float64)
            if rng.random() < 0.07:
                kinds = torch.int8, torch.float64, torch.complex64, torch.bool, torch.float16
                x = x.to(rng.choice(kinds))
            if rng.random() < 0.97:
                state[begin + ends[side][min(which, len(ends[side]) - 1)]] = x
    path = folder / "lora.pt"
    torch.save(state, path)
    names = {"unet." + layer + ".weight": (8, 8)}
    source = Source(folder, names, lambda name: torch.zeros(8, 8), ())
    args = argparse.Namespace(lora=[path], lora_scale=[rng.choice((1.0, 1.0, 0.5, 0.5, math.inf))])

    def work() -> None:
        merged = lora.merge(source, Table([("unet.*", "unet.*")]), args).checked(torch.float32)
        assert merged.read(*names).shape == (8, 8)

    return work


def profiles(rng: random.Random, folder: Path) -> Work:
    """A whole image with a damaged colour profile, chunks or EXIF that say odd things of colours,
    or a grey of more than 8 bits."""
    kind = rng.choice(("PNG", "JPEG", "TIFF", "WEBP"))
    if rng.random() < 0.3:
        kind, depth = rng.choice(("PNG", "TIFF")), rng.choice((np.uint16, np.int32))
        top = rng.choice((0, 1, 255, 4095, 65535))
        image = Image.fromarray((np.arange(32 * 24).reshape(24, 32) * top // 767).astype(depth))
        options: dict[str, Any] = {"transparency": rng.choice(ODD)} if kind == "PNG" else {}
    else:
        mode = rng.choice(("RGB", "L", "CMYK" if kind in ("JPEG", "TIFF") else "RGB"))
        image = Image.new("RGB", (32, 24), (200, 100, 80)).convert(mode)
        srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
        wide = matrix_profile(PRIMARIES[12], rng.choice((SRGB, (1.8,))))
        exif = image.getexif()
        interoperable = {1: rng.choice(("R03", "x"))}
        exif[0x8769] = {0xA001: rng.choice((0, 1, 2, 0xFFFF)), 0xA005: interoperable}
        options = rng.choice(({"icc_profile": damage_bytes(rng, rng.choice((srgb, wide)))},
                              {"exif": exif}, {}))
    path = folder / f"x.{kind.lower()}"
    try:
        image.save(path, kind, **options)
    except Exception:  # what cannot be written needs not be read
        image.convert("L").save(path, kind)
    if kind == "PNG":
        chunks = (b"cICP", 4), (b"gAMA", 4), (b"cHRM", 32)
        for name, length in rng.sample(chunks, rng.randint(0, 3)):
            odd = bytes(rng.choice((0, 1, 9, 12, 13, 16, 255)) for _ in range(length))
            chunk = name + rng.choice((odd, damage_bytes(rng, odd)))
            content, check = path.read_bytes(), struct.pack(">I", zlib.crc32(chunk))
            path.write_bytes(content[:33] + struct.pack(">I", len(chunk) - 4) + chunk + check
                             + content[33:])
    return lambda: [fit(read_image(path), 16, 16)]


@cache
def pictures() -> list[tuple[str, bytes]]:
    """Name and content of images in the common formats."""
    pixels = np.random.default_rng(0).integers(256, size=(24, 32, 4), dtype=np.uint8)
    made, image = [], Image.fromarray(pixels)
    for suffix, kind, mode in (
            ("png", "PNG", "RGBA"), ("jpg", "JPEG", "RGB"), ("gif", "GIF", "P"),
            ("webp", "WEBP", "RGBA"), ("tiff", "TIFF", "RGB"), ("bmp", "BMP", "RGB"),
            ("ppm", "PPM", "RGB"), ("tga", "TGA", "RGB"), ("png", "PNG", "P"),
            ("tiff", "TIFF", "CMYK")):
        buffer, exif = io.BytesIO(), image.getexif()
        exif[0x0112] = 6  # how it is to be turned
        options = {"exif": exif} if kind in ("PNG", "JPEG", "TIFF", "WEBP") else {}
        image.convert(mode).save(buffer, kind, **options)
        made.append((f"x.{suffix}", buffer.getvalue()))
    return made


def images(rng: random.Random, folder: Path) -> Work:
    name, content = rng.choice(pictures())
    (folder / name).write_bytes(damage_bytes(rng, content))
    return lambda: [fit(read_image(path), 16, 16) for path in find_images(folder)]


# what makes a case, and its share of all
TARGETS: dict[str, tuple[Callable[[random.Random, Path], Work], int]] = {
    "headers": (headers, 4),
    "tensors": (tensors, 2),
    "configs": (configs, 4),
    "sources": (sources, 5),
    "conversions": (conversions, 1),
    "images": (images, 6),
    "folders": (folders, 1),
    "loras": (loras, 3),
    "profiles": (profiles, 3),
}


# --- how it is run


class Hang(BaseException):
    pass


def case(number: int, seed: int, folder: Path, targets: list[str]) -> tuple[str, str]:
    """Which target it was, and how it ended: "used", "refused", or what is wrong."""
    rng, told = random.Random(f"{seed}/{number}"), io.StringIO()
    (target,) = rng.choices(targets, [TARGETS[name][1] for name in targets])

    def stop(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    try:
        work = TARGETS[target][0](rng, folder)
        signal.setitimer(signal.ITIMER_REAL, LONGEST)
        with (contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()),
              warnings.catch_warnings()):
            warnings.simplefilter("ignore")
            status = run_command("fuzz", lambda: work() and 0 or 0, "")
    except Hang:
        return target, f"took longer than {LONGEST:.0f} s"
    except Exception:
        return target, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    lines = re.split(r"(?<=\n)", told.getvalue())
    said = "".join(line for line in lines if not line.startswith("\r"))  # which is progress
    names = [path.name for path in folder.rglob("*")]
    if left := [name for name in names if ".part" in name or (status and name[:3] == "out")]:
        return target, f"left {', '.join(left)} after {said}"
    if status == 0:
        return target, "used"
    if status == 1 and said.endswith("\n") and said[:-1].isprintable() and len(said) <= 1500:
        return target, "refused"
    return target, f"said with status {status}: {said!r}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--seed", type=int, default=0)
    add("--count", type=int, default=1000)
    add("--only", choices=TARGETS, help="one target (default: all, each with its share)")
    add("--case", type=int, help="this one alone (--only and --seed as they were)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    FAMILIES["vc2"].config = SMALL  # what `conversions` has
    targets = [args.only] if args.only else list(TARGETS)
    if args.case is not None:
        folder = Path(tempfile.mkdtemp())
        print(*case(args.case, args.seed, folder, targets), f"files in {folder}", sep="\n")
        return 0
    ends: Counter[tuple[str, str]] = Counter()
    slowest, failed = (0.0, -1), 0
    for number in range(args.count):
        faulthandler.dump_traceback_later(3 * LONGEST, exit=True)  # if it is deaf to signals
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as name:
            target, end = case(number, args.seed, Path(name), targets)
        slowest = max(slowest, (time.perf_counter() - began, number))
        if end not in ("used", "refused"):
            failed += 1
            print(f"case {number} ({target}) {end}", file=sys.stderr)
        ends[target, end if end in ("used", "refused") else "wrong"] += 1
    faulthandler.cancel_dump_traceback_later()
    for (target, end), count in sorted(ends.items()):
        print(f"{target}: {count} {end}")
    seconds, number = slowest
    print(f"{failed} of {args.count} wrong; the slowest, case {number}, took {seconds:.1f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())

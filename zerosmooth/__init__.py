"""ZeroSmooth: high frame rate video from a frozen video diffusion model (arXiv 2406.00908).

    import zerosmooth
    pipeline = zerosmooth.load()                       # or load("vc2.safetensors", device="cuda")
    video, = pipeline.sample("a red circle moving left", seeds=7)
    video.frames                                       # uint8 f h w 3 at 16, 32 and 64 frames

Axes: b batch, f frames, k key frames (f = n*k), l tokens of one frame, m tokens of a prompt, d or c
channels, h and w height and width. Read the method in this order: operators, bus, attention,
cascade.
"""

import os
import sys

# GNU's OpenMP, torch's on Linux, reads this when torch loads: threads that wait then sleep soon
if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")

from .bus import Correction, HiddenStateBus
from .cascade import Cascade, cascade_step, nested_noise
from .checkpoint import CheckpointError, describe, load, shipped
from .config import Defaults, ModelConfig
from .families import FAMILIES
from .family import Family, load_family
from .fields import UserError
from .images import read_image
from .pipeline import NonFiniteError, Pipeline, Subject, Video
from .settings import PRESETS, Output, Running, Settings
from .video import picture, read_video, side_by_side, write_picture, write_video

__version__ = "0.2.0"
__all__ = [
    "FAMILIES",
    "PRESETS",
    "Cascade",
    "CheckpointError",
    "Correction",
    "Defaults",
    "Family",
    "HiddenStateBus",
    "ModelConfig",
    "NonFiniteError",
    "Output",
    "Pipeline",
    "Running",
    "Settings",
    "Subject",
    "UserError",
    "Video",
    "cascade_step",
    "describe",
    "load",
    "load_family",
    "nested_noise",
    "picture",
    "read_image",
    "read_video",
    "shipped",
    "side_by_side",
    "write_picture",
    "write_video",
]

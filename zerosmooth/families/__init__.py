"""The families that are built in, by name."""

from ..family import Family
from .lavie import LAVIE
from .svd import SVD
from .videocrafter import VC1, VC2

FAMILIES: dict[str, Family] = {family.name: family for family in (VC2, VC1, LAVIE, SVD)}

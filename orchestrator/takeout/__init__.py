"""A point of a study as a folder that others use: the model in three forms, and a card that says what it is.

taking.py     take_out(study, key, folder): chosen, measured, written, read back
choosing.py   which stage it is, and whether what it needs is there and allowed
measuring.py  its figures, read from the study or measured here
figures.py    what figures.json holds: all that the card says, as numbers
readme.py     the same for people, README.md
scripts.py    the programs in it, which run each form without the others
"""

from orchestrator.takeout.figures import Figures
from orchestrator.takeout.taking import FORMATS, take_out

__all__ = ["FORMATS", "Figures", "take_out"]

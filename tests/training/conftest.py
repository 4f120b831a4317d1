"""What other processes import of the tests of training lies where they find it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

"""Run the one stage that the stage file asks for: `python -m tunesmith_trainer`, no arguments."""

import sys

from tunesmith_trainer.runner import main

sys.exit(main(own_process=True))

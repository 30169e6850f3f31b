"""Whether the model is whole: a model whose tensors are not all there is served by vLLM all the same, with random numbers for the rest.

Run as `python -m tunesmith_serving.whole FOLDER`, it compares a folder with its config.json by transformers, which takes seconds and
memory that the launcher is not to hold; it ends with UNFIT and says what is wrong.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tunesmith_serving import device, weights
from tunesmith_serving.errors import ServeError

UNFIT, UNKNOWN = 65, 69
PATIENCE_SECONDS = 600


def check(folder: Path, uri: str) -> str:
    """Refuse a model that is not whole: ServeError(InvalidModel). Returns what was found, for the log.

    What transformers does not know (an architecture or a quantization that vLLM alone has) is left to vLLM.
    """
    try:
        weights.check_files(folder)
        config = weights.read_object(folder / "config.json")
    except weights.Unfit as error:
        raise ServeError("InvalidModel", f"{uri}: {error}") from None
    except OSError as error:
        raise ServeError("StoreUnavailable", f"cannot read {uri}: {error}") from error
    if "model_type" not in config:
        return "its tensors are left to vLLM: config.json names no model_type"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TQDM_DISABLE": "1"}
    device.hide(environment)
    command = [sys.executable, "-m", "tunesmith_serving.whole", str(folder)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return f"its tensors are left to vLLM: they were not compared with config.json within {PATIENCE_SECONDS} s"
    said = done.stdout.strip().splitlines()
    if done.returncode == UNFIT and said:
        raise ServeError("InvalidModel", f"{uri}: {said[-1]}")
    if done.returncode == 0:
        return "its tensors and tokens are those of its config.json"
    return f"its tensors are left to vLLM: {(said or done.stderr.strip().splitlines() or ['the comparison ended'])[-1]}"


def main(folder: Path) -> int:
    """Compare a folder's tensors and tokens with its config.json; returns 0, UNFIT, or UNKNOWN where transformers cannot say."""
    try:
        rows = weights.check_tensors(folder, weights.check_files(folder))
        if (folder / "tokenizer.json").is_file():
            from transformers import AutoTokenizer

            weights.check_tokens(AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False), rows)
    except weights.Unfit as error:
        print(error)
        return UNFIT
    except Exception as error:  # transformers raises many kinds for what it does not know
        print(f"{type(error).__name__}: {error}".splitlines()[0])
        return UNKNOWN
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

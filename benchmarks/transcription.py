"""Time transcription on one thread: `python benchmarks/transcription.py RUN AUDIO…`.

Front-end, net and decoding of whole files as in `wavespace transcribe`, in float32 and, if the processor computes in
it, in bfloat16; the best of three rounds of each, in alternation.
"""

from __future__ import annotations

import sys
import time

import soundfile
import torch

from wavespace import checkpoint, inference, transcribe


def main(run: str, files: list[str]) -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    task = checkpoint.load(run)
    seconds = sum(soundfile.info(file).duration for file in files)
    native = inference.computes_in_bfloat16
    spent: dict[str, list[float]] = {"float32": [], "bfloat16": []} if native("cpu") else {"float32": []}
    for _ in range(3):
        for kind, times in spent.items():
            inference.computes_in_bfloat16 = lambda _, kind=kind: kind == "bfloat16"
            begun = time.process_time()
            for file in files:
                transcribe(file, task)
            times.append(time.process_time() - begun)
    print(f"{len(files)} files of {seconds:.0f} s; seconds of compute for each second of audio:")
    for kind, times in spent.items():
        print(f"  {kind:<8} {min(times) / seconds:.4f}")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])

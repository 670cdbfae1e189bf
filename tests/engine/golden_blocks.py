"""Writes golden_blocks.hpp: random blocks of every quantized type, decoded by the Python package gguf (pip install gguf numpy).

    python golden_blocks.py > golden_blocks.hpp && clang-format -i golden_blocks.hpp
"""
import random

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

EXPONENTS = {"Q4_0": [1], "Q4_1": [1, 3], "Q5_0": [1], "Q5_1": [1, 3], "Q8_0": [1], "Q2_K": [81, 83], "Q3_K": [109], "Q4_K": [1, 3], "Q5_K": [1, 3],
             "Q6_K": [209], "IQ4_NL": [1], "IQ4_XS": [1], "MXFP4": []}

print("""#pragma once
#include <cstdint>
#include <vector>

/// Blocks as the Python package gguf decodes them: written by golden_blocks.py.
struct golden_block {
  std::uint32_t type;
  char const* hex;
  double sum, moment;        // of the elements, and of each times its index
  std::vector<double> some;  // evenly spaced, from the first on
};
inline std::vector<golden_block> const golden_blocks = {""")
dice = random.Random(1)
for name, exponents in EXPONENTS.items():
    kind = GGMLQuantizationType[name]
    elements, size = GGML_QUANT_SIZES[kind]
    block = bytearray(dice.randrange(256) for _ in range(size))
    for at in exponents:  # scales that are finite
        block[at] &= 0xBF
    if name == "MXFP4":
        block[0] = 120
    x = quants.dequantize(np.frombuffer(bytes(block), dtype=np.uint8).reshape(1, size), kind).astype(np.float64).ravel()
    text = block.hex()
    lines = "\n     ".join(f'"{text[i:i + 140]}"' for i in range(0, len(text), 140))
    some = ", ".join(f"{v:.9g}" for v in x[:: elements // 8])
    print(f"    {{{int(kind)},\n     {lines},\n     {x.sum():.12g},\n     {(x * np.arange(elements)).sum():.12g},\n     {{{some}}}}},")
print("};")

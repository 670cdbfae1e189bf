#!/usr/bin/env python3
"""Times PyTorch's dense decode attention, top-k and gather on the shapes of benchmarks/cuda_*.cu, and writes them as JSON to the file that is named, or prints them.

Needs a CUDA device and PyTorch; says so and ends with status 77 (a skip) where either is missing.
"""
import json
import sys

try:
    import torch
except ImportError:
    print("skipped: PyTorch is not installed", file=sys.stderr)
    sys.exit(77)
if not torch.cuda.is_available():
    print("skipped: PyTorch sees no CUDA device", file=sys.stderr)
    sys.exit(77)


def median_us(f, runs=20):
    times = []
    for i in range(runs + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        f(i)
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end) * 1e3)
    return sorted(times[3:])[runs // 2]


results = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "us": {}}
for batch, tokens in [(1, 32768), (8, 32768), (32, 32768), (1, 131072), (8, 131072)]:
    copies = max(2, min(4, 16 * 131072 // (batch * tokens) // 4))  # several, so that no cache answers
    q = torch.randn(batch, 32, 1, 128, device="cuda", dtype=torch.bfloat16)
    kv = [[torch.randn(batch, 8, tokens, 128, device="cuda", dtype=torch.bfloat16) for _ in range(2)] for _ in range(copies)]
    sdpa = torch.nn.functional.scaled_dot_product_attention
    results["us"][f"sdpa_enable_gqa/{tokens}/{batch}"] = median_us(lambda i: sdpa(q, *kv[i % copies], enable_gqa=True))
    grouped = q.view(batch, 8, 4, 128)  # a group's heads as query rows: the keys are read once
    results["us"][f"sdpa_group_as_rows/{tokens}/{batch}"] = median_us(lambda i: sdpa(grouped, *kv[i % copies]))
    del kv
for rows, n in [(1, 131072), (4, 131072), (8, 131072), (64, 131072), (256, 131072), (8, 32768)]:
    x = torch.randn(rows, n, device="cuda")
    results["us"][f"topk_2048/{rows}/{n}"] = median_us(lambda i: torch.topk(x, 2048, dim=1, sorted=False))
keys = torch.randn(131072 * 8, 128, device="cuda", dtype=torch.bfloat16)
ids = torch.randint(0, keys.shape[0], (2048 * 8,), device="cuda")
results["us"]["index_select/2048x8"] = median_us(lambda i: torch.index_select(keys, 0, ids))
print(json.dumps(results, indent=1), file=open(sys.argv[1], "w") if len(sys.argv) > 1 else sys.stdout)

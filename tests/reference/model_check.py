"""Reads a model file with Python's safetensors and prints what it holds as JSON.

Usage: python model_check.py MODEL
Output: {"system": ..., "tensors": {name: {"shape": [...], "sum": ...}, ...}}, sums in float64. Exits with 77 where a package is
missing, so that callers can skip.
"""

import json
import sys

try:
    import numpy as np
    from safetensors import safe_open
except ImportError as missing:
    print(missing)
    sys.exit(77)

with safe_open(sys.argv[1], framework="numpy") as model:
    metadata = model.metadata()
    tensors = {name: model.get_tensor(name) for name in model.keys()}
manifest = json.loads(metadata["jrs.manifest"])
assert manifest["training"]["system"] == metadata["system"], metadata
assert all(tensor.dtype == np.float32 for tensor in tensors.values()), "every tensor is float32"
summary = {name: {"shape": list(t.shape), "sum": float(t.sum(dtype=np.float64))} for name, t in tensors.items()}
json.dump({"system": metadata["system"], "tensors": summary}, sys.stdout)
